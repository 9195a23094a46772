"""QueryTurns: makes one report at a time, because each occupies a thread and the database, and many clients may request one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from rgate import Overloaded

from .query import Query

__all__ = ["QueryTurns"]

WAITING: Final = 4  # threads in a queue, the one that makes a report included
WAIT_SECONDS: Final = 2.0
RECENT_SECONDS: Final = 1.0
CHEAP_SECONDS: Final = 0.01  # a report that takes no longer costs no more than a request
PAUSE: Final = 3  # the pause after an expensive report, as a multiple of its CPU time
MAX_PAUSE_SECONDS: Final = 1.0
REMEMBERED: Final = 8  # reports, of different queries


class _Made(NamedTuple):
    began: float
    ended: float
    answer: dict[str, Any]


class QueryTurns:
    """Calls `report(query)` from one thread at a time. Each `queue()` is for clients that may delay only each other.

    A client never gets a report that was started before its request, so the report includes every exchange that ended before.
    Clients that waited for their turn share a report for the same query that was started in the meantime. Four threads of a
    queue may wait, for two seconds each. Any further client gets the last report for its query if that is at most one second
    old; otherwise Overloaded is raised.

    After a report that took more than 10 ms of CPU there is a pause of three times as long, one second at most, so that reports
    cannot occupy a core. `clock` is monotonic, `cpu` the CPU time of the current thread, both in seconds; `pause` sleeps.
    """

    def __init__(
        self,
        report: Callable[[Query], dict[str, Any]],
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._report = report
        self._clock = clock
        self._cpu = cpu
        self._pause = pause
        self._turn = threading.Lock()
        self._made: dict[Query, _Made] = {}
        self._next = float("-inf")

    def queue(self) -> Callable[[Query], dict[str, Any]]:
        """A new queue: a function that returns the report for a query, or raises Overloaded. Call it from any thread."""
        waiting = threading.BoundedSemaphore(WAITING)

        def report(query: Query) -> dict[str, Any]:
            asked = self._clock()
            if not waiting.acquire(blocking=False):
                return self._recent(query, asked)
            try:
                if not self._turn.acquire(timeout=WAIT_SECONDS):
                    return self._recent(query, self._clock())
                try:
                    return self._make(query, asked)
                finally:
                    self._turn.release()
            finally:
                waiting.release()

        return report

    def _make(self, query: Query, asked: float) -> dict[str, Any]:
        made = self._made.get(query)
        if made is not None and made.began >= asked:
            return made.answer
        began = self._clock()
        if began < self._next:
            self._pause(self._next - began)
            began = self._clock()
        computed = self._cpu()
        answer = self._report(query)
        ended, took = self._clock(), self._cpu() - computed
        self._next = ended + min(MAX_PAUSE_SECONDS, PAUSE * took) if took > CHEAP_SECONDS else ended
        remembered = {**self._made, query: _Made(began, ended, answer)}
        while len(remembered) > REMEMBERED:
            del remembered[min(remembered, key=lambda each: remembered[each].began)]
        self._made = remembered  # replaced as a whole, because other threads read it without a lock
        return answer

    def _recent(self, query: Query, now: float) -> dict[str, Any]:
        made = self._made.get(query)
        if made is None or now - made.ended > RECENT_SECONDS:
            raise Overloaded("too many reports are requested at one time")
        return made.answer
