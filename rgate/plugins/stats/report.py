"""Report: adds up counts by latency bucket and makes the answer of `/stats`: counts, average and percentiles."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rgate import RgateError

from .aggregator import CLIENT_CLOSED, NO_BUCKET, Key, Kind, SeriesCounts
from .histogram import percentiles_seconds
from .query import Query

__all__ = ["PluginTimeRow", "QueryResult", "Report", "StorageError", "TrafficRow", "report"]

_PERCENTS = (95, 99)


class StorageError(RgateError):
    """The database cannot be read or written at the moment. The message is for the log.

    `state` is shown by `/stats`: "locked", "read_only", "full", "corrupt", "newer" (written by a later version of rgate),
    "older" (by an earlier one, and open for reading only) or "unavailable" (missing, unreachable, anything else).
    """

    def __init__(self, state: str, message: str) -> None:
        super().__init__(message)
        self.state = state


class TrafficRow(NamedTuple):
    """Counts of one latency bucket and one group; `group` has the values of `Query.by`, in its order."""

    group: tuple[str | int, ...]
    bucket: int
    success: int = 0
    errors: int = 0
    lost: int = 0
    retried: int = 0
    retries: int = 0
    sum_us: int = 0
    client_closed: int = 0


class PluginTimeRow(NamedTuple):
    """Times spent in plugins, of one bucket and one group."""

    group: tuple[str, ...]
    bucket: int
    times: int
    sum_us: int


class QueryResult(NamedTuple):
    """The contents of a database since `since_minute` (None: all of it). `begun` says when and why the database was created, if
    it replaced one whose counts were lost."""

    since_minute: int | None
    rows: Sequence[TrafficRow] = ()
    plugin_times: Sequence[PluginTimeRow] = ()
    begun: dict[str, str] | None = None


@dataclass(slots=True)
class _Tally:
    success: int = 0
    errors: int = 0
    retried: int = 0
    retries: int = 0
    sum_us: int = 0
    client_closed: int = 0
    buckets: Counter[int] = field(default_factory=Counter)

    def add(self, row: TrafficRow) -> None:
        self.success += row.success
        self.errors += row.errors
        self.retried += row.retried
        self.retries += row.retries
        self.sum_us += row.sum_us
        self.client_closed += row.client_closed
        if count := row.success + row.errors:
            self.buckets[row.bucket] += count

    def json(self, with_retries: bool) -> dict[str, Any]:
        counts = {"success": self.success, "error": self.errors}
        if self.client_closed:
            counts["client_closed"] = self.client_closed
        answer: dict[str, Any] = {
            "requests_count": counts,
            "latency_ms": _latency_ms(self.success + self.errors, self.sum_us, self.buckets),
        }
        if with_retries and self.retried:
            answer["retries"] = {"requests": self.retried, "attempts": self.retried + self.retries}
        return answer


@dataclass(slots=True)
class _PluginTally:
    times: int = 0
    sum_us: int = 0
    buckets: Counter[int] = field(default_factory=Counter)

    def add(self, row: PluginTimeRow) -> None:
        self.times += row.times
        self.sum_us += row.sum_us
        if row.times:
            self.buckets[row.bucket] += row.times

    def json(self) -> dict[str, Any]:
        return {"count": self.times, "latency_ms": _latency_ms(self.times, self.sum_us, self.buckets)}


def _latency_ms(count: int, sum_us: int, buckets: Counter[int]) -> dict[str, float]:
    average_seconds = sum_us / 1e6 / count if count else 0.0
    seconds = (average_seconds, *percentiles_seconds(buckets, _PERCENTS))
    average, p95, p99 = (round(each * 1000, 3) for each in seconds)
    return {"average": average, "p95": p95, "p99": p99}


class Report:
    """Adds up saved and unsaved counts. `state` is that of the database: "ok", "busy", or the state of a StorageError."""

    def __init__(self, query: Query) -> None:
        self.state = "ok"
        self._by = query.by
        self._since_minute = query.since_minute
        self._begun: dict[str, str] | None = None
        self._lost = 0
        self._unsaved = 0
        self._total = _Tally()
        self._groups: dict[tuple[str | int, ...], _Tally] = {}
        self._plugins: dict[tuple[str, ...], _PluginTally] = {}

    def add_saved(self, result: QueryResult) -> None:
        """Add the contents of a database. They may reach further back than the query where only hours or days are kept."""
        self._since_minute = result.since_minute
        self._begun = result.begun
        for row in result.rows:
            self._add(row)
        for plugin_time in result.plugin_times:
            self._add_plugin_time(plugin_time)

    def add_unsaved(self, counted: Iterable[SeriesCounts]) -> None:
        """Add counts that are not in a database, as far as the query asks for them. Call it after `add_saved`."""
        divided = ["endpoint" if name == "plugin" else name for name in self._by]
        positions = [Key._fields.index(name) for name in divided]
        for each in counted:
            key, total = each.key, each.total()
            self._unsaved += total if key.kind is Kind.REQUEST else 0
            if self._since_minute is not None and key.minute < self._since_minute:
                continue
            group = tuple(key[at] for at in positions)
            match key.kind:
                case Kind.LOST:
                    self._add(TrafficRow(group, NO_BUCKET, lost=total))
                case Kind.RETRIED:
                    self._add(TrafficRow(group, NO_BUCKET, retried=total))
                case Kind.RETRY:
                    self._add(TrafficRow(group, NO_BUCKET, retries=total))
                case Kind.REQUEST if key.status == CLIENT_CLOSED:
                    self._add(TrafficRow(group, NO_BUCKET, client_closed=total))
                case Kind.REQUEST:
                    for bucket, count in each.buckets().items():
                        self._add(TrafficRow(group, bucket, *((count, 0) if key.status < 400 else (0, count))))
                    self._add(TrafficRow(group, NO_BUCKET, sum_us=each.sum_us))
                case Kind.PLUGIN if "plugin" in self._by:
                    names = tuple(map(str, group))
                    for bucket, count in each.buckets().items():
                        self._add_plugin_time(PluginTimeRow(names, bucket, count, 0))
                    self._add_plugin_time(PluginTimeRow(names, NO_BUCKET, 0, each.sum_us))

    def json(self) -> dict[str, Any]:
        """The answer, ready for JSON: counts and latencies, then `since` and `groups` if requested, and `storage`.

        `retries` is present when the query has `by` or `since` and there were retries: how many requests took more than one
        attempt, and how many attempts these took in all.

        `storage` is present when there is something to report: `state`, `lost` (exchanges that are in no count), `unsaved` (in
        the counts, but not in the database) and `begun`, at what time and why the database was created again.
        """
        answer = self._total.json(with_retries=bool(self._by) or self._since_minute is not None)
        if self._since_minute is not None:
            answer["since"] = f"{datetime.fromtimestamp(self._since_minute * 60, UTC):%Y-%m-%dT%H:%M:%SZ}"
        if "plugin" in self._by:
            answer["groups"] = [self._named(group) | tally.json() for group, tally in sorted(self._plugins.items())]
        elif self._by:
            answer["groups"] = [
                self._named(group) | tally.json(with_retries=True) for group, tally in sorted(self._groups.items())
            ]
        if self.state != "ok" or self._lost or self._begun:
            answer["storage"] = {"state": self.state, "lost": self._lost, "unsaved": self._unsaved}
            if self._begun:
                answer["storage"]["begun"] = self._begun
        return answer

    def _named(self, group: tuple[str | int, ...]) -> dict[str, Any]:
        return {name: None if value == "" else value for name, value in zip(self._by, group, strict=True)}

    def _add(self, row: TrafficRow) -> None:
        self._lost += row.lost
        self._total.add(row)
        if not self._by or "plugin" in self._by:
            return
        if {"endpoint", "status"} & {*self._by}:  # a retried request has several of them
            row = row._replace(retried=0, retries=0)
        if any(row._replace(group=(), bucket=0, lost=0)[1:]):
            self._groups.setdefault(row.group, _Tally()).add(row)

    def _add_plugin_time(self, row: PluginTimeRow) -> None:
        self._plugins.setdefault(row.group, _PluginTally()).add(row)


def report(database_url: str, by: Sequence[str] = (), since: str | None = None) -> dict[str, Any]:
    """The contents of a database in the form of `/stats`; no gateway has to be running, and nothing is changed.

    `by` holds names of `BY`, `since` is as in the URL. Raises QueryError for a query that cannot be answered, PluginError for a
    URL that cannot be used, StorageError for a database that cannot be read.
    """
    from .store import Store  # imported late: SQLAlchemy takes 0.3 s and 25 MB

    now_seconds = time.time()
    query = Query.of(by, since, now_seconds)
    answer = Report(query)
    with closing(Store(database_url, read_only=True)) as store:
        answer.add_saved(store.read(query.by, query.since_minute, int(now_seconds // 60)))
    return answer.json()
