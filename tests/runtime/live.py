"""A gateway with its own processes, as an operator runs it, and a config that the test changes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..waiting import eventually

ROOT = Path(__file__).parent.parent.parent
PATIENCE_SECONDS = 60.0


class Live:
    """A running rgate. `config` is its file; `lines` are what it has said so far, on stdout and stderr."""

    def __init__(self, config: Path, *arguments: str) -> None:
        self.config = config
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "rgate.py", "--port", "0", "--config", str(config), *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)},
        )
        self._reading = threading.Thread(target=self._read, name="test-output")
        self._reading.start()
        found = re.search(r"https?://\S+", self.said("listening on"))
        assert found
        self.url = found[0]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def said(self, text: str, times: int = 1) -> str:
        """Wait until a line with `text` in it has been said so many times; the last of them."""

        def found() -> Sequence[str]:
            lines = [line for line in list(self.lines) if text in line]
            return lines if len(lines) >= times else ()

        return eventually(found, f"{text!r}, {times} times, in {self.lines}", PATIENCE_SECONDS)[-1]

    def hang_up(self) -> None:
        """SIGHUP."""
        self.process.send_signal(signal.SIGHUP)

    def reload(self) -> subprocess.CompletedProcess[str]:
        """`rgate reload`."""
        return subprocess.run(
            [sys.executable, "rgate.py", "reload", "--url", self.url],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def workers(self) -> set[int]:
        """The process numbers of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return set(map(int, children.split()))

    def end(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        try:
            return self.process.wait(PATIENCE_SECONDS)
        finally:
            self.process.kill()
            self._reading.join(PATIENCE_SECONDS)
            assert self.process.stdout is not None
            self.process.stdout.close()


@contextmanager
def live(config: Path, *arguments: str) -> Iterator[Live]:
    """A running rgate, which has to end well."""
    running = Live(config, *arguments)
    try:
        yield running
    finally:
        code = running.end()
    assert code == 0, running.lines
