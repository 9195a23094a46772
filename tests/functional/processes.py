"""Gateways as processes of their own, and clients that never rest."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

from ..raw_client import RawClient

ROOT = Path(__file__).parent.parent.parent
PATIENCE_SECONDS = 90


class Processes:
    """`python rgate.py …` and whatever takes over from it: they all write to one pipe."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], **options: Any) -> None:
        environ = {**os.environ, "PYTHONUNBUFFERED": "1", **environ}
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ, **options
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.seen: list[str] = []
        self._pids = {self.process.pid}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                if found := re.search(r"process (\d+) is starting", line):
                    self._pids.add(int(found[1]))
                self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def until(self, pattern: str) -> re.Match[str]:
        """The next line that matches."""
        deadline = monotonic() + PATIENCE_SECONDS
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, deadline - monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} in {self.seen}") from None
            assert line is not None, f"no {pattern!r} in {self.seen}, and the end"
            self.seen.append(line)
            if found := re.search(pattern, line):
                return found

    def until_both(self, one: str, other: str) -> re.Match[str]:
        """The first of the next lines that matches `one`, once both have come; several processes write, so in either order."""
        found: dict[str, re.Match[str]] = {}
        while len(found) < 2:
            line = self.until(f"{one}|{other}")[0]
            found.update({pattern: match for pattern in (one, other) if (match := re.search(pattern, line))})
        return found[one]

    def url(self) -> str:
        return self.until(r"listening on (http://\S+)")[1]

    def children(self) -> list[int]:
        """The process numbers of its workers."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def upgrade(self, pid: int) -> int:
        """Have `pid` succeeded; the process number of the next one, which serves."""
        os.kill(pid, signal.SIGUSR2)
        return int(self.until(r"process (\d+) serves now")[1])

    def end(self, pid: int) -> None:
        """Stop the one that serves, and wait until every process has let go of the pipe."""
        os.kill(pid, signal.SIGTERM)
        deadline = monotonic() + PATIENCE_SECONDS
        while (line := self.lines.get(timeout=max(0.0, deadline - monotonic()))) is not None:
            self.seen.append(line)

    def kill(self) -> None:
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)


@contextmanager
def rgate(config: Path, *launcher: str, environ: Mapping[str, str] | None = None, **options: Any) -> Iterator[Processes]:
    """A gateway on a free port, and its successors; `launcher` is a command that runs the rest of the command line."""
    command = [*launcher, sys.executable, "rgate.py", "--port", "0", "--config", str(config)]
    processes = Processes(command, environ or {}, **options)
    try:
        yield processes
    finally:
        processes.kill()


class Traffic:
    """Clients that send one request after another, half of them on connections that stay, until they are told to end."""

    def __init__(self, url: str, path: str, clients: int) -> None:
        self.answers: Counter[int] = Counter()
        self.lost: list[str] = []
        self.refused = 0
        self._url, self._path = url, path
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._clients = [threading.Thread(target=self._run, args=(number % 2 == 0,)) for number in range(clients)]

    def __enter__(self) -> Traffic:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end.set()
        for client in self._clients:
            client.join(PATIENCE_SECONDS)

    @property
    def count(self) -> int:
        return self.answers.total()

    def _run(self, stays: bool) -> None:
        client: RawClient | None = None
        while not self._end.is_set():
            try:
                client = client or RawClient(self._url)
            except ConnectionRefusedError:
                with self._lock:
                    self.refused += 1
                return
            try:
                response = client.get(self._path)
                with self._lock:
                    self.answers[response.status] += 1
                closes = response.value("Connection") == "close"
            except (OSError, AssertionError) as error:
                closes = True
                with self._lock:
                    self.lost.append(f"{'kept' if stays else 'new'} connection: {error!r}")
            if closes or not stays:
                client.close()
                client = None
        if client is not None:
            client.close()


@contextmanager
def service_manager(tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """Where gateways with this environment tell systemd something."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(PATIENCE_SECONDS)
        yield manager, {"NOTIFY_SOCKET": path}


def listening_socket() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.set_inheritable(True)
    return listener
