"""pending: exchanges become counts, in bounded memory, and none is counted twice or forgotten."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from rgate import ConnectionRefused, Exchange, NoRoute, UpstreamTruncated
from rgate.plugins.stats.aggregator import CLIENT_CLOSED, LOST, PLUGIN, RETRIED, Aggregator, Key
from rgate.plugins.stats.histogram import middle_seconds

from .traffic import NOON_MINUTE, Clock, a_route, finished


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pending(clock: Clock) -> Aggregator:
    return Aggregator(wall=clock)


def totals(pending: Aggregator) -> dict[Key, int]:
    pending.fold()
    return {counted.key: counted.total() for counted in pending.batch()}


def total(pending: Aggregator, *, lost: bool = False) -> int:
    return sum(count for key, count in totals(pending).items() if (key.status == LOST) is lost)


def test_exchange_is_counted_by_minute_route_backend_endpoint_and_status(pending: Aggregator) -> None:
    pending.record(finished(200, ms=3, route=a_route("/api/orders", "orders"), endpoint="orders-1"))
    pending.fold()
    [counted] = pending.batch()
    assert counted.key == Key(NOON_MINUTE, "/api/orders", "orders", "orders-1", 200)
    [(bucket, count)] = counted.buckets().items()
    assert count == 1
    assert middle_seconds(bucket) == pytest.approx(0.003, rel=0.01)
    assert counted.sum_us == pytest.approx(3000, abs=1)


def test_exchange_without_route_and_endpoint_is_counted_without_names(pending: Aggregator) -> None:
    pending.record(finished(404))
    assert totals(pending) == {Key(NOON_MINUTE, "", "", "", 404): 1}


@pytest.mark.parametrize(
    ("status", "error", "counted"),
    [
        (0, ConnectionRefused(), 503),
        (200, UpstreamTruncated(), 502),
        (403, NoRoute("no", 403), 403),
        (101, None, 101),
        (0, None, CLIENT_CLOSED),
    ],
)
def test_status_counted_is_the_faults_then_the_responses(
    pending: Aggregator, status: int, error: ConnectionRefused | None, counted: int
) -> None:
    pending.record(finished(status, error=error))
    assert totals(pending) == {Key(NOON_MINUTE, "", "", "", counted): 1}


def test_exchange_of_a_route_with_statistics_off_is_not_counted(pending: Aggregator) -> None:
    for _ in range(2_000):
        pending.record(finished(route=a_route(stats=None)))
    pending.record(finished(route=a_route("/on")))
    assert {key.route: count for key, count in totals(pending).items()} == {"/on": 1}


def after_attempts(attempts: int, **more: Any) -> Exchange:
    exchange = finished(**more)
    exchange.attempts = attempts
    return exchange


def test_exchange_of_several_attempts_is_counted_once_more_by_route_and_backend(pending: Aggregator) -> None:
    for attempts in (1, 2, 3, 2):
        pending.record(after_attempts(attempts, route=a_route("/a", "b"), endpoint=f"b-{attempts}"))
    assert sum(count for key, count in totals(pending).items() if key.status == 200) == 4
    (again,) = (counted for counted in pending.batch() if counted.key.status == RETRIED)
    assert again.key == Key(NOON_MINUTE, "/a", "b", "", RETRIED)
    assert (again.total(), again.sum_us) == (3, 4), "three requests took four attempts beyond the first"


def test_time_in_plugins_is_counted_by_route_backend_and_plugin(pending: Aggregator) -> None:
    exchange = finished(ms=9, route=a_route("/a", "b"), endpoint="b-1")
    exchange.plugin_seconds = {"auth": 0.003, "limit": 0.001}
    for one in (exchange, exchange, finished(404)):
        pending.record_timed(one)
    found = totals(pending)
    assert found == {
        Key(NOON_MINUTE, "/a", "b", "b-1", 200): 2,
        Key(NOON_MINUTE, "/a", "b", "auth", PLUGIN): 2,
        Key(NOON_MINUTE, "/a", "b", "limit", PLUGIN): 2,
        Key(NOON_MINUTE, "", "", "", 404): 1,
    }
    assert {counted.key.endpoint: counted.sum_us for counted in pending.batch()}["auth"] == 6_000


def test_attempts_and_plugins_of_a_route_with_statistics_off_are_not_counted(pending: Aggregator) -> None:
    exchange = after_attempts(2, route=a_route(stats=None))
    exchange.plugin_seconds = {"auth": 0.003}
    pending.record_timed(exchange)
    assert totals(pending) == {}


def test_attempts_and_plugins_over_a_limit_are_no_lost_exchanges(clock: Clock) -> None:
    for pending in (Aggregator(max_series=1, wall=clock), Aggregator(max_keys=1, wall=clock)):
        exchange = after_attempts(2, route=a_route())
        exchange.plugin_seconds = {"auth": 0.003}
        for _ in range(3_000):
            pending.record_timed(exchange)
        found = totals(pending)
        assert sum(count for key, count in found.items() if key.status in (200, LOST)) == 3_000, found


def test_exchange_is_counted_in_the_minute_it_is_folded_in(pending: Aggregator, clock: Clock) -> None:
    for _ in range(4):
        pending.record(finished())
        pending.fold()
        clock.seconds += 60
    assert [key.minute - NOON_MINUTE for key in totals(pending)] == [0, 1, 2, 3]


def test_list_that_has_grown_is_folded_by_the_thread_that_filled_it(pending: Aggregator) -> None:
    for _ in range(2_500):
        pending.record(finished())
    assert [counted.total() for counted in pending.batch()] == [2_000]
    assert total(pending) == 2_500


def test_batch_stays_until_it_is_settled(pending: Aggregator) -> None:
    pending.record(finished())
    pending.fold()
    batch = pending.batch()
    assert pending.batch() == batch
    pending.settle(batch)
    assert pending.batch() == []


def test_settling_leaves_what_came_since(pending: Aggregator) -> None:
    pending.record(finished(ms=1))
    pending.fold()
    batch = pending.batch()
    for ms in (1, 20):
        pending.record(finished(ms=ms))
    pending.fold()
    pending.settle(batch)
    [left] = pending.batch()
    assert left.total() == 2
    assert left.sum_us == pytest.approx(21_000, abs=2)


def test_batch_takes_the_oldest_first_and_no_more_than_asked(pending: Aggregator, clock: Clock) -> None:
    for _ in range(3):
        pending.record(finished())
        pending.fold()
        clock.seconds += 60
    assert [counted.key.minute - NOON_MINUTE for counted in pending.batch(2)] == [0, 1]


def test_counts_over_the_limit_are_counted_as_lost(clock: Clock) -> None:
    pending = Aggregator(max_keys=10, wall=clock)
    for at in range(10):
        pending.record(finished(ms=2**at))
    pending.fold()
    for _ in range(7):
        pending.record(finished(status=500))
    assert (total(pending), total(pending, lost=True)) == (10, 7)


def test_counts_are_taken_again_when_there_is_room(clock: Clock) -> None:
    pending = Aggregator(max_keys=1, wall=clock)
    pending.record(finished())
    pending.fold()
    pending.settle(pending.batch())
    pending.record(finished(status=500))
    assert (total(pending), total(pending, lost=True)) == (1, 0)


def test_memory_is_bounded_while_nothing_is_saved(clock: Clock) -> None:
    pending = Aggregator(max_keys=100, wall=clock)
    for at in range(3_000):
        pending.record(finished(status=100 + at % 500, ms=1 + at))
        if at % 10 == 0:
            pending.fold()
    pending.fold()
    kept = sum(len(counted.halves) for counted in pending.batch())
    assert kept < 200, "the limit is 100, and what one fold may be over it"
    assert total(pending) + total(pending, lost=True) == 3_000


def test_series_over_the_limit_are_counted_as_lost(clock: Clock) -> None:
    pending = Aggregator(max_series=5, wall=clock)
    for status in range(200, 208):
        pending.record(finished(status=status))
    assert (total(pending), total(pending, lost=True)) == (5, 3)


def test_series_of_names_long_gone_make_room(clock: Clock) -> None:
    pending = Aggregator(max_series=5, wall=clock)
    for status in range(200, 230):
        pending.record(finished(status=status))
        pending.fold()
        clock.seconds += 60
    assert (total(pending), total(pending, lost=True)) == (30, 0)


def test_exchange_recorded_into_a_series_just_retired_is_counted(pending: Aggregator, clock: Clock) -> None:
    pending.record(finished())
    pending.fold()
    [series] = pending._retired.values()  # what a thread that was stopped before its append holds
    series.append(0.001)
    assert total(pending) == 2


@pytest.mark.parametrize(("name", "plain"), [("a" * 300, "a" * 255), ("\ud800", "?"), ("a\0b", "a?b"), ("straße", "straße")])
def test_name_no_database_would_take_is_made_plain(pending: Aggregator, name: str, plain: str) -> None:
    pending.record(finished(route=a_route(name, name), endpoint=name))
    [key] = totals(pending)
    assert key[1:4] == (plain, plain, plain)


def test_exchanges_of_many_threads_are_all_counted(pending: Aggregator) -> None:
    start = threading.Barrier(17)
    stop = threading.Event()
    saved = []

    def client() -> None:
        start.wait()
        for at in range(1_000):
            pending.record(finished(200 if at % 4 else 500))

    def writer() -> None:
        start.wait()
        while not stop.is_set():
            pending.fold()
            batch = pending.batch(1)
            pending.settle(batch)
            saved.extend(batch)

    clients = [threading.Thread(target=client) for _ in range(16)]
    folding = threading.Thread(target=writer)
    for thread in (*clients, folding):
        thread.start()
    for thread in clients:
        thread.join()
    stop.set()
    folding.join()
    pending.fold()
    saved += pending.batch()
    by_status = {status: sum(c.total() for c in saved if c.key.status == status) for status in (200, 500)}
    assert by_status == {200: 12_000, 500: 4_000}
