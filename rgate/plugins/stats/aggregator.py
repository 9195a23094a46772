"""Finished exchanges, aggregated in memory into counts that wait for the database."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from rgate import ClientClosed

from .histogram import buckets, count_into

if TYPE_CHECKING:
    from rgate import Exchange, Route

__all__ = ["CLIENT_CLOSED", "NO_BUCKET", "Aggregator", "Key", "Kind", "SeriesCounts"]

CLIENT_CLOSED = 499
"""The status of an exchange whose client left before it was over; neither a success nor an error."""
NO_BUCKET = -1
"""The bucket of the row that holds the sum of a series' latencies, which is not known by bucket."""

_AGGREGATE_AT = 1_000  # latencies that may wait in one series
_MAX_NAME = 255


class Kind(StrEnum):
    """The unit that a row counts.

    REQUEST  exchanges, with their latencies
    LOST     exchanges that a limit of memory or of the database kept out of all other counts
    RETRIED  exchanges that took more than one attempt; they are counted as REQUEST too
    RETRY    attempts beyond the first
    PLUGIN   passages through a timed plugin, with the time inside it; the plugin's name is in the column `endpoint`

    Only REQUEST has a status; all others have 0. Only REQUEST and PLUGIN have latencies.
    """

    REQUEST = "request"
    LOST = "lost"
    RETRIED = "retried"
    RETRY = "retry"
    PLUGIN = "plugin"


class Key(NamedTuple):
    """Exchanges with equal keys are counted together. `minute` is whole minutes since 1970; absent names are ""."""

    minute: int
    route: str
    backend: str
    endpoint: str
    status: int
    kind: Kind = Kind.REQUEST


class SeriesCounts(NamedTuple):
    """The counts of one key by half bucket of latency (see histogram), and the sum of the latencies in microseconds."""

    key: Key
    half_buckets: Counter[int]
    sum_us: int

    def buckets(self) -> dict[int, int]:
        """Bucket → count."""
        return buckets(self.half_buckets)

    def total(self) -> int:
        """The count over all buckets."""
        return self.half_buckets.total()


_Names: TypeAlias = tuple[str, str, str, int, Kind]  # a Key without its minute
_SeriesKey: TypeAlias = tuple[str | None, str | None, int | Kind]
"""Names of route and endpoint (or plugin), and the status of a request; of anything else its kind."""


class _Series(list[float]):
    """Latencies in seconds of one route, endpoint, status and kind that have not been aggregated yet."""

    __slots__ = ("names",)

    def __init__(self, names: _Names) -> None:
        self.names = names


class _DiscardedSeries(_Series):
    """The series of a route without statistics, or over a limit: it discards everything."""

    __slots__ = ()

    def append(self, latency_seconds: float) -> None:
        pass

    def extend(self, latencies_seconds: object) -> None:
        pass


@dataclass(slots=True)
class _Count:
    half_buckets: Counter[int] = field(default_factory=Counter)
    sum_us: int = 0


class Aggregator:
    """Counts of one process that are not saved yet, in bounded memory.

    Only `record` (or `record_timed`) runs in request threads: it appends a float to a list, which is atomic, so that request
    threads never wait for each other. The thread whose float is the 1,000th of a list aggregates that list at once, so lists
    stay short even when the writer thread is delayed. `max_keys` bounds the counts (some 100 bytes each); exchanges beyond it
    are counted as lost. `max_series` bounds the combinations of route, endpoint and status within one minute. `wall` is the
    time of day in seconds. Every method may be called from any thread.
    """

    def __init__(self, *, max_keys: int = 200_000, max_series: int = 10_000, wall: Callable[[], float] = time.time) -> None:
        self._series: dict[_SeriesKey, _Series] = {}
        self._retired: dict[_SeriesKey, _Series] = {}
        self._retired_minute = 0
        self._overflow = _Series(("", "", "", 0, Kind.LOST))
        self._counts: dict[Key, _Count] = {}
        self._keys = 0
        self._lock = threading.Lock()  # protects the counts; never held during a database operation
        self._max_keys = max_keys
        self._max_series = max_series
        self._wall = wall

    def record(self, exchange: Exchange) -> None:
        """Count a finished exchange."""
        error = exchange.error
        status = exchange.status if error is None else CLIENT_CLOSED if isinstance(error, ClientClosed) else error.status
        route = exchange.route
        endpoint = exchange.endpoint
        key = (None if route is None else route.name, None if endpoint is None else endpoint.name, status)
        series = self._series.get(key)
        if series is None:
            series = self._start_series(key, route)
        series.append(exchange.finished - exchange.started)
        if exchange.attempts > 1:
            self._record_beside(exchange, "", Kind.RETRIED, (0.0,))
            self._record_beside(exchange, "", Kind.RETRY, (0.0,) * (exchange.attempts - 1))
        if len(series) >= _AGGREGATE_AT:
            self._aggregate_now(series)

    def record_timed(self, exchange: Exchange) -> None:
        """Count a finished exchange, and the time it spent in each timed plugin."""
        self.record(exchange)
        for plugin, seconds in (exchange.plugin_seconds or {}).items():
            self._record_beside(exchange, plugin, Kind.PLUGIN, (max(seconds, 0.0),))

    def _record_beside(self, exchange: Exchange, name: str, kind: Kind, values: tuple[float, ...]) -> None:
        route = exchange.route
        key = (None if route is None else route.name, name, kind)
        series = self._series.get(key)
        if series is None:
            series = self._start_series(key, route)
        series.extend(values)
        if len(series) >= _AGGREGATE_AT:
            self._aggregate_now(series)

    def aggregate(self) -> None:
        """Turn the exchanges recorded so far into counts of the current minute."""
        with self._lock:
            minute = self._minute()
            for series in (*self._retired.copy().values(), *self._series.copy().values(), self._overflow):
                if series:
                    self._aggregate(series, minute)
            if minute != self._retired_minute:
                # Names come and go, so each minute starts with new lists. A request thread may still hold an old list and
                # append to it in a moment; the old ones are therefore aggregated for one more minute.
                self._retired, self._series, self._retired_minute = self._series, {}, minute

    def batch(self, max_counts: int | None = None) -> list[SeriesCounts]:
        """Up to `max_counts` counts (default: all), oldest first. They stay here until `commit`."""
        with self._lock:
            return [
                SeriesCounts(key, count.half_buckets.copy(), count.sum_us)
                for key, count in islice(self._counts.items(), max_counts)
            ]

    def commit(self, batch: Sequence[SeriesCounts]) -> None:
        """Remove the counts of a batch after it has been saved."""
        with self._lock:
            for key, half_buckets, sum_us in batch:
                count = self._counts[key]
                self._keys -= len(count.half_buckets)
                count.half_buckets -= half_buckets
                count.sum_us -= sum_us
                self._keys += len(count.half_buckets)
                if not count.half_buckets:
                    del self._counts[key]

    def _start_series(self, key: _SeriesKey, route: Route | None) -> _Series:
        _, endpoint, what = key
        status, kind = (0, what) if isinstance(what, Kind) else (what or CLIENT_CLOSED, Kind.REQUEST)
        if route is not None and route.options.get("stats", ...) is None:
            return self._series.setdefault(key, _DiscardedSeries(("", "", "", status, kind)))
        if len(self._series) >= self._max_series:
            return self._overflow if kind is Kind.REQUEST else _DiscardedSeries(("", "", "", status, kind))
        names = [
            _storable(name)
            for name in (
                "" if route is None else route.name,
                "" if route is None else route.backend.name,
                "" if endpoint is None else endpoint,
            )
        ]
        return self._series.setdefault(key, _Series((names[0], names[1], names[2], status, kind)))

    def _aggregate_now(self, series: _Series) -> None:
        """Aggregate one list, unless another thread holds the lock."""
        if self._lock.acquire(blocking=False):
            try:
                self._aggregate(series, self._minute())
            finally:
                self._lock.release()

    def _minute(self) -> int:
        return int(self._wall() // 60)

    def _aggregate(self, series: _Series, minute: int) -> None:
        """Move the contents of a list into the counts. The caller holds the lock; other threads may append meanwhile."""
        part = series[:]
        del series[: len(part)]
        kind, is_full = series.names[-1], self._keys >= self._max_keys
        if is_full and kind not in (Kind.REQUEST, Kind.LOST):
            return
        if is_full or kind is Kind.LOST:
            count = self._counts.setdefault(Key(minute, "", "", "", 0, Kind.LOST), _Count())
            before = len(count.half_buckets)
            count.half_buckets[0] += len(part)
        else:
            count = self._counts.setdefault(Key(minute, *series.names), _Count())
            before = len(count.half_buckets)
            count_into(count.half_buckets, part)
            count.sum_us += round(sum(part) * 1e6)
        self._keys += len(count.half_buckets) - before


def _storable(name: str) -> str:
    """A name that every database accepts: valid Unicode without NUL, at most 255 characters so that it can be indexed."""
    return name[:_MAX_NAME].encode("utf-8", "replace").decode().replace("\0", "?")
