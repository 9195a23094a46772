"""A log handler that deduplicates, so that a failure which repeats, perhaps with every request, does not flood the log.

A line that can repeat this often has a `dedup_key`, passed in the way of logging itself:

    _log.warning("%s: %s", exchange.id, fault, extra={"dedup_key": (endpoint.name, fault.reason)})

The first record is written immediately, with its traceback. Records with the same logger, level, format string and
`dedup_key` are then counted for ten seconds. After that one line is written, with the message of the last record and without
a traceback:

    … 6f0c2a11-4d2: response_timeout: no response in time (1,234 more times in the last 10 s)

This repeats every ten seconds, until ten seconds pass without a record; the next one is then a first one again. Records with
different keys are never counted together, so the key must contain everything that distinguishes one failure from another, and
nothing that a client can choose.
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

__all__ = ["DedupingHandler", "exception_key"]

DEDUP_WINDOW_SECONDS: Final = 10.0
MAX_KEYS: Final = 1_000

_Key: TypeAlias = tuple[str, int, object, Hashable]


def exception_key(error: BaseException) -> tuple[str, tuple[tuple[str, int], ...]]:
    """A `dedup_key` for an exception: its type, and file and line of its innermost ten frames."""
    cls = type(error)
    lines: deque[tuple[str, int]] = deque(maxlen=10)
    traceback = error.__traceback__
    while traceback is not None:
        lines.append((traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    return f"{cls.__module__}.{cls.__qualname__}", tuple(lines)


class DedupingHandler(logging.StreamHandler[TextIO]):
    """Writes records to `stream`. One with a `dedup_key` is written in full at most once in `window_seconds`, as the module says.

    At most MAX_KEYS keys are kept. When another one arrives, the oldest is dropped, after its count has been written. close(),
    which logging calls at exit, writes all remaining counts. `clock` and `schedule` are for tests; `schedule(seconds, function)`
    calls the function once, after that time.

    The handler's lock, which logging holds during emit(), protects all state.
    """

    def __init__(
        self,
        stream: TextIO,
        window_seconds: float = DEDUP_WINDOW_SECONDS,
        clock: Callable[[], float] = monotonic,
        schedule: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        super().__init__(stream)
        self._window_seconds = window_seconds
        self._clock = clock
        self._schedule = schedule or _by_timer
        self._repeats: dict[_Key, _Repeats] = {}  # the oldest first
        self._is_scheduled = False
        self._pid = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or count it."""
        dedup_key: Hashable = getattr(record, "dedup_key", None)
        if dedup_key is None:
            super().emit(record)
            return
        try:
            if self._is_first(record, (record.name, record.levelno, record.msg, dedup_key)):
                super().emit(record)
        except Exception:
            self.handleError(record)

    def flush_counts(self) -> None:
        """Write all remaining counts."""
        with self._locked():
            for key in list(self._repeats):
                self._drop(key)

    def close(self) -> None:
        """Write all remaining counts, and close."""
        self.flush_counts()
        super().close()

    def _is_first(self, record: logging.LogRecord, key: _Key) -> bool:
        now = self._clock()
        if self._pid != os.getpid():  # a forked process has no timer thread, and these failures are not its own
            self._pid, self._is_scheduled = os.getpid(), False
            self._repeats.clear()
        if key in self._repeats:
            self._flush(key, now)
        repeats = self._repeats.get(key)
        if repeats is None:
            if len(self._repeats) >= MAX_KEYS:
                self._drop(next(iter(self._repeats)))
            self._repeats[key] = _Repeats(now)
            return True
        repeats.count += 1
        repeats.message = record.getMessage()
        repeats.fields = getattr(record, "fields", None)
        self._schedule_flush(now)
        return False

    def _schedule_flush(self, now: float) -> None:
        """Have _flush_all() called when the first window ends."""
        if not self._is_scheduled and any(repeats.count for repeats in self._repeats.values()):
            with contextlib.suppress(RuntimeError):  # no thread can be started; the next record tries again
                until = min(repeats.since for repeats in self._repeats.values()) + self._window_seconds
                self._schedule(max(0.0, until - now), self._flush_all)
                self._is_scheduled = True

    def _flush_all(self) -> None:
        with self._locked():
            self._is_scheduled = False
            now = self._clock()
            for key in list(self._repeats):
                self._flush(key, now)
            self._schedule_flush(now)

    def _flush(self, key: _Key, now: float) -> None:
        """If the window of this key has ended, write its count and begin the next window, or drop the key if the count is 0."""
        repeats = self._repeats[key]
        if now - repeats.since < self._window_seconds:
            return
        if not repeats.count:
            del self._repeats[key]
            return
        self._emit_summary(key, repeats, now)
        repeats.since, repeats.count = now, 0

    def _drop(self, key: _Key) -> None:
        repeats = self._repeats.pop(key)
        if repeats.count:
            self._emit_summary(key, repeats, self._clock())

    def _emit_summary(self, key: _Key, repeats: _Repeats, now: float) -> None:
        times = "time" if repeats.count == 1 else "times"
        summary = f"{repeats.count:,} more {times} in the last {max(1, round(now - repeats.since))} s"
        record = logging.LogRecord(key[0], key[1], "", 0, f"{repeats.message} ({summary})", None, None)
        record.fields = {**(repeats.fields or {}), "repeats": repeats.count}
        super().emit(record)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


class _Repeats:
    """`count` records have arrived since `since`, when a line was last written; `message` and `fields` are those of the last."""

    __slots__ = ("count", "fields", "message", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.count = 0
        self.message = ""
        self.fields: dict[str, object] | None = None


def _by_timer(seconds: float, function: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, function)
    timer.name, timer.daemon = "rgate-log", True
    timer.start()
