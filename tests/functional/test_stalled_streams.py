"""A gateway whose stdout or stderr is not read, full or closed: requests, reload and the end go on as if it were read."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.processes import ROOT, run_rgate
from ..support.raw_client import RawClient
from ..support.waiting import PROCESS_DEADLINE_SECONDS, eventually

CONFIG = """
server: {{port: 0, workers: {workers}, drain_seconds: 5}}
log: {{level: {level}}}
routes: [{{path_prefix: /a, backend: a}}, {{path_prefix: /bad, backend: b}}{more}]
backends:
  - {{name: a, endpoints: ["{good}"]}}
  - {{name: b, endpoints: ["{bad}"]}}
plugins:
  disable: [docker]
  admin: {{address: "unix:{socket}"}}
"""


def garbage(connection: ScriptedConnection) -> None:
    while connection.read_request():
        connection.send(b"no HTTP at all\r\n\r\n")
        return


class Gateway:
    """`python rgate.py` with these streams, and a backend that answers with garbage beside a good one."""

    def __init__(self, folder: Path, workers: int, streams: dict[str, Any], *arguments: str) -> None:
        self.folder, self.workers = folder, workers
        self.good = ScriptedBackend(http_response(b"good")).__enter__()
        self.bad = ScriptedBackend(garbage).__enter__()
        self.write()
        command = [sys.executable, str(ROOT / "rgate.py"), *arguments]
        self.process = subprocess.Popen(command, cwd=folder, **streams)

    def write(self, more: str = "", level: str = "info") -> None:
        text = CONFIG.format(
            workers=self.workers,
            level=level,
            more=more,
            good=self.good.url,
            bad=self.bad.url,
            socket=self.folder / "admin.sock",
        )
        (self.folder / "new").write_text(text)
        (self.folder / "new").replace(self.folder / "config.yml")

    def port(self) -> int:
        """Where it listens: the table of sockets knows, as its own line may have gone nowhere."""

        def listening() -> int:
            assert self.process.poll() is None, f"it has ended with {self.process.returncode}"
            inodes = set()
            for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
                with suppress(OSError):
                    inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    return int(fields[1].rpartition(":")[2], 16)
            return 0

        return eventually(listening, "it listens", PROCESS_DEADLINE_SECONDS)

    def reload(self) -> subprocess.CompletedProcess[str]:
        return run_rgate("reload", "--url", f"unix:{self.folder / 'admin.sock'}")

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PROCESS_DEADLINE_SECONDS)


@contextmanager
def gateway(folder: Path, workers: int, streams: dict[str, Any], *arguments: str) -> Iterator[Gateway]:
    running = Gateway(folder, workers, streams, *arguments)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        running.good.__exit__(None, None, None)
        running.bad.__exit__(None, None, None)


def fill(writing: int) -> None:
    """Fill a pipe to the last byte, without changing the mode in which others write to it."""
    own = os.open(f"/proc/self/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK)
    for size in (4_096, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(own, b"x" * size)
    os.close(own)


@contextmanager
def full_pipe() -> Iterator[tuple[int, Callable[[], object]]]:
    receiver, sender = os.pipe()  # the receiver stays open, and nobody reads
    yield sender, lambda: fill(sender)
    os.close(sender)
    os.close(receiver)


@contextmanager
def closed_pipe() -> Iterator[tuple[int, Callable[[], object]]]:
    receiver, sender = os.pipe()
    os.close(receiver)
    yield sender, lambda: None
    os.close(sender)


@contextmanager
def full_disk() -> Iterator[tuple[int, Callable[[], object]]]:
    with open("/dev/full", "wb", buffering=0) as device:
        yield device.fileno(), lambda: None


@pytest.mark.parametrize(
    ("make", "which", "workers"),
    [
        (full_pipe, "stdout", 1),
        (full_pipe, "stderr", 2),
        (full_pipe, "both", 1),
        (full_disk, "both", 1),
        (full_disk, "both", 2),
        (closed_pipe, "both", 1),
        (closed_pipe, "both", 2),
    ],
)
def test_stream_that_takes_nothing_holds_up_nothing(
    make: Callable[[], AbstractContextManager[tuple[int, Callable[[], object]]]], which: str, workers: int, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        stream, stall = stack.enter_context(make())
        names = ("stdout", "stderr") if which == "both" else (which,)
        streams = {name: stream if name in names else subprocess.DEVNULL for name in ("stdout", "stderr")}
        running = stack.enter_context(gateway(tmp_path, workers, streams))
        client = stack.enter_context(RawClient(f"http://127.0.0.1:{running.port()}"))
        assert client.get("/a").status == 200
        stall()
        # Each has something to tell: of every fault, and of the endpoint that is ejected after five of them.
        assert {client.get("/bad").status for _ in range(12)} <= {502, 503}
        assert client.get("/a").status == 200
        running.write(more=", {path_prefix: /new, backend: a}")
        done = running.reload()
        assert (done.returncode, done.stdout) == (0, "reloaded\n"), done.stderr
        assert client.get("/new").status == 200
        assert running.end() == 0


def test_stream_that_is_read_again_tells_what_was_lost(tmp_path: Path) -> None:
    receiver, sender = os.pipe()
    with (
        gateway(tmp_path, 1, {"stdout": subprocess.DEVNULL, "stderr": sender}) as running,
        RawClient(f"http://127.0.0.1:{running.port()}") as client,
    ):
        os.close(sender)
        assert client.get("/nowhere/first").status == 404
        line = b""
        with open(receiver, "rb") as lines:
            while b"/nowhere/first" not in line:
                line = lines.readline()
            for _ in range(1_500):  # more than pipe and queue take
                assert client.get("/nowhere/" + "x" * 2_000).status == 404
            assert client.get("/a").status == 200
            while not (found := re.search(rb"WARNING rgate\.log: ([\d,]+) lines were lost: stderr", line)):
                line = lines.readline()
        assert int(found[1].replace(b",", b"")) > 500


def test_log_in_json_has_nothing_else_in_it(tmp_path: Path) -> None:
    with (
        gateway(tmp_path, 2, {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}, "--log-format", "json") as running,
        RawClient(f"http://127.0.0.1:{running.port()}") as client,
    ):
        client.send(b"GET /nowhere?token=secret HTTP/1.1\r\nHost: shop.example\r\n\r\n")
        failed = json.loads(client.response().body)
        assert running.end() == 0
        out, err = running.process.communicate()
    assert out == b""
    records = [json.loads(line) for line in err.splitlines()]
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)
    listening = next(record for record in records if "listening on" in record["message"])
    assert listening["url"].startswith("http://127.0.0.1:")
    (told,) = [record for record in records if record.get("request_id") == failed["request_id"]]
    assert (told["level"], told["host"], told["target"], told["reason"]) == (
        "info",
        "shop.example",
        "/nowhere?token=***",
        "no_route",
    )
    assert records[-1]["message"] == "stopped"


def test_config_that_cannot_be_used_is_told_in_json_too(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("routes: 1\n")
    ended = run_rgate("--log-format", "json", cwd=tmp_path)
    assert ended.returncode == 2
    assert json.loads(ended.stderr)["message"].startswith("config.yml:1: routes: ")


def test_level_is_taken_up_with_a_reload(tmp_path: Path) -> None:
    with (
        gateway(tmp_path, 1, {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}) as running,
        RawClient(f"http://127.0.0.1:{running.port()}") as client,
    ):
        assert client.get("/nowhere/1").status == 404
        running.write(level="error")
        assert running.reload().returncode == 0
        assert client.get("/nowhere/2").status == 404
        running.write(level="info")
        assert running.reload().returncode == 0
        assert client.get("/nowhere/3").status == 404
        assert running.end() == 0
        _, err = running.process.communicate()
    assert re.findall(rb"/nowhere/(\d)", err) == [b"1", b"3"]
