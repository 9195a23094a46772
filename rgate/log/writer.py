"""StreamWriter: writes a stream in a thread of its own, so that callers never wait for the reader of the stream.

A pipe whose reader has stopped, a terminal held by Ctrl-S, a full disk or a hung log driver blocks only that thread. Lines wait
in memory up to a limit; beyond it they are lost, and counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Final, TextIO, TypeAlias

__all__ = ["StreamWriter"]

MAX_BYTES: Final = 1_048_576  # of queued entries; a single one may be larger
MAX_ENTRIES: Final = 10_000
BATCH_ENTRIES: Final = 500
BATCH_SECONDS: Final = 0.1  # how long deferred lines wait for others
IDLE_SECONDS: Final = 1.0  # then the thread ends
RETRY_SECONDS: Final = 0.5  # after a failure
FORK_SECONDS: Final = 0.2

Sink: TypeAlias = "Callable[[memoryview], int]"
_Entry: TypeAlias = "bytes | Callable[[], str]"
_log = logging.getLogger("rgate.log")


class StreamWriter:
    """Writes lines to a stream without delaying its callers. Every method may be called from any thread.

    `sink` writes a block and returns the number of bytes it took, as os.write does. It may block, and it may raise OSError or
    ValueError; then it is called again every half second. Until a write succeeds at most 1 MiB and 10,000 entries wait, including
    those the thread is writing. `name` is the name of the stream in the log. When the stream works again, the log says how many
    lines were lost.

    The thread `rgate-log-NAME` is started by the first line and ends after a second without lines, so a process that forks
    usually has none. A forked process starts with an empty queue. One condition (`_changed`) protects all state.
    """

    def __init__(self, sink: Sink, name: str) -> None:
        self.name = name
        self._sink = sink
        self._reset()
        with _registry:
            _writers.add(self)

    @classmethod
    def of_descriptor(cls, descriptor: int, name: str) -> StreamWriter:
        """A writer for a file descriptor. It is neither closed nor made non-blocking, because other processes share it."""
        return cls(partial(os.write, descriptor), name)

    @classmethod
    def of(cls, stream: TextIO) -> StreamWriter:
        """The writer behind `stream` if it is sys.stdout or sys.stderr of a serving rgate; otherwise a new one, which calls
        write() and flush() of this text stream."""
        found = getattr(getattr(stream, "buffer", None), "writer", None)
        if isinstance(found, StreamWriter):
            return found

        def sink(data: memoryview) -> int:
            stream.write(bytes(data).decode("utf-8", "replace"))
            stream.flush()
            return len(data)

        return cls(sink, str(getattr(stream, "name", "a stream")).strip("<>"))

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[tuple[int, _Entry]] = deque()
        self._bytes = self._entries = self._lost = 0
        self._thread: threading.Thread | None = None
        self._idle = self._urgent = self._ending = False
        self._failure = ""

    def write(self, data: bytes) -> None:
        """Write `data`, one or more whole lines, as soon as possible."""
        self._append(len(data), data, urgent=True)

    def defer(self, size: int, line: Callable[[], str]) -> None:
        """Write the line that `line()` returns, within BATCH_SECONDS. The writer's thread calls it.

        For lines that every request writes. `size` is roughly the memory in bytes that `line` holds until then.
        """
        self._append(size, line, urgent=False)

    def flush(self, seconds: float) -> bool:
        """Wait until everything is written, for at most `seconds`, and end the thread. False if something is left.

        A failing stream is tried once more and not waited for; what it does not accept is lost.
        """
        until = monotonic() + seconds
        with self._changed:
            self._ending = True
            if self._queue and self._thread is None:
                self._start()
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: self._thread is None, max(0.0, until - monotonic()))
            self._ending = False
            return done and not self._entries

    @property
    def loss_reason(self) -> str:
        """Why lines are currently being lost; "" while none are."""
        with self._changed:
            return (self._failure or "it is not read, or too slowly") if self._lost else ""

    def _append(self, size: int, entry: _Entry, urgent: bool) -> None:
        with self._changed:
            if self._entries and (self._bytes + size > MAX_BYTES or self._entries >= MAX_ENTRIES):
                self._lost += _lines(entry)
                return
            self._queue.append((size, entry))
            self._bytes += size
            self._entries += 1
            if self._thread is None:
                self._urgent = urgent
                self._start()
            elif self._idle or (urgent and not self._urgent):
                self._urgent = self._urgent or urgent
                self._changed.notify_all()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=f"rgate-log-{self.name}", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread can be started; the next line tries again
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        while batch := self._next_batch():
            lines = [self._render(entry) for _, entry in batch]
            written = self._write_all(memoryview(b"".join(lines)))
            with self._changed:
                self._bytes -= sum(size for size, _ in batch)
                self._entries -= len(batch)
                lost = 0
                if written:
                    lost, self._lost, self._failure = self._lost, 0, ""
                else:
                    self._lost += sum(map(_lines, lines))
            if lost:
                many = f"{lost:,} line was" if lost == 1 else f"{lost:,} lines were"
                _log.warning("%s lost: %s was not read, or not fast enough", many, self.name, extra={"dedup_key": self.name})

    def _next_batch(self) -> list[tuple[int, _Entry]]:
        """The entries to write next; empty if the thread should end."""
        with self._changed:
            self._idle = True
            self._changed.wait_for(lambda: self._queue or self._ending, IDLE_SECONDS)
            self._idle = False
            if not self._queue:
                self._thread = None
                self._changed.notify_all()
                return []
            if len(self._queue) < BATCH_ENTRIES:
                self._changed.wait_for(lambda: self._urgent or self._ending, BATCH_SECONDS)
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_ENTRIES))]
            self._urgent = bool(self._queue)
            return batch

    def _render(self, entry: _Entry) -> bytes:
        if isinstance(entry, bytes):
            return entry
        try:
            return f"{entry()}\n".encode("utf-8", "backslashreplace")
        except Exception:
            _log.exception("formatting a line for %s failed", self.name, extra={"dedup_key": self.name})
            return b""

    def _write_all(self, data: memoryview) -> bool:
        """Write all of it, however long that takes. False if the stream fails while flush() waits."""
        while data:
            try:
                data = data[self._sink(data) :]
            except BlockingIOError:  # another process that shares the stream has made it non-blocking
                _wait_until_writable(self._sink)
            except (OSError, ValueError) as error:  # ValueError: it is closed
                with self._changed:
                    self._failure = str(error)
                    if self._changed.wait_for(lambda: self._ending, RETRY_SECONDS):
                        return False
        return True


def _lines(entry: _Entry) -> int:
    return max(1, entry.count(b"\n")) if isinstance(entry, bytes) else 1


def _wait_until_writable(sink: Sink) -> None:
    poll = select.poll()
    for descriptor in getattr(sink, "args", ()):
        poll.register(descriptor, select.POLLOUT)
    poll.poll(1_000)


_registry = threading.Lock()
_writers: weakref.WeakSet[StreamWriter] = weakref.WeakSet()
_locked_writers: list[StreamWriter] = []


def _before_fork() -> None:
    """End the threads of all writers if possible, and hold their locks, so that no writer is in use while the process forks."""
    _registry.acquire()
    _locked_writers[:] = _writers
    for writer in _locked_writers:
        writer.flush(FORK_SECONDS)
        writer._changed.acquire()


def _after_fork_in_parent() -> None:
    while _locked_writers:
        _locked_writers.pop()._changed.release()
    _registry.release()


def _after_fork_in_child() -> None:
    while _locked_writers:
        _locked_writers.pop()._reset()
    _registry.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
