"""The report: sums by bucket in, success and error counts, average and percentiles out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from .aggregator import CLIENT_CLOSED, LOST, NO_BUCKET, PLUGIN, RETRIED, Key, SeriesCounts
from .histogram import percentiles_seconds
from .query import Query

__all__ = ["PluginTimeRow", "QueryResult", "Report", "TrafficRow", "report"]

_PERCENTS = (95, 99)


class TrafficRow(NamedTuple):
    """Counts that share a latency bucket and the values they are divided by (in the order of `Query.by`)."""

    group: tuple[str | int, ...]
    bucket: int
    success: int = 0
    errors: int = 0
    lost: int = 0
    retried: int = 0
    extra_attempts: int = 0
    sum_us: int = 0
    client_closed: int = 0


class PluginTimeRow(NamedTuple):
    """Times in plugins that share a bucket and the values that they are divided by."""

    group: tuple[str, ...]
    bucket: int
    times: int
    sum_us: int


@dataclass(slots=True)
class _Tally:
    success: int = 0
    errors: int = 0
    retried: int = 0
    extra_attempts: int = 0
    sum_us: int = 0
    client_closed: int = 0
    buckets: Counter[int] = field(default_factory=Counter)

    def add(self, sums: TrafficRow) -> None:
        self.success += sums.success
        self.errors += sums.errors
        self.retried += sums.retried
        self.extra_attempts += sums.extra_attempts
        self.sum_us += sums.sum_us
        self.client_closed += sums.client_closed
        if count := sums.success + sums.errors:
            self.buckets[sums.bucket] += count

    def json(self, with_retries: bool) -> dict[str, Any]:
        counts = {"success": self.success, "error": self.errors}
        if self.client_closed:
            counts["client_closed"] = self.client_closed
        answer: dict[str, Any] = {
            "requests_count": counts,
            "latency_ms": _latency_ms(self.success + self.errors, self.sum_us, self.buckets),
        }
        if with_retries and self.retried:
            answer["retries"] = {"requests": self.retried, "attempts": self.retried + self.extra_attempts}
        return answer


@dataclass(slots=True)
class _SpentTally:
    times: int = 0
    sum_us: int = 0
    buckets: Counter[int] = field(default_factory=Counter)

    def add(self, spent: PluginTimeRow) -> None:
        self.times += spent.times
        self.sum_us += spent.sum_us
        if spent.times:
            self.buckets[spent.bucket] += spent.times

    def json(self) -> dict[str, Any]:
        return {"count": self.times, "latency_ms": _latency_ms(self.times, self.sum_us, self.buckets)}


def _latency_ms(count: int, sum_us: int, buckets: Counter[int]) -> dict[str, float]:
    average_seconds = sum_us / 1e6 / count if count else 0.0
    seconds = (average_seconds, *percentiles_seconds(buckets, _PERCENTS))
    average, p95, p99 = (round(each * 1000, 3) for each in seconds)
    return {"average": average, "p95": p95, "p99": p99}


class QueryResult(NamedTuple):
    """What a database holds from `since_minute` on (None: all of it), and when and why it had to be begun anew, if it had."""

    since_minute: int | None
    rows: Sequence[TrafficRow] = ()
    spent: Sequence[PluginTimeRow] = ()
    begun: dict[str, str] | None = None


class Report:
    """Adds up what it is given and makes the answer of it. `state` is the database's, "ok" or a Trouble's."""

    def __init__(self, query: Query) -> None:
        self.state = "ok"
        self._by = query.by
        self._since_minute = query.since_minute
        self._begun: dict[str, str] | None = None
        self._lost = 0
        self._unsaved = 0
        self._total = _Tally()
        self._groups: dict[tuple[str | int, ...], _Tally] = {}
        self._plugins: dict[tuple[str, ...], _SpentTally] = {}

    def add_reading(self, reading: QueryResult) -> None:
        """Add what a database holds. It may reach back further than was asked, when only whole hours or days are kept."""
        self._since_minute = reading.since_minute
        self._begun = reading.begun
        for sums in reading.rows:
            self._add(sums)
        for spent in reading.spent:
            self._add_spent(spent)

    def add_unsaved(self, counted: Iterable[SeriesCounts]) -> None:
        """Add what is in no database, as far as it was asked for. Comes after `add_reading`."""
        divided = ["endpoint" if name == "plugin" else name for name in self._by]
        positions = [Key._fields.index(name) for name in divided]
        for each in counted:
            minute, status = each.key.minute, each.key.status
            self._unsaved += each.total() if status >= 0 else 0
            if self._since_minute is not None and minute < self._since_minute:
                continue
            group = tuple(each.key[at] for at in positions)
            if status == RETRIED:
                self._add(TrafficRow(group, NO_BUCKET, retried=each.total(), extra_attempts=each.sum_us))
            elif status == LOST:
                self._add(TrafficRow(group, NO_BUCKET, lost=each.total()))
            elif status == CLIENT_CLOSED:
                self._add(TrafficRow(group, NO_BUCKET, client_closed=each.total()))
            elif status != PLUGIN:
                for bucket, count in each.buckets().items():
                    self._add(TrafficRow(group, bucket, *((count, 0) if status < 400 else (0, count))))
                self._add(TrafficRow(group, NO_BUCKET, sum_us=each.sum_us))
            elif "plugin" in self._by:
                for bucket, count in each.buckets().items():
                    self._add_spent(PluginTimeRow(tuple(map(str, group)), bucket, count, 0))
                self._add_spent(PluginTimeRow(tuple(map(str, group)), NO_BUCKET, 0, each.sum_us))

    def json(self) -> dict[str, Any]:
        """The answer, ready for JSON: counts and latencies, then `since` and `groups` if asked for, `storage` if not well.

        Where more than the plain report is asked for, `retries` says how many requests took more than one attempt, and how
        many attempts these took; it is absent when there were none.

        `storage` holds `state`, `lost` (exchanges that are in no count), `unsaved` (in the counts, not in the database)
        and, when the database was begun anew, `begun`: at what time and because of what.
        """
        answer = self._total.json(with_retries=bool(self._by) or self._since_minute is not None)
        if self._since_minute is not None:
            answer["since"] = f"{datetime.fromtimestamp(self._since_minute * 60, UTC):%Y-%m-%dT%H:%M:%SZ}"
        if "plugin" in self._by:
            answer["groups"] = [self._named(group) | spent.json() for group, spent in sorted(self._plugins.items())]
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

    def _add(self, sums: TrafficRow) -> None:
        self._lost += sums.lost
        self._total.add(sums)
        if not self._by or "plugin" in self._by:
            return
        if {"endpoint", "status"} & {*self._by}:  # a retried request has several of them
            sums = sums._replace(retried=0, extra_attempts=0)
        if any(sums._replace(group=(), bucket=0, lost=0)[1:]):
            self._groups.setdefault(sums.group, _Tally()).add(sums)

    def _add_spent(self, spent: PluginTimeRow) -> None:
        self._plugins.setdefault(spent.group, _SpentTally()).add(spent)


def report(database_url: str, by: Sequence[str] = (), since: str | None = None) -> dict[str, Any]:
    """What a database holds, in the form of `/stats`, with or without a gateway running. Changes nothing.

    `by` holds names of `BY`, `since` is as in the URL. Raises QueryError for what cannot be asked, PluginError for a URL
    that cannot be used, Trouble for a database that cannot be read.
    """
    from .store import Store  # only when it is needed: SQLAlchemy takes 0.3 s and 25 MB

    now_seconds = time.time()
    query = Query.of(by, since, now_seconds)
    answer = Report(query)
    with closing(Store(database_url, read_only=True)) as store:
        answer.add_reading(store.read(query.by, query.since_minute, int(now_seconds // 60)))
    return answer.json()
