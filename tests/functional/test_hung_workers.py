"""Workers that get on no more, by real processes: each is ended, says where it hung if it can, and is replaced."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from rgate.testing import ScriptedBackend, http_response

from ..support.processes import GatewayProcess, service_manager
from ..support.raw_client import RawClient
from ..support.waiting import PROCESS_DEADLINE_SECONDS

HANGING = """
import ctypes

class Hanging:
    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] == "/hello/hang":
            hold_the_interpreter()
        return self.app(environ, start_response)

def hold_the_interpreter():
    ctypes.PyDLL(None).sleep(1000)  # PyDLL keeps the interpreter's lock
"""


def written(tmp_path: Path, backend: ScriptedBackend) -> Path:
    (tmp_path / "hanging.py").write_text(HANGING)
    config = tmp_path / "config.yml"
    config.write_text(f"""
routes: [{{path_prefix: /hello, backend: hello}}]
backends: [{{name: hello, endpoints: ["{backend.url}"]}}]
server: {{workers: 2, worker_timeout_seconds: 2}}
use: [{{app: "hanging:Hanging"}}]
plugins: {{disable: [docker, stats]}}
""")
    return config


def ask(url: str, path: str) -> None:
    with suppress(OSError, AssertionError), RawClient(url) as client:
        client.sock.settimeout(PROCESS_DEADLINE_SECONDS)
        client.get(path)


@pytest.mark.parametrize("how", ["a plugin never lets go of the interpreter", "the process is stopped"])
def test_worker_that_hangs_is_replaced(how: str, tmp_path: Path) -> None:
    environ = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    with (
        service_manager(tmp_path) as (manager, notified),
        ScriptedBackend(http_response(b"hello")) as backend,
        GatewayProcess(written(tmp_path, backend), environ={**environ, **notified}) as gateway,
    ):
        url = gateway.url
        assert manager.recv(100) == b"READY=1", "all workers serve"
        if how.startswith("a plugin"):
            asking = threading.Thread(target=ask, args=(url, "/hello/hang"))
            asking.start()
            hung = r"worker \d \(pid (\d+)\) has hung for 2 s, and is killed"
            pid = gateway.output.until_both(hung, r"hanging.py\", line \d+ in hold_the_interpreter")[1]
            gateway.output.until(rf"\(pid {pid}\) ended with signal SIGABRT; another takes its place now")
            asking.join(PROCESS_DEADLINE_SECONDS)
        else:
            os.kill(min(gateway.workers()), signal.SIGSTOP)
            pid = gateway.output.until(r"worker \d \(pid (\d+)\) has hung for 2 s, and is killed")[1]
            gateway.output.until(rf"\(pid {pid}\) ended with signal SIGKILL; another takes its place now")
        for _ in range(10):
            with RawClient(url) as client:
                client.sock.settimeout(PROCESS_DEADLINE_SECONDS)  # the new one may still be starting
                assert client.get("/hello").body == b"hello"
        assert gateway.stop() == 0
