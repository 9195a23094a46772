"""The log on a stream. What goes wrong again and again, with every request maybe, does not flood it.

A line that may come so often says what it is about, in the way of logging itself:

    _log.warning("%s: %s", exchange.id, fault, extra={"about": (endpoint.name, fault.reason)})

The first is written at once, with its traceback. Others of the same logger, level, format and `about` are counted for ten
seconds, and of these only the last one's message is written, without a traceback:

    … 6f0c2a11-4d2: response_timeout: no response in time (1,234 more times in the last 10 s)

So it goes on, until ten seconds are over without one; the next is a first one again. What differs in `about` is never counted
together, so it has to have whatever tells one failure from another, and nothing that a client may choose.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from time import monotonic
from typing import Final, TextIO, TypeAlias

__all__ = ["LogHandler", "about"]

QUIET_SECONDS: Final = 10.0
MOST_KNOWN: Final = 1_000

_Key: TypeAlias = tuple[str, int, object, Hashable]


def about(error: BaseException) -> tuple[str, tuple[tuple[str, int], ...]]:
    """What a line about this exception is about: its type, and the files and lines by which it has come, the innermost ten."""
    kind = type(error)
    lines: deque[tuple[str, int]] = deque(maxlen=10)
    traceback = error.__traceback__
    while traceback is not None:
        lines.append((traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    return f"{kind.__module__}.{kind.__qualname__}", tuple(lines)


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes records to `stream`, those with an `about` as the module says: in full at most once every `seconds` each.

    At most a thousand are known at a time; over that the longest known is told of and forgotten. close(), which logging
    calls at the end of the process, writes what is still counted. `clock` and `later`, which has a function called in so
    many seconds, are there for tests.
    """

    def __init__(
        self,
        stream: TextIO,
        seconds: float = QUIET_SECONDS,
        clock: Callable[[], float] = monotonic,
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        super().__init__(stream)
        self._seconds = seconds
        self._clock = clock
        self._later = later or _by_timer
        self._known: dict[_Key, _Repeated] = {}
        self._waiting = False  # `later` has been asked
        self._process = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or count it. logging holds the handler's lock meanwhile."""
        what: Hashable = getattr(record, "about", None)
        if what is None:
            super().emit(record)
            return
        try:
            if self._is_first(record, (record.name, record.levelno, record.msg, what)):
                super().emit(record)
        except Exception:
            self.handleError(record)

    def settle(self) -> None:
        """Write what is still counted."""
        with self._locked():
            for key in list(self._known):
                self._forget(key)

    def close(self) -> None:
        """Write what is still counted, and close."""
        self.settle()
        super().close()

    def _is_first(self, record: logging.LogRecord, key: _Key) -> bool:
        now = self._clock()
        if self._process != os.getpid():  # a fork has neither the thread that would tell, nor these failures
            self._process, self._waiting = os.getpid(), False
            self._known.clear()
        if key in self._known:
            self._settle(key, now)
        repeated = self._known.get(key)
        if repeated is None:
            if len(self._known) >= MOST_KNOWN:
                self._forget(next(iter(self._known)))
            self._known[key] = _Repeated(now)
            return True
        repeated.count += 1
        repeated.message = record.getMessage()
        repeated.fields = getattr(record, "fields", None)
        self._wait(now)
        return False

    def _wait(self, now: float) -> None:
        """Have _settle_all called when the first time is over."""
        if not self._waiting and any(repeated.count for repeated in self._known.values()):
            with contextlib.suppress(RuntimeError):  # there is no thread to be had; the next record will do it
                until = min(repeated.since for repeated in self._known.values()) + self._seconds
                self._later(max(0.0, until - now), self._settle_all)
                self._waiting = True

    def _settle_all(self) -> None:
        with self._locked():
            self._waiting = False
            now = self._clock()
            for key in list(self._known):
                self._settle(key, now)
            self._wait(now)

    def _settle(self, key: _Key, now: float) -> None:
        """When its time is over, tell how often it has come meanwhile; forget it if it has not."""
        repeated = self._known[key]
        if now - repeated.since < self._seconds:
            return
        if not repeated.count:
            del self._known[key]
            return
        self._tell(key, repeated, now)
        repeated.since, repeated.count = now, 0

    def _forget(self, key: _Key) -> None:
        repeated = self._known.pop(key)
        if repeated.count:
            self._tell(key, repeated, self._clock())

    def _tell(self, key: _Key, repeated: _Repeated, now: float) -> None:
        times = (
            f"{repeated.count:,} more time{'s' if repeated.count > 1 else ''} in the last {max(1, round(now - repeated.since))} s"
        )
        record = logging.LogRecord(key[0], key[1], "", 0, f"{repeated.message} ({times})", None, None)
        record.fields = {**(repeated.fields or {}), "more": repeated.count}
        super().emit(record)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


class _Repeated:
    """`count` records have come after what was written at `since`, the last of them with this message."""

    __slots__ = ("count", "fields", "message", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.count = 0
        self.message = ""
        self.fields: dict[str, object] | None = None


def _by_timer(seconds: float, act: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, act)
    timer.name, timer.daemon = "rgate-log", True
    timer.start()
