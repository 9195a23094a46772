"""Exchanges, counts and clocks for the tests of the statistics."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rgate import Address, Backend, Endpoint, Exchange, GatewayError, Route
from rgate.config.models import changed
from rgate.plugins.stats.aggregator import Key, Kind, SeriesCounts
from rgate.plugins.stats.histogram import count_into
from rgate.plugins.stats.query import Query
from rgate.plugins.stats.report import Report
from rgate.plugins.stats.store import Store

NOON = 1_800_014_400  # 2027-01-15T12:00:00Z
NOON_MINUTE = NOON // 60


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, seconds: float = NOON) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


def finished(
    status: int = 200,
    *,
    ms: float = 1.0,
    route: Route | None = None,
    endpoint: str | None = None,
    error: GatewayError | None = None,
) -> Exchange:
    """An exchange that has ended."""
    exchange = Exchange()
    exchange.route = route
    exchange.endpoint = Endpoint(endpoint, endpoint, "any", Address("http", "127.0.0.1", 9)) if endpoint else None
    exchange.status = status
    exchange.error = error
    exchange.started, exchange.finished = 100.0, 100.0 + ms / 1000
    return exchange


def a_route(name: str = "/api/orders", backend: str = "orders", **options: object) -> Route:
    """A route of any name, also of one that a config could not have."""
    named = changed(Backend("orders"), name=backend)
    return changed(Route("/", named, plugins=options), name=name)


def counted(
    latencies_ms: Iterable[float] = (1.0,),
    *,
    minute: int = NOON_MINUTE,
    route: str = "/api/orders",
    backend: str = "orders",
    endpoint: str = "orders-1",
    status: int = 200,
    kind: Kind = Kind.REQUEST,
) -> SeriesCounts:
    latencies = [ms / 1000 for ms in latencies_ms]
    half_buckets: Counter[int] = Counter()
    count_into(half_buckets, latencies)
    return SeriesCounts(
        Key(minute, route, backend, endpoint, status if kind is Kind.REQUEST else 0, kind),
        half_buckets,
        round(sum(latencies) * 1e6),
    )


def answered(store: Store, *by: str, since_minute: int | None = None, now_minute: int = NOON_MINUTE) -> dict[str, object]:
    """The answer of `/stats` with the contents of a store."""
    report = Report(Query(by, since_minute))
    report.add_saved(store.read(by, since_minute, now_minute))
    return report.json()


def success_of(answer: dict[str, object]) -> object:
    counts = answer["requests_count"]
    assert isinstance(counts, dict)
    return counts["success"]


def rows_in(path: Path, where: str = "1") -> list[tuple[int, int, int]]:
    """(span, start, requests) of the rows in an sqlite file."""
    connection = sqlite3.connect(path)
    try:
        query = f"SELECT span_minutes, start_minute, sum(count) FROM rgate_traffic WHERE {where} GROUP BY 1, 2 ORDER BY 1, 2"
        return connection.execute(query).fetchall()
    finally:
        connection.close()
