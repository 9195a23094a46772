"""Several worker processes behind one port."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rgate.cli import main as cli
from rgate.testing import ScriptedBackend, http_response

from ..support.processes import GatewayProcess, run_rgate
from ..support.raw_client import RawClient
from ..support.waiting import PROCESS_DEADLINE_SECONDS, eventually


def get(gateway: GatewayProcess, path: str) -> bytes:
    """The body of the response to a request on a connection of its own, because the kernel chooses the worker by connection."""
    with urllib.request.urlopen(gateway.url + path, timeout=PROCESS_DEADLINE_SECONDS) as response:
        body: bytes = response.read()
        return body


@pytest.fixture
def running(tmp_path: Path) -> Iterator[GatewayProcess]:
    with ScriptedBackend(http_response(b"hello")) as backend:
        config = tmp_path / "config.yml"
        config.write_text(f"""
routes: [{{path_prefix: /hello, backend: hello}}]
backends: [{{name: hello, endpoints: ["{backend.url}"]}}]
server: {{workers: 2}}
plugins: {{admin: {{allow: [127.0.0.1]}}, stats: {{database: "sqlite:///{tmp_path}/rgate.db"}}}}
""")
        with GatewayProcess(config) as gateway:
            assert gateway.url
            yield gateway


def test_stats_are_right_whichever_worker_answers(running: GatewayProcess) -> None:
    assert len(running.workers()) == 2
    for number in range(1, 41):
        assert get(running, "/hello") == b"hello"
        counted = json.loads(get(running, "/stats"))["requests_count"]
        assert counted == {"success": number, "error": 0}, f"after request {number}"


def test_worker_that_is_killed_is_replaced_and_said_so(running: GatewayProcess) -> None:
    before = running.workers()
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    assert "SIGKILL" in running.output.until(f"pid {killed}").string
    eventually(lambda: len(running.workers() - {killed}) == 2, "another takes its place", PROCESS_DEADLINE_SECONDS)
    assert [get(running, "/hello") for _ in range(20)] == [b"hello"] * 20


def test_worker_that_is_told_to_end_is_replaced_and_that_is_no_error(running: GatewayProcess) -> None:
    ended = min(running.workers())
    os.kill(ended, signal.SIGTERM)
    line = running.output.until(f"pid {ended}").string
    assert " INFO rgate.process: " in line and "ended with exit code 0" in line


def test_drain_reaches_every_worker_and_those_that_follow(running: GatewayProcess) -> None:
    def is_drained() -> bool:
        try:
            get(running, "/hello")
        except urllib.error.HTTPError as error:
            with error:
                return error.code == 503
        return False

    (backend,) = json.loads(get(running, "/-/backends"))["backends"]
    assert cli.main(["drain", backend["endpoints"][0]["name"], "--url", running.url]) == 0
    assert [is_drained() for _ in range(20)] == [True] * 20
    killed = min(running.workers())
    os.kill(killed, signal.SIGKILL)
    processes: set[int] = set()

    def both_answer() -> bool:
        processes.add(json.loads(get(running, "/-/live"))["process"])
        return len(processes - {killed}) == 2

    eventually(both_answer, "another takes its place", PROCESS_DEADLINE_SECONDS)
    eventually(lambda: all(is_drained() for _ in range(20)), "the new worker knows what is drained")


def test_second_signal_ends_all_workers_and_exits_with_its_number(tmp_path: Path) -> None:
    with ScriptedBackend(lambda connection: connection.wait_closed() if connection.read_request() else None) as backend:
        config = tmp_path / "config.yml"
        config.write_text(f"""
routes: [{{path_prefix: /, backend: slow}}]
backends: [{{name: slow, endpoints: ["{backend.url}"]}}]
server: {{workers: 2, drain_seconds: 60}}
plugins: {{disable: [docker, stats]}}
""")
        with GatewayProcess(config) as gateway, RawClient(gateway.url) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            backend.wait_for_requests(1)
            workers = gateway.workers()
            gateway.process.send_signal(signal.SIGTERM)
            gateway.output.until("a second signal ends at once")
            assert gateway.stop() == 128 + signal.SIGTERM
            assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_all_workers_and_exits_zero(running: GatewayProcess, number: signal.Signals) -> None:
    workers = running.workers()
    assert running.stop(number) == 0
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_supervisor_that_is_killed_takes_its_workers_along(running: GatewayProcess) -> None:
    workers = running.workers()
    running.process.kill()
    running.wait()
    eventually(
        lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()],
        "the workers end with their supervisor",
        PROCESS_DEADLINE_SECONDS,
    )


def test_port_taken_by_another_gateway_is_noticed(running: GatewayProcess, tmp_path: Path) -> None:
    port = running.url.rpartition(":")[2]
    other = run_rgate("--port", port, "--config", str(tmp_path / "config.yml"))
    assert (other.returncode, other.stdout) == (2, "")
    assert "the port is taken" in other.stderr
