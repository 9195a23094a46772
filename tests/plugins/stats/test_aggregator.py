"""aggregator: exchanges become counts, in bounded memory; none is counted twice or forgotten."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from rgate import ConnectionRefused, Exchange, NoRoute, UpstreamTruncated
from rgate.plugins.stats.aggregator import CLIENT_CLOSED, Aggregator, Key, Kind
from rgate.plugins.stats.histogram import middle_seconds

from .traffic import NOON_MINUTE, Clock, a_route, finished


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def aggregator(clock: Clock) -> Aggregator:
    return Aggregator(wall=clock)


def totals(aggregator: Aggregator) -> dict[Key, int]:
    aggregator.aggregate()
    return {counted.key: counted.total() for counted in aggregator.batch()}


def total(aggregator: Aggregator, *, lost: bool = False) -> int:
    return sum(count for key, count in totals(aggregator).items() if (key.kind is Kind.LOST) is lost)


def test_exchange_is_counted_by_minute_route_backend_endpoint_and_status(aggregator: Aggregator) -> None:
    aggregator.record(finished(200, ms=3, route=a_route("/api/orders", "orders"), endpoint="orders-1"))
    aggregator.aggregate()
    [counted] = aggregator.batch()
    assert counted.key == Key(NOON_MINUTE, "/api/orders", "orders", "orders-1", 200)
    [(bucket, count)] = counted.buckets().items()
    assert count == 1
    assert middle_seconds(bucket) == pytest.approx(0.003, rel=0.01)
    assert counted.sum_us == pytest.approx(3000, abs=1)


def test_exchange_without_route_and_endpoint_is_counted_without_names(aggregator: Aggregator) -> None:
    aggregator.record(finished(404))
    assert totals(aggregator) == {Key(NOON_MINUTE, "", "", "", 404): 1}


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
    aggregator: Aggregator, status: int, error: ConnectionRefused | None, counted: int
) -> None:
    aggregator.record(finished(status, error=error))
    assert totals(aggregator) == {Key(NOON_MINUTE, "", "", "", counted): 1}


def test_exchange_of_a_route_with_statistics_off_is_not_counted(aggregator: Aggregator) -> None:
    for _ in range(2_000):
        aggregator.record(finished(route=a_route(stats=None)))
    aggregator.record(finished(route=a_route("/on")))
    assert {key.route: count for key, count in totals(aggregator).items()} == {"/on": 1}


def after_attempts(attempts: int, **more: Any) -> Exchange:
    exchange = finished(**more)
    exchange.attempts = attempts
    return exchange


def test_exchange_of_several_attempts_is_counted_once_more_by_route_and_backend(aggregator: Aggregator) -> None:
    for attempts in (1, 2, 3, 2):
        aggregator.record(after_attempts(attempts, route=a_route("/a", "b"), endpoint=f"b-{attempts}"))
    assert sum(count for key, count in totals(aggregator).items() if key.status == 200) == 4
    others = {key: count for key, count in totals(aggregator).items() if key.kind is not Kind.REQUEST}
    assert others == {
        Key(NOON_MINUTE, "/a", "b", "", 0, Kind.RETRIED): 3,
        Key(NOON_MINUTE, "/a", "b", "", 0, Kind.RETRY): 4,
    }, "three requests took four attempts beyond the first"


def test_time_in_plugins_is_counted_by_route_backend_and_plugin(aggregator: Aggregator) -> None:
    exchange = finished(ms=9, route=a_route("/a", "b"), endpoint="b-1")
    exchange.plugin_seconds = {"auth": 0.003, "limit": 0.001}
    for one in (exchange, exchange, finished(404)):
        aggregator.record_timed(one)
    found = totals(aggregator)
    assert found == {
        Key(NOON_MINUTE, "/a", "b", "b-1", 200): 2,
        Key(NOON_MINUTE, "/a", "b", "auth", 0, Kind.PLUGIN): 2,
        Key(NOON_MINUTE, "/a", "b", "limit", 0, Kind.PLUGIN): 2,
        Key(NOON_MINUTE, "", "", "", 404): 1,
    }
    assert {counted.key.endpoint: counted.sum_us for counted in aggregator.batch()}["auth"] == 6_000


def test_attempts_and_plugins_of_a_route_with_statistics_off_are_not_counted(aggregator: Aggregator) -> None:
    exchange = after_attempts(2, route=a_route(stats=None))
    exchange.plugin_seconds = {"auth": 0.003}
    aggregator.record_timed(exchange)
    assert totals(aggregator) == {}


def test_attempts_and_plugins_over_a_limit_are_no_lost_exchanges(clock: Clock) -> None:
    for aggregator in (Aggregator(max_series=1, wall=clock), Aggregator(max_keys=1, wall=clock)):
        exchange = after_attempts(2, route=a_route())
        exchange.plugin_seconds = {"auth": 0.003}
        for _ in range(3_000):
            aggregator.record_timed(exchange)
        found = totals(aggregator)
        assert sum(count for key, count in found.items() if key.kind in (Kind.REQUEST, Kind.LOST)) == 3_000, found


def test_exchange_is_counted_in_the_minute_it_is_folded_in(aggregator: Aggregator, clock: Clock) -> None:
    for _ in range(4):
        aggregator.record(finished())
        aggregator.aggregate()
        clock.seconds += 60
    assert [key.minute - NOON_MINUTE for key in totals(aggregator)] == [0, 1, 2, 3]


def test_list_that_has_grown_is_folded_by_the_thread_that_filled_it(aggregator: Aggregator) -> None:
    for _ in range(2_500):
        aggregator.record(finished())
    assert [counted.total() for counted in aggregator.batch()] == [2_000]
    assert total(aggregator) == 2_500


def test_batch_stays_until_it_is_committed(aggregator: Aggregator) -> None:
    aggregator.record(finished())
    aggregator.aggregate()
    batch = aggregator.batch()
    assert aggregator.batch() == batch
    aggregator.commit(batch)
    assert aggregator.batch() == []


def test_committing_leaves_what_came_since(aggregator: Aggregator) -> None:
    aggregator.record(finished(ms=1))
    aggregator.aggregate()
    batch = aggregator.batch()
    for ms in (1, 20):
        aggregator.record(finished(ms=ms))
    aggregator.aggregate()
    aggregator.commit(batch)
    [left] = aggregator.batch()
    assert left.total() == 2
    assert left.sum_us == pytest.approx(21_000, abs=2)


def test_batch_takes_the_oldest_first_and_no_more_than_asked(aggregator: Aggregator, clock: Clock) -> None:
    for _ in range(3):
        aggregator.record(finished())
        aggregator.aggregate()
        clock.seconds += 60
    assert [counted.key.minute - NOON_MINUTE for counted in aggregator.batch(2)] == [0, 1]


def test_counts_over_the_limit_are_counted_as_lost(clock: Clock) -> None:
    aggregator = Aggregator(max_keys=10, wall=clock)
    for at in range(10):
        aggregator.record(finished(ms=2**at))
    aggregator.aggregate()
    for _ in range(7):
        aggregator.record(finished(status=500))
    assert (total(aggregator), total(aggregator, lost=True)) == (10, 7)


def test_counts_are_taken_again_when_there_is_room(clock: Clock) -> None:
    aggregator = Aggregator(max_keys=1, wall=clock)
    aggregator.record(finished())
    aggregator.aggregate()
    aggregator.commit(aggregator.batch())
    aggregator.record(finished(status=500))
    assert (total(aggregator), total(aggregator, lost=True)) == (1, 0)


def test_memory_is_bounded_while_nothing_is_saved(clock: Clock) -> None:
    aggregator = Aggregator(max_keys=100, wall=clock)
    for at in range(3_000):
        aggregator.record(finished(status=100 + at % 500, ms=1 + at))
        if at % 10 == 0:
            aggregator.aggregate()
    aggregator.aggregate()
    kept = sum(len(counted.half_buckets) for counted in aggregator.batch())
    assert kept < 200, "the limit is 100, and what one fold may be over it"
    assert total(aggregator) + total(aggregator, lost=True) == 3_000


def test_series_over_the_limit_are_counted_as_lost(clock: Clock) -> None:
    aggregator = Aggregator(max_series=5, wall=clock)
    for status in range(200, 208):
        aggregator.record(finished(status=status))
    assert (total(aggregator), total(aggregator, lost=True)) == (5, 3)


def test_series_of_names_long_gone_make_room(clock: Clock) -> None:
    aggregator = Aggregator(max_series=5, wall=clock)
    for status in range(200, 230):
        aggregator.record(finished(status=status))
        aggregator.aggregate()
        clock.seconds += 60
    assert (total(aggregator), total(aggregator, lost=True)) == (30, 0)


def test_exchange_recorded_into_a_series_just_retired_is_counted(aggregator: Aggregator, clock: Clock) -> None:
    aggregator.record(finished())
    aggregator.aggregate()
    [series] = aggregator._retired.values()  # what a thread that was stopped before its append holds
    series.append(0.001)
    assert total(aggregator) == 2


@pytest.mark.parametrize(("name", "plain"), [("a" * 300, "a" * 255), ("\ud800", "?"), ("a\0b", "a?b"), ("straße", "straße")])
def test_name_no_database_would_take_is_made_plain(aggregator: Aggregator, name: str, plain: str) -> None:
    aggregator.record(finished(route=a_route(name, name), endpoint=name))
    [key] = totals(aggregator)
    assert key[1:4] == (plain, plain, plain)


def test_exchanges_of_many_threads_are_all_counted(aggregator: Aggregator) -> None:
    start = threading.Barrier(17)
    stop = threading.Event()
    saved = []

    def client() -> None:
        start.wait()
        for at in range(1_000):
            aggregator.record(finished(200 if at % 4 else 500))

    def writer() -> None:
        start.wait()
        while not stop.is_set():
            aggregator.aggregate()
            batch = aggregator.batch(1)
            aggregator.commit(batch)
            saved.extend(batch)

    clients = [threading.Thread(target=client) for _ in range(16)]
    folding = threading.Thread(target=writer)
    for thread in (*clients, folding):
        thread.start()
    for thread in clients:
        thread.join()
    stop.set()
    folding.join()
    aggregator.aggregate()
    saved += aggregator.batch()
    by_status = {status: sum(c.total() for c in saved if c.key.status == status) for status in (200, 500)}
    assert by_status == {200: 12_000, 500: 4_000}
