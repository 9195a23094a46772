"""Finished exchanges, folded into counts that wait for the database."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from rgate import ClientClosed

from .histogram import buckets, count_into

if TYPE_CHECKING:
    from rgate import Exchange, Route

__all__ = ["CLIENT_CLOSED", "LOST", "NO_BUCKET", "PLUGIN", "RETRIED", "Aggregator", "Key", "SeriesCounts"]

LOST = -1
"""The status under which exchanges are counted that a limit turned away, so that losses add up like everything else."""
PLUGIN = -2
"""The status under which the time in timed plugins is counted; the endpoint of such a key is the plugin's name."""
RETRIED = -3
"""The status under which exchanges are counted again that took more than one attempt. Their "latency" is how many more, in
microseconds, so that the sum of these is the number of attempts beyond the first."""
CLIENT_CLOSED = 499
"""The status of an exchange whose client has left before it was over; neither a success nor an error."""
NO_BUCKET = -1
"""The bucket of the row that holds a series' sum of latencies, which is not known by bucket."""

_FOLD_AT = 1_000  # latencies that may wait in one series
_MAX_NAME = 255


class Key(NamedTuple):
    """What is counted together. `minute` is whole minutes since 1970; names are "" where there is none."""

    minute: int
    route: str
    backend: str
    endpoint: str
    status: int


class SeriesCounts(NamedTuple):
    """How many exchanges of a key there were by half bucket of latency (see histogram), and the sum of their latencies."""

    key: Key
    halves: Counter[int]
    sum_us: int

    def buckets(self) -> dict[int, int]:
        """Bucket → count."""
        return buckets(self.halves)

    def total(self) -> int:
        """How many exchanges."""
        return self.halves.total()


_Names: TypeAlias = tuple[str, str, str, int]  # a key without its minute
_SeriesKey: TypeAlias = tuple[str | None, str | None, int]  # of route and endpoint the names, and the status


class _Series(list[float]):
    """Latencies in seconds of one route, endpoint and status, not yet folded."""

    __slots__ = ("names",)

    def __init__(self, names: _Names) -> None:
        self.names = names


class _NoSeries(_Series):
    """Stands where statistics are off: keeps nothing."""

    __slots__ = ()

    def append(self, latency_seconds: float) -> None:
        pass


@dataclass(slots=True)
class _Count:
    halves: Counter[int] = field(default_factory=Counter)
    sum_us: int = 0


class Aggregator:
    """What one process has counted and not yet saved, in bounded memory.

    `record` is the only thing that runs in request threads: it appends a float to a list, which is atomic, so that they
    never wait for each other. A list that has grown to 1,000 is folded at once by the thread that filled it, so the
    lists stay short whatever the writer thread does. `max_keys` bounds the counts (some 100 bytes each); what comes when
    there are as many is counted as lost, and nothing else is. `max_series` bounds how many routes, endpoints and statuses
    are told apart in one minute. `wall` is the time of day in seconds. Every method may be called from any thread.
    """

    def __init__(self, *, max_keys: int = 200_000, max_series: int = 10_000, wall: Callable[[], float] = time.time) -> None:
        self._series: dict[_SeriesKey, _Series] = {}
        self._retired: dict[_SeriesKey, _Series] = {}
        self._retired_minute = 0
        self._overflow = _Series(("", "", "", LOST))
        self._counts: dict[Key, _Count] = {}
        self._keys = 0
        self._lock = threading.Lock()  # of the counts; never held while the database is at work
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
            series = self._begin(key, route)
        series.append(exchange.finished - exchange.started)
        if exchange.attempts > 1:
            self._note(exchange, "", RETRIED, (exchange.attempts - 1) / 1e6)
        if len(series) >= _FOLD_AT:
            self._fold_now(series)

    def record_timed(self, exchange: Exchange) -> None:
        """Count a finished exchange, and the time in each of the timed plugins that it has been through."""
        self.record(exchange)
        for plugin, seconds in (exchange.plugin_seconds or {}).items():
            self._note(exchange, plugin, PLUGIN, max(seconds, 0.0))

    def _note(self, exchange: Exchange, name: str, status: int, value: float) -> None:
        route = exchange.route
        key = (None if route is None else route.name, name, status)
        series = self._series.get(key)
        if series is None:
            series = self._begin(key, route)
        series.append(value)
        if len(series) >= _FOLD_AT:
            self._fold_now(series)

    def fold(self) -> None:
        """Turn the exchanges recorded so far into counts of the present minute."""
        with self._lock:
            minute = self._minute()
            for series in (*self._retired.copy().values(), *self._series.copy().values(), self._overflow):
                if series:
                    self._fold(series, minute)
            if minute != self._retired_minute:
                # Names come and go; but a thread may hold a list just now and append to it in a moment: look once more.
                self._retired, self._series, self._retired_minute = self._series, {}, minute

    def batch(self, max_counts: int | None = None) -> list[SeriesCounts]:
        """Up to `max_counts` counts (default: all), oldest first. They stay until `settle`."""
        with self._lock:
            return [
                SeriesCounts(key, count.halves.copy(), count.sum_us) for key, count in islice(self._counts.items(), max_counts)
            ]

    def settle(self, batch: Sequence[SeriesCounts]) -> None:
        """Take out what a batch holds: it is saved."""
        with self._lock:
            for key, halves, sum_us in batch:
                count = self._counts[key]
                self._keys -= len(count.halves)
                count.halves -= halves
                count.sum_us -= sum_us
                self._keys += len(count.halves)
                if not count.halves:
                    del self._counts[key]

    def _begin(self, key: _SeriesKey, route: Route | None) -> _Series:
        _, endpoint, status = key
        if route is not None and route.options.get("stats", ...) is None:
            return self._series.setdefault(key, _NoSeries(("", "", "", LOST)))
        if len(self._series) >= self._max_series:
            return self._overflow if status >= 0 else _NoSeries(("", "", "", status))
        names = [
            _plain(name)
            for name in (
                "" if route is None else route.name,
                "" if route is None else route.backend.name,
                "" if endpoint is None else endpoint,
            )
        ]
        return self._series.setdefault(key, _Series((names[0], names[1], names[2], status or CLIENT_CLOSED)))

    def _fold_now(self, series: _Series) -> None:
        """Fold one list, unless another thread is at the counts."""
        if self._lock.acquire(blocking=False):
            try:
                self._fold(series, self._minute())
            finally:
                self._lock.release()

    def _minute(self) -> int:
        return int(self._wall() // 60)

    def _fold(self, series: _Series, minute: int) -> None:
        """Fold what is in a list; the lock must be ours. Others may append meanwhile."""
        part = series[:]
        del series[: len(part)]
        if self._keys >= self._max_keys and series.names[3] < LOST:
            return
        if self._keys >= self._max_keys or series.names[3] == LOST:
            count = self._counts.setdefault(Key(minute, "", "", "", LOST), _Count())
            before = len(count.halves)
            count.halves[0] += len(part)
        else:
            count = self._counts.setdefault(Key(minute, *series.names), _Count())
            before = len(count.halves)
            count_into(count.halves, part)
            count.sum_us += round(sum(part) * 1e6)
        self._keys += len(count.halves) - before


def _plain(name: str) -> str:
    """A name that every database takes: valid Unicode without NUL, and not too long for an index."""
    return name[:_MAX_NAME].encode("utf-8", "replace").decode().replace("\0", "?")
