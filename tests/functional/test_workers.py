"""Several worker processes behind one port."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from rgate.cli import main as cli
from rgate.testing import ScriptedBackend, http_response

ROOT = Path(__file__).parent.parent.parent
PATIENCE_SECONDS = 30


class RunningGateway:
    """A gateway with its workers, as processes of their own."""

    def __init__(self, config: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "rgate.py", "--port", "0", "--config", str(config)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        line = read_until(self.process.stdout, "listening on")
        found = re.search(r"http://\S+", line)
        assert found, line
        self.url = found[0]

    def get(self, path: str) -> bytes:
        # A connection of its own for every request: the kernel chooses the worker by connection.
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE_SECONDS) as response:
            body: bytes = response.read()
            return body

    def workers(self) -> set[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return set(map(int, children.split()))


def read_until(stream: IO[str] | None, text: str) -> str:
    """The first line that has `text` in it."""
    assert stream is not None
    deadline = time.monotonic() + PATIENCE_SECONDS
    seen = []
    while time.monotonic() < deadline:
        if not select.select([stream], [], [], 1)[0] and not seen:
            continue
        line = stream.readline()
        if text in line:
            return line
        if not line:
            break
        seen.append(line)
    raise AssertionError(f"no line with {text!r} in {seen}")


def eventually(what: Callable[[], bool], message: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < deadline, message
        select.select([], [], [], 0.02)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningGateway]:
    with ScriptedBackend(http_response(b"hello")) as backend:
        config = tmp_path / "config.yml"
        config.write_text(f"""
routes: [{{path_prefix: /hello, backend: hello}}]
backends: [{{name: hello, endpoints: ["{backend.url}"]}}]
server: {{workers: 2}}
plugins: {{admin: {{allow: [127.0.0.1]}}, stats: {{database: "sqlite:///{tmp_path}/rgate.db"}}}}
""")
        gateway = RunningGateway(config)
        try:
            yield gateway
        finally:
            gateway.process.kill()
            gateway.process.communicate(timeout=PATIENCE_SECONDS)


def test_stats_are_right_whichever_worker_answers(running: RunningGateway) -> None:
    assert len(running.workers()) == 2
    for number in range(1, 41):
        assert running.get("/hello") == b"hello"
        counted = json.loads(running.get("/stats"))["requests_count"]
        assert counted == {"success": number, "error": 0}, f"after request {number}"


def test_worker_that_is_killed_is_replaced_and_said_so(running: RunningGateway) -> None:
    before = running.workers()
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    assert "SIGKILL" in read_until(running.process.stderr, f"pid {killed}")
    eventually(lambda: len(running.workers() - {killed}) == 2, "no worker took its place")
    assert [running.get("/hello") for _ in range(20)] == [b"hello"] * 20


def test_worker_that_is_told_to_end_is_replaced_and_that_is_no_error(running: RunningGateway) -> None:
    ended = min(running.workers())
    os.kill(ended, signal.SIGTERM)
    line = read_until(running.process.stderr, f"pid {ended}")
    assert " INFO rgate.process: " in line and "ended with exit code 0" in line


def test_drain_reaches_every_worker_and_those_that_follow(running: RunningGateway) -> None:
    def is_drained() -> bool:
        try:
            running.get("/hello")
        except urllib.error.HTTPError as error:
            with error:
                return error.code == 503
        return False

    (backend,) = json.loads(running.get("/-/backends"))["backends"]
    assert cli.main(["drain", backend["endpoints"][0]["name"], "--url", running.url]) == 0
    assert [is_drained() for _ in range(20)] == [True] * 20
    killed = min(running.workers())
    os.kill(killed, signal.SIGKILL)
    processes: set[int] = set()

    def both_answer() -> bool:
        processes.add(json.loads(running.get("/-/live"))["process"])
        return len(processes - {killed}) == 2

    eventually(both_answer, "no worker took its place")
    eventually(lambda: all(is_drained() for _ in range(20)), "the new worker does not know what is drained")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_all_workers_and_exits_zero(running: RunningGateway, number: signal.Signals) -> None:
    workers = running.workers()
    running.process.send_signal(number)
    assert running.process.wait(PATIENCE_SECONDS) == 0
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_supervisor_that_is_killed_takes_its_workers_along(running: RunningGateway) -> None:
    workers = running.workers()
    running.process.kill()
    running.process.wait(PATIENCE_SECONDS)
    eventually(lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()], "workers live on without supervisor")


def test_port_taken_by_another_gateway_is_noticed(running: RunningGateway, tmp_path: Path) -> None:
    port = running.url.rpartition(":")[2]
    other = subprocess.run(
        [sys.executable, "rgate.py", "--port", port, "--config", str(tmp_path / "config.yml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert (other.returncode, other.stdout) == (2, "")
    assert "the port is taken" in other.stderr
