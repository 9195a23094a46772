"""StreamWriter: a stream that a thread of its own writes, so that whoever writes never waits for the stream's reader.

A pipe whose reader has stopped, a terminal held by Ctrl-S, a full disk or a log driver that hangs holds up that thread and
nobody else. Lines wait in memory, up to a bound; over it they are lost, and counted.
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

MAX_BYTES: Final = 1_048_576  # that wait; one alone may be larger
MAX_ENTRIES: Final = 10_000
BATCH_ENTRIES: Final = 500
FLUSH_SECONDS: Final = 0.1  # how long what may wait does wait
IDLE_SECONDS: Final = 1.0  # before the thread ends
RETRY_SECONDS: Final = 0.5  # after a failure
FORK_SECONDS: Final = 0.2

Sink: TypeAlias = "Callable[[memoryview], int]"
_Entry: TypeAlias = "bytes | Callable[[], str]"
_log = logging.getLogger("rgate.log")


class StreamWriter:
    """Writes lines to a stream without delaying its callers. Every method may be called from any thread.

    `sink` writes a block and returns how many bytes it took, as os.write does; it may block and it may raise OSError or
    ValueError. Then it is tried again every half second, and what is to be written waits: at most 1 MiB and 10,000 entries,
    counting what the thread has in hand. `name` is what the stream is called in the log. Once the stream takes lines again the
    log says how many are lost.

    The thread is started by the first line and ends after a second without any, so that a process that forks has none as a
    rule. A forked process begins with an empty queue.
    """

    def __init__(self, sink: Sink, name: str) -> None:
        self.name = name
        self._sink = sink
        self._begin()
        with _registry:
            _writers.add(self)

    @classmethod
    def of_descriptor(cls, descriptor: int, name: str) -> StreamWriter:
        """A writer for a file descriptor, which stays open and in the mode that it has: other processes share it."""
        return cls(partial(os.write, descriptor), name)

    @classmethod
    def of(cls, stream: TextIO) -> StreamWriter:
        """The writer of sys.stdout or sys.stderr where rgate serves by itself; else one for any text stream, whose write() it
        calls."""
        found = getattr(getattr(stream, "buffer", None), "writer", None)
        if isinstance(found, StreamWriter):
            return found

        def sink(data: memoryview) -> int:
            stream.write(bytes(data).decode("utf-8", "replace"))
            stream.flush()
            return len(data)

        return cls(sink, str(getattr(stream, "name", "a stream")).strip("<>"))

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[tuple[int, _Entry]] = deque()
        self._bytes = self._entries = self._lost = 0
        self._thread: threading.Thread | None = None
        self._idle = self._urgent = self._ending = False
        self._failure = ""

    def write(self, data: bytes) -> None:
        """Have `data`, one or more whole lines, written at once."""
        self._append(len(data), data, urgent=True)

    def defer(self, size: int, line: Callable[[], str]) -> None:
        """Have the line that `line()` returns written within a tenth of a second; the thread of the writer calls it.

        For what comes with every request. `size` is about how many bytes of memory it holds until then.
        """
        self._append(size, line, urgent=False)

    def flush(self, seconds: float) -> bool:
        """Wait until all is written, for `seconds` at most, and end the thread. False when something is left.

        A stream that fails is not waited for: what it does not take at once is lost.
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
    def trouble(self) -> str:
        """Why lines are being lost at present, or ""."""
        with self._changed:
            return (self._failure or "nobody reads it, or too slowly") if self._lost else ""

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
        with contextlib.suppress(RuntimeError):  # there is no thread to be had; the next line tries again
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        while batch := self._next_batch():
            lines = [self._rendered(entry) for _, entry in batch]
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
                many = f"{lost:,} line is" if lost == 1 else f"{lost:,} lines are"
                _log.warning("%s lost: %s was not read, or not fast enough", many, self.name, extra={"about": self.name})

    def _next_batch(self) -> list[tuple[int, _Entry]]:
        """What is to be written next; empty when the thread is to end."""
        with self._changed:
            self._idle = True
            self._changed.wait_for(lambda: self._queue or self._ending, IDLE_SECONDS)
            self._idle = False
            if not self._queue:
                self._thread = None
                self._changed.notify_all()
                return []
            if len(self._queue) < BATCH_ENTRIES:
                self._changed.wait_for(lambda: self._urgent or self._ending, FLUSH_SECONDS)
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_ENTRIES))]
            self._urgent = bool(self._queue)
            return batch

    def _rendered(self, entry: _Entry) -> bytes:
        if isinstance(entry, bytes):
            return entry
        try:
            return f"{entry()}\n".encode("utf-8", "backslashreplace")
        except Exception:
            _log.exception("a line for %s cannot be made", self.name, extra={"about": self.name})
            return b""

    def _write_all(self, data: memoryview) -> bool:
        """Write all of it, however long that takes; false when the stream fails and the writer is to end."""
        while data:
            try:
                data = data[self._sink(data) :]
            except BlockingIOError:  # another process that has the same stream has made it so
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
_held: list[StreamWriter] = []


def _before_fork() -> None:
    """Have no thread, if that can be, and nobody within a writer."""
    _registry.acquire()
    _held[:] = _writers
    for writer in _held:
        writer.flush(FORK_SECONDS)
        writer._changed.acquire()


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop()._changed.release()
    _registry.release()


def _after_fork_in_child() -> None:
    while _held:
        _held.pop()._begin()
    _registry.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
