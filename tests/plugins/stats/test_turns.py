"""turns: one report at a time, never one from before it was asked for, and few who wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from rgate import Overloaded
from rgate.plugins.stats.query import Query
from rgate.plugins.stats.turns import WAITING, QueryTurns

from ...support.waiting import DEADLINE_SECONDS, eventually, passed


class Clock:
    """Never shows the same time twice."""

    seconds = 1_000.0

    def __call__(self) -> float:
        self.seconds += 1e-6
        return self.seconds


class Reports:
    """Numbers its reports; each takes until `go`, and `takes` seconds of the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.takes = 0.0
        self.began, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.made = self.under_way = self.most_under_way = 0

    def __call__(self, query: Query) -> dict[str, Any]:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.began.set()
        passed(self.go)
        self.clock.seconds += self.takes
        self.made += 1
        self.under_way -= 1
        return {"number": self.made}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reports(clock: Clock) -> Reports:
    return Reports(clock)


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def turns(reports: Reports, clock: Clock, pauses: list[float]) -> QueryTurns:
    return QueryTurns(reports, clock, clock, pauses.append)


class Asking(threading.Thread):
    """Somebody who asks, in a thread of his own."""

    def __init__(self, line: Callable[[Query], dict[str, Any]], query: Query) -> None:
        super().__init__(daemon=True)
        self._line, self._query = line, query
        self.answer: object = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._line(self._query)
        except Overloaded as error:
            self.answer = error

    def result(self) -> object:
        self.join(DEADLINE_SECONDS)
        return self.answer


def test_one_after_the_other_each_gets_a_report_of_its_own(turns: QueryTurns) -> None:
    line = turns.queue()
    assert [line(Query())["number"] for _ in range(3)] == [1, 2, 3]


def test_those_who_wait_share_a_report_that_was_begun_after_they_had_asked(turns: QueryTurns, reports: Reports) -> None:
    line = turns.queue()
    reports.go.clear()
    first = Asking(line, Query())
    passed(reports.began)
    others = [Asking(line, Query()) for _ in range(WAITING - 1)]
    eventually(lambda: _waiting(line) == 0, "all places are taken")
    reports.go.set()
    assert first.result() == {"number": 1}
    assert [other.result() for other in others] == [{"number": 2}] * (WAITING - 1), "the first one was begun before they asked"
    assert reports.most_under_way == 1


def test_those_who_wait_for_different_reports_get_their_own_one_at_a_time(turns: QueryTurns, reports: Reports) -> None:
    line = turns.queue()
    queries = [Query(("route",)), Query(("status",)), Query(("backend",)), Query()]
    asking = [Asking(line, query) for query in queries]
    assert {tuple(each.result().items()) for each in asking} == {(("number", n),) for n in (1, 2, 3, 4)}  # type: ignore[attr-defined]
    assert reports.most_under_way == 1


def test_whoever_finds_no_place_gets_the_last_report_while_it_is_fresh_and_then_is_refused(
    turns: QueryTurns, reports: Reports, clock: Clock
) -> None:
    line, other_line = turns.queue(), turns.queue()
    assert line(Query()) == {"number": 1}
    reports.began.clear()
    reports.go.clear()
    waiting = [Asking(line, Query(("route",))) for _ in range(WAITING)]
    eventually(lambda: _waiting(line) == 0, "all places are taken")
    passed(reports.began)
    assert line(Query()) == {"number": 1}
    with pytest.raises(Overloaded):
        line(Query(("status",)))
    clock.seconds += 1.1
    with pytest.raises(Overloaded):
        line(Query())
    elsewhere = Asking(other_line, Query(("backend",)))  # those at the port do not keep out those at the socket
    reports.go.set()
    assert elsewhere.result() is not None and not isinstance(elsewhere.result(), Overloaded)
    assert not any(isinstance(each.result(), Overloaded) for each in waiting)


def test_nobody_waits_for_longer_than_two_seconds(turns: QueryTurns, reports: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.plugins.stats.turns.WAIT_SECONDS", 0.01)
    line = turns.queue()
    reports.go.clear()
    first = Asking(line, Query())
    passed(reports.began)
    assert isinstance(Asking(line, Query()).result(), Overloaded)
    reports.go.set()
    assert first.result() == {"number": 1}


@pytest.mark.parametrize(("takes", "pause"), [(0.005, None), (0.1, 0.3), (2.0, 1.0)])
def test_after_a_dear_report_there_is_a_pause(
    turns: QueryTurns, reports: Reports, pauses: list[float], takes: float, pause: float | None
) -> None:
    line = turns.queue()
    reports.takes = takes
    line(Query())
    line(Query())
    assert pauses == ([] if pause is None else [pytest.approx(pause, abs=0.001)])


def test_report_that_fails_leaves_the_turn_to_the_next(clock: Clock) -> None:
    def fail(query: Query) -> dict[str, Any]:
        raise ZeroDivisionError

    line = QueryTurns(fail, clock).queue()
    for _ in range(2 * WAITING):
        with pytest.raises(ZeroDivisionError):
            line(Query())


def test_few_reports_are_remembered(turns: QueryTurns) -> None:
    line = turns.queue()
    for minute in range(50):
        line(Query(since_minute=minute))
    assert len(turns._made) == 8


def _waiting(line: Callable[[Query], dict[str, Any]]) -> int:
    """How many places of a line are free."""
    (semaphore,) = (cell.cell_contents for cell in line.__closure__ or () if isinstance(cell.cell_contents, threading.Semaphore))  # type: ignore[attr-defined]
    return int(semaphore._value)
