"""Recorder: finished exchanges are in the report and saved in time and at the end; errors stay off the request path."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rgate.plugins.stats.aggregator import Aggregator, SeriesCounts
from rgate.plugins.stats.query import Query
from rgate.plugins.stats.recorder import Recorder
from rgate.plugins.stats.report import QueryResult, StorageError, report
from rgate.plugins.stats.store import Store

from ...support.waiting import DEADLINE_SECONDS
from .traffic import NOON_MINUTE, Clock, finished, success_of


class ScriptedStore(Store):
    """A database in memory that fails when the test says so, and signals writes."""

    def __init__(self) -> None:
        self.added: list[SeriesCounts] = []
        self.trouble: StorageError | None = None
        self.attempts = 0
        self.compacted: list[int] = []
        self.steps = 0
        self.written = threading.Event()
        self.closed = False
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def add(self, batch: Sequence[SeriesCounts]) -> None:
        self.attempts += 1
        self.entered.set()
        assert self.gate.wait(DEADLINE_SECONDS), "the gate was not opened"
        if self.trouble:
            raise self.trouble
        self.added += batch
        self.written.set()

    def read(self, by: Sequence[str], since_minute: int | None, now_minute: int) -> QueryResult:
        if self.trouble:
            raise self.trouble
        return QueryResult(since_minute)

    def compact(self, now_minute: int) -> bool:
        if self.trouble:
            raise self.trouble
        self.compacted.append(now_minute)
        self.steps -= 1
        return self.steps > 0

    def close(self) -> None:
        self.closed = True

    @property
    def saved(self) -> int:
        return sum(counted.total() for counted in self.added)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> ScriptedStore:
    return ScriptedStore()


@pytest.fixture
def recorder(store: ScriptedStore, clock: Clock) -> Recorder:
    return Recorder(store, Aggregator(wall=clock), wall=clock, clock=clock)


@pytest.fixture
def on_disk(tmp_path: Path) -> Callable[[], Recorder]:
    return lambda: Recorder(Store(f"sqlite:///{tmp_path}/rgate.db"), Aggregator(), flush_seconds=0.01)


def record(recorder: Recorder, times: int = 1, status: int = 200) -> None:
    for _ in range(times):
        recorder.aggregator.record(finished(status))


def test_report_holds_what_has_just_ended_and_saves_it(recorder: Recorder, store: ScriptedStore) -> None:
    record(recorder)
    recorder.report(Query())
    assert store.saved == 1


def test_report_holds_what_has_just_ended_with_and_without_running(on_disk: Callable[[], Recorder]) -> None:
    recorder = on_disk()
    record(recorder)
    assert recorder.report(Query())["requests_count"] == {"success": 1, "error": 0}
    with recorder:
        for ended in range(2, 50):
            record(recorder)
            answer = recorder.report(Query())
            assert answer["requests_count"] == {"success": ended, "error": 0}
            assert answer.keys() == {"requests_count", "latency_ms"}


def test_report_asks_the_siblings_to_flush_first(on_disk: Callable[[], Recorder]) -> None:
    recorder, sibling = on_disk(), on_disk()

    def flush_other_workers() -> None:
        assert sibling.flush()

    recorder.flush_other_workers = flush_other_workers
    record(recorder)
    record(sibling, 2)
    assert success_of(recorder.report(Query())) == 3


def test_siblings_that_cannot_be_asked_are_logged(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ConnectionError("pipe broken")

    recorder.flush_other_workers = fail
    record(recorder)
    assert recorder.report(Query())["requests_count"] == {"success": 0, "error": 0}  # all in the scripted store
    assert "the other processes could not be told" in caplog.text


def test_counts_are_saved_regularly_while_running(store: ScriptedStore) -> None:
    recorder = Recorder(store, Aggregator(), flush_seconds=0.01)
    with recorder:
        record(recorder)
        assert store.written.wait(DEADLINE_SECONDS), "nothing was saved"


def test_end_saves_what_is_left_and_closes(store: ScriptedStore) -> None:
    recorder = Recorder(store, Aggregator(), flush_seconds=1)
    with recorder:
        record(recorder, 3)
    assert (store.saved, store.closed) == (3, True)


def test_end_says_what_could_not_be_saved(store: ScriptedStore, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(store, Aggregator(), flush_seconds=1)
    with recorder:
        record(recorder, 3)
        store.trouble = StorageError("full", "disk full")
    assert "3 exchanges could not be saved and are lost" in caplog.text
    assert store.attempts == 6


def test_counts_survive_a_restart(on_disk: Callable[[], Recorder]) -> None:
    for _ in range(2):
        with on_disk() as recorder:
            record(recorder, 5)
    assert success_of(on_disk().report(Query())) == 10


def test_recorder_runs_again_after_its_end(on_disk: Callable[[], Recorder]) -> None:
    recorder = on_disk()
    for _ in range(2):
        with recorder:
            record(recorder)
    assert success_of(recorder.report(Query())) == 2


def test_trouble_keeps_the_counts_and_shows_them(recorder: Recorder, store: ScriptedStore) -> None:
    store.trouble = StorageError("locked", "database is locked")
    record(recorder, 2)
    record(recorder, 1, status=503)
    assert not recorder.flush()
    answer = recorder.report(Query(("status",)))
    assert answer["requests_count"] == {"success": 2, "error": 1}
    assert answer["storage"] == {"state": "locked", "lost": 0, "unsaved": 3}
    assert [group["status"] for group in answer["groups"]] == [200, 503]


def test_trouble_is_tried_again_after_a_second_and_no_sooner(recorder: Recorder, store: ScriptedStore, clock: Clock) -> None:
    store.trouble = StorageError("full", "disk full")
    record(recorder)
    for _ in range(5):
        recorder.flush()
    assert store.attempts == 1
    store.trouble = None
    clock.seconds += 0.9
    assert not recorder.flush()
    clock.seconds += 0.2
    assert recorder.flush()
    assert (store.attempts, store.saved) == (2, 1)
    assert "storage" not in recorder.report(Query())


def test_trouble_that_is_over_is_over_without_traffic_too(recorder: Recorder, store: ScriptedStore, clock: Clock) -> None:
    store.trouble = StorageError("corrupt", "file is not a database")
    assert recorder.report(Query())["storage"]["state"] == "corrupt"
    store.trouble = None
    clock.seconds += 2
    assert "storage" not in recorder.report(Query())


def test_trouble_is_logged_when_it_begins_and_when_it_ends(
    recorder: Recorder, store: ScriptedStore, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store.trouble = StorageError("full", "disk full")
    record(recorder)
    for _ in range(5):
        recorder.flush()
        clock.seconds += 2
    store.trouble = None
    recorder.flush()
    assert [record.getMessage() for record in caplog.records] == [
        "statistics: database full (disk full); counts wait in memory",
        "statistics: database ok again",
    ]


def test_lock_of_another_process_is_tried_again_soon(recorder: Recorder, store: ScriptedStore, clock: Clock) -> None:
    store.trouble = StorageError("locked", "database is locked")
    record(recorder)
    assert not recorder.flush()
    store.trouble = None
    clock.seconds += 0.25
    assert recorder.flush()


@pytest.mark.parametrize(("lasts", "told"), [(4.0, 0), (6.0, 2)])
def test_lock_is_logged_only_when_it_lasts(
    lasts: float, told: int, recorder: Recorder, store: ScriptedStore, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store.trouble = StorageError("locked", "database is locked")
    record(recorder)
    until = clock.seconds + lasts
    while clock.seconds < until:
        recorder.flush()
        clock.seconds += 0.5
    assert recorder.report(Query())["storage"]["state"] == "locked", "in the report it is shown at once"
    store.trouble = None
    clock.seconds += 0.25
    recorder.flush()
    assert "storage" not in recorder.report(Query())
    assert [record.getMessage() for record in caplog.records] == [
        "statistics: database locked (database is locked); counts wait in memory",
        "statistics: database ok again",
    ][:told]


def test_exchange_ends_at_once_while_the_database_hangs(store: ScriptedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.plugins.stats.recorder._LOCK_SECONDS", 0.01)
    recorder = Recorder(store, Aggregator(), flush_seconds=0.01)
    store.gate.clear()
    with recorder:
        record(recorder)
        assert store.entered.wait(DEADLINE_SECONDS), "the writer never wrote"
        record(recorder, 5_000)  # would never return if it waited for the database
        assert not recorder.flush()
        answer = recorder.report(Query())
        assert answer["requests_count"] == {"success": 5_001, "error": 0}
        assert answer["storage"] == {"state": "busy", "lost": 0, "unsaved": 5_001}
        store.gate.set()
    assert store.saved == 5_001


def test_writer_that_never_ends_does_not_hold_up_the_end(
    store: ScriptedStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rgate.plugins.stats.recorder._LOCK_SECONDS", 0.01)
    monkeypatch.setattr("rgate.plugins.stats.recorder._STOP_SECONDS", 0.01)
    recorder = Recorder(store, Aggregator(), flush_seconds=0.01)
    store.gate.clear()
    with recorder:
        record(recorder)
        assert store.entered.wait(DEADLINE_SECONDS), "the writer never wrote"
    assert not store.closed
    assert "1 exchanges could not be saved" in caplog.text
    store.gate.set()
    assert store.written.wait(DEADLINE_SECONDS), "the writer did not come back"


def test_writer_goes_on_after_an_exception(store: ScriptedStore, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(store, Aggregator(), flush_seconds=0.01)
    failures = iter([ZeroDivisionError()])
    aggregate = recorder.aggregator.aggregate

    def fail_once() -> None:
        for failure in failures:
            raise failure
        aggregate()

    recorder.aggregator.aggregate = fail_once  # type: ignore[method-assign]
    with recorder:
        record(recorder)
        assert store.written.wait(DEADLINE_SECONDS), "the writer died"
    assert "writing failed; trying again" in caplog.text


def test_database_is_compacted_once_a_minute(recorder: Recorder, store: ScriptedStore, clock: Clock) -> None:
    store.steps = 25
    recorder._compact()
    assert len(store.compacted) == 20, "one go must not take long"
    recorder._compact()
    recorder._compact()
    assert store.compacted == [NOON_MINUTE] * 25
    clock.seconds += 60
    recorder._compact()
    assert store.compacted[25:] == [NOON_MINUTE + 1]


def test_compacting_that_fails_is_left_for_the_next_minute(recorder: Recorder, store: ScriptedStore, clock: Clock) -> None:
    store.trouble = StorageError("locked", "database is locked")
    recorder._compact()
    store.trouble = None
    recorder._compact()
    assert store.compacted == []
    clock.seconds += 60
    recorder._compact()
    assert store.compacted == [NOON_MINUTE + 1]


def test_many_threads_and_reports_at_once_count_exactly(on_disk: Callable[[], Recorder], tmp_path: Path) -> None:
    recorder = on_disk()
    start = threading.Barrier(17)
    seen: list[Any] = []

    def client() -> None:
        start.wait()
        record(recorder, 1_000)

    def reader() -> None:
        start.wait()
        while not seen or seen[-1] < 16_000:
            answer = recorder.report(Query())
            assert answer.keys() == {"requests_count", "latency_ms"}, answer
            seen.append(answer["requests_count"]["success"])

    threads = [threading.Thread(target=client) for _ in range(16)] + [threading.Thread(target=reader)]
    with recorder:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), f"16,000 exchanges, but the reports came to {seen[-1:]}"
    assert seen == sorted(seen), "a report must never hold less than one before it"
    assert seen[-1] == 16_000
    assert success_of(report(f"sqlite:///{tmp_path}/rgate.db")) == 16_000
