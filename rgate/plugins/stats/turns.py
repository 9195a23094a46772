"""One report at a time: whoever asks for one may keep a thread and the database busy, and there may be many who do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from rgate import Overloaded

from .query import Query

__all__ = ["QueryTurns"]

WAITING: Final = 4  # threads, the one that makes a report included
WAIT_SECONDS: Final = 2.0
RECENT_SECONDS: Final = 1.0
CHEAP_SECONDS: Final = 0.01  # a report that takes no longer costs no more than a request
PAUSE: Final = 3  # times as long as a dear one took
MAX_PAUSE_SECONDS: Final = 1.0
REMEMBERED: Final = 8  # reports, of different queries


class _Made(NamedTuple):
    began: float
    ended: float
    answer: dict[str, Any]


class QueryTurns:
    """What `report(query)` returns, made by one thread at a time. Each line() is for those who may hold up only each other.

    Nobody gets a report that was begun before he asked, so what has ended by then is in it; but those who have waited for their
    turn share one that was begun meanwhile for the same query. In a line four may wait, for two seconds each. Whoever else
    comes gets the last report for his query if it was ready a second ago at most, and otherwise Overloaded is raised. After one
    that took more than 10 ms of CPU there is a pause of three times as long, at most a second, so reports cannot keep a core to
    themselves. `clock` is monotonic, `cpu` the time that this thread has computed, both in seconds; `pause` waits for so long.
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

    def line(self) -> Callable[[Query], dict[str, Any]]:
        """A function that returns the report for a query, or raises Overloaded. From any thread."""
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
        made_by_now = {**self._made, query: _Made(began, ended, answer)}
        while len(made_by_now) > REMEMBERED:
            del made_by_now[min(made_by_now, key=lambda each: made_by_now[each].began)]
        self._made = made_by_now  # exchanged, as others read it without the turn
        return answer

    def _recent(self, query: Query, now: float) -> dict[str, Any]:
        made = self._made.get(query)
        if made is None or now - made.ended > RECENT_SECONDS:
            raise Overloaded("too many reports are asked for at one time")
        return made.answer
