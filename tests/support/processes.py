"""Gateways and other servers as child processes, and clients that send requests to them all the time."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import IO, Any

from .raw_client import RawClient
from .waiting import PROCESS_DEADLINE_SECONDS, eventually

ROOT = Path(__file__).parents[2]


class Output:
    """The lines of one stream of a process, and of the processes that inherit it. A thread reads them as they come."""

    def __init__(self, stream: IO[str]) -> None:
        self.lines: list[str] = []
        """All lines so far."""
        self._next = 0
        self._ended = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(stream,), name="test-output", daemon=True)
        self._thread.start()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def until(self, pattern: str) -> re.Match[str]:
        """The next line that matches. The call after it begins with the line behind."""
        deadline = monotonic() + PROCESS_DEADLINE_SECONDS
        with self._news:
            while True:
                while self._next < len(self.lines):
                    self._next += 1
                    if found := re.search(pattern, self.lines[self._next - 1]):
                        return found
                assert not self._ended, f"no {pattern!r} in {self.lines}, and the end"
                assert self._news.wait(deadline - monotonic()), f"no {pattern!r} in {self.lines}"

    def until_both(self, one: str, other: str) -> re.Match[str]:
        """The first of the next lines that matches `one`, once both have come; several processes write, so in either order."""
        found: dict[str, re.Match[str]] = {}
        while len(found) < 2:
            line = self.until(f"{one}|{other}")[0]
            found.update({pattern: match for pattern in (one, other) if (match := re.search(pattern, line))})
        return found[one]

    def containing(self, text: str, times: int = 1) -> str:
        """Wait until `times` lines, counted from the first, have `text` in them; the last of these."""

        def found() -> Sequence[str]:
            lines = [line for line in list(self.lines) if text in line]
            return lines if len(lines) >= times else ()

        return eventually(found, f"{text!r}, {times} times, in {self.lines}", PROCESS_DEADLINE_SECONDS)[-1]

    def unread(self) -> list[str]:
        """The lines that until() has not come to, at the end of the stream."""
        self.wait_for_end()
        return self.lines[self._next :]

    def wait_for_end(self) -> None:
        """Wait until every process has closed the stream."""
        self._thread.join(PROCESS_DEADLINE_SECONDS)
        assert self._ended, f"still open after {PROCESS_DEADLINE_SECONDS:g} s: {self.lines}"


class ChildProcess:
    """A child process, and the lines it writes. As a context manager it is killed at the end, if it has not ended by itself.

    `output` is stdout, and stderr with it; with `apart=True` stderr is `errors`. `options` are those of Popen.
    """

    def __init__(
        self, *command: str, environ: Mapping[str, str] | None = None, cwd: Path = ROOT, apart: bool = False, **options: Any
    ) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environ or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if apart else subprocess.STDOUT,
            text=True,
            **options,
        )
        assert self.process.stdout is not None
        self.output = Output(self.process.stdout)
        self.errors = Output(self.process.stderr) if self.process.stderr else self.output

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End it at once, and read what it has written."""
        self.process.kill()
        self.wait()
        self.output.wait_for_end()
        self.errors.wait_for_end()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end of the process; the exit code."""
        return self.process.wait(PROCESS_DEADLINE_SECONDS)


class GatewayProcess(ChildProcess):
    """`python rgate.py …` as a child process, on a free port, and the processes that take over from it.

    `launcher` is a command that runs the rest of its command line. Without a config the command line is `arguments` alone.
    """

    def __init__(self, config: Path | None, *arguments: str, launcher: Sequence[str] = (), **options: Any) -> None:
        self.config = config
        named = ["--port", "0", "--config", str(config)] if config else []
        super().__init__(*launcher, sys.executable, str(ROOT / "rgate.py"), *arguments, *named, **options)

    def __enter__(self) -> GatewayProcess:
        return self

    @cached_property
    def url(self) -> str:
        """Where it listens. Waits for the line that says so."""
        return self.output.until(r"listening on (https?://[^\s;,]+)")[1]

    def workers(self) -> set[int]:
        """The process ids of its workers."""
        pid = self.process.pid
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def hang_up(self) -> None:
        """Send SIGHUP."""
        self.process.send_signal(signal.SIGHUP)

    def reload(self) -> subprocess.CompletedProcess[str]:
        """Run `rgate reload`."""
        return run_rgate("reload", "--url", self.url)

    def upgrade(self, pid: int) -> int:
        """Start a successor of process `pid`; the process id of the successor, once it serves."""
        os.kill(pid, signal.SIGUSR2)
        return int(self.output.until(r"process (\d+) serves now")[1])

    def stop_all(self, pid: int) -> None:
        """Stop process `pid`, the one that serves, and wait for the end of every process of this gateway."""
        os.kill(pid, signal.SIGTERM)
        self.output.wait_for_end()

    def kill(self) -> None:
        """End it and all successors at once, and read what they have written."""
        for line in list(self.output.lines):
            if found := re.search(r"process (\d+) is starting", line):
                with suppress(ProcessLookupError):
                    os.kill(int(found[1]), signal.SIGKILL)
        super().kill()


def run_rgate(
    *arguments: str, environ: Mapping[str, str] | None = None, cwd: Path = ROOT, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a command of rgate to its end. With `check` it has to succeed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "rgate.py"), *arguments],
        cwd=cwd,
        env={**os.environ, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=PROCESS_DEADLINE_SECONDS,
    )
    assert not check or done.returncode == 0, f"rgate {' '.join(arguments)} ended with {done.returncode}: {done.stderr}"
    return done


class Traffic:
    """Clients that send one request after another until the end of the block, half of them on persistent connections."""

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
            client.join(PROCESS_DEADLINE_SECONDS)

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
    """The socket at which a gateway with this environment notifies systemd."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(PROCESS_DEADLINE_SECONDS)
        yield manager, {"NOTIFY_SOCKET": path}


def listening_socket() -> socket.socket:
    """A listening socket on a free port, which child processes inherit."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.set_inheritable(True)
    return listener
