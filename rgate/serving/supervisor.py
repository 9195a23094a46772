"""Worker processes: as many as cores, one port, each replaced when it ends unasked.

The supervisor makes everything that must outlive a worker (the listening sockets) and everything that can be shared
(imports, the config, the composed gateway), then forks. Each worker has a listening socket of its own on the same port
(SO_REUSEPORT), which spreads connections evenly; the supervisor keeps them open, so what waits in the queue of a worker
that died is served by the one that takes its place.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Supervisor"]

# A worker that ends within this time of its start is started again ever more slowly.
SETTLED_SECONDS: Final = 10.0
BACKOFF_SECONDS: Final = 0.5
BACKOFF_LIMIT_SECONDS: Final = 10.0
KILL_AFTER_SECONDS: Final = 5.0  # beyond the drain
_log = logging.getLogger("rgate.supervisor")

WorkerMain = Callable[[int, bool, socket.socket, socket.socket], int]


@dataclass
class _Worker:
    """One place for a worker: its listening socket stays, the process in it may change."""

    index: int
    listener: socket.socket
    pid: int = 0
    channel: socket.socket | None = None
    unread: bytes = b""
    started: float = 0.0
    starts: int = 0
    failures: int = 0
    start_at: float = 0.0


@dataclass
class _Question:
    """Something a worker has asked its siblings."""

    asker: _Worker
    number: str
    unanswered: set[int] = field(default_factory=set)


class Supervisor:
    """Runs `main(index, first_time, listener, channel)` in one forked process for each listener, and keeps them running.

    run() returns the exit code once stop() has been called, from another thread, and all workers have ended; kill() ends
    them at once. Before any thread is started in this process, call run() from the main thread: it forks.
    """

    def __init__(self, main: WorkerMain, listeners: Sequence[socket.socket], drain_seconds: float) -> None:
        self._main = main
        self._workers = [_Worker(index, listener) for index, listener in enumerate(listeners)]
        self._drain_seconds = drain_seconds
        self._selector = selectors.DefaultSelector()
        self._questions: dict[str, _Question] = {}
        self._asked = 0
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._signals = 0
        self._kill_at = 0.0

    def run(self) -> int:
        """Supervise until a signal ends it. SIGTERM and SIGINT drain; a second one ends the workers at once."""
        self._selector.register(self._wake_receiver, selectors.EVENT_READ)
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)}
        wakeup = signal.set_wakeup_fd(self._wake_sender.fileno(), warn_on_full_buffer=False)
        gc.collect()
        gc.freeze()  # what is shared stays shared: the collector would write into every page
        code = 0
        try:
            while True:
                stopping = self._signals > 0
                if not stopping:
                    for worker in self._workers:
                        if not worker.pid and time.monotonic() >= worker.start_at:
                            self._start(worker)
                self._wait()
                code = self._reap() or code
                if self._signals and not stopping:
                    self._begin_stop()
                if self._signals and not any(worker.pid for worker in self._workers):
                    return code
                if self._signals > 1 or (self._kill_at and time.monotonic() > self._kill_at):
                    self._signal_all(signal.SIGKILL)
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            self._wake_receiver.close()
            self._wake_sender.close()

    def _note(self, number: int, frame: object) -> None:
        # Only count here: a signal handler must not take locks. The wake-up socket ends the wait.
        if number != signal.SIGCHLD:
            self._signals += 1

    def _start(self, worker: _Worker) -> None:
        worker.starts += 1
        first = worker.starts == 1
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._become(worker, first, ours, theirs)
        theirs.close()
        worker.pid, worker.channel, worker.unread, worker.started = pid, ours, b"", time.monotonic()
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _become(self, worker: _Worker, first: bool, ours: socket.socket, theirs: socket.socket) -> None:
        """The child: forget what is the supervisor's, do the work, and never return."""
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor passes it on
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            ours.close()
            self._selector.close()
            for other in self._workers:
                if other is not worker:
                    other.listener.close()
                    if other.channel is not None:
                        other.channel.close()
            code = self._main(worker.index, first, worker.listener, theirs)
        except BaseException:
            _log.exception("worker %d failed", worker.index)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _wait(self) -> None:
        waits = [worker.start_at for worker in self._workers if not worker.pid] if not self._signals else []
        waits += [self._kill_at] if self._kill_at else []
        timeout = max(0.0, min(waits) - time.monotonic()) if waits else None
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._wake_receiver.recv(1_024)
            else:
                self._read(key.data)

    def _read(self, worker: _Worker) -> None:
        assert worker.channel is not None
        try:
            block = worker.channel.recv(4_096)
        except OSError:
            block = b""
        if not block:
            self._forget(worker)
            return
        *lines, worker.unread = (worker.unread + block).split(b"\n")
        for line in lines:
            match line.decode("ascii", "replace").split():
                case ["ask", number, *question]:
                    self._ask_others(worker, number, " ".join(question))
                case ["done", number]:
                    self._answered(number, worker.index)

    def _ask_others(self, asker: _Worker, number: str, asked: str) -> None:
        self._asked += 1
        own = str(self._asked)
        question = self._questions[own] = _Question(asker, number)
        for other in self._workers:
            if other is not asker and other.channel is not None and self._send(other, f"ask {own} {asked}"):
                question.unanswered.add(other.index)
        self._answered(own, -1)

    def _answered(self, number: str, index: int) -> None:
        question = self._questions.get(number)
        if question is None:
            return
        question.unanswered.discard(index)
        if not question.unanswered:
            del self._questions[number]
            self._send(question.asker, f"done {question.number}")

    def _send(self, worker: _Worker, line: str) -> bool:
        try:
            assert worker.channel is not None
            worker.channel.sendall(line.encode() + b"\n")
        except (OSError, AssertionError):
            return False
        return True

    def _forget(self, worker: _Worker) -> None:
        """Its channel is gone; what others wait for from it will not come."""
        if worker.channel is not None:
            self._selector.unregister(worker.channel)
            worker.channel.close()
            worker.channel = None
        for number in list(self._questions):
            self._answered(number, worker.index)

    def _reap(self) -> int:
        """Take note of workers that have ended; the exit code of one that cannot start at all."""
        code = 0
        for worker in self._workers:
            if not worker.pid:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if not pid:
                continue
            self._forget(worker)
            worker.pid = 0
            if self._signals:
                continue
            how = os.waitstatus_to_exitcode(status)
            if how == 2 and worker.starts == 1:  # it has said why, and would not get further the next time
                self._signals = max(self._signals, 1)
                self._begin_stop()
                code = 2
                continue
            lasted = time.monotonic() - worker.started
            worker.failures = 0 if lasted > SETTLED_SECONDS else worker.failures + 1
            pause = min(BACKOFF_LIMIT_SECONDS, BACKOFF_SECONDS * 2.0 ** (worker.failures - 2)) if worker.failures > 1 else 0.0
            worker.start_at = time.monotonic() + pause
            said = f"signal {signal.Signals(-how).name}" if how < 0 else f"exit code {how}"
            when = f"in {pause:g} s" if pause else "now"
            _log.error("worker %d (pid %d) ended with %s; another takes its place %s", worker.index, pid, said, when)
        return code

    def _begin_stop(self) -> None:
        self._signal_all(signal.SIGTERM)
        self._kill_at = time.monotonic() + self._drain_seconds + KILL_AFTER_SECONDS

    def _signal_all(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, number)
