"""The three resolutions that counts are kept in, and the rows that a batch of counts adds to them.

Counts are added to their minute. A minute that is over is rolled up once into its hour and its day (UTC), and each resolution
is dropped at an age of its own. So the database has a bounded number of rows, an exchange costs at most one row, and a query
reads a few hundred spans and the last few minutes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .aggregator import Kind, SeriesCounts

__all__ = ["DAY_MINUTES", "Resolution", "UpsertRow", "finest_covering", "floor", "resolutions", "rows_of"]

DAY_MINUTES = 1_440

UpsertRow: TypeAlias = tuple[int, int, str, str, str, int, Kind, int, dict[int, int]]
"""Span, start, route, backend, endpoint, status, kind, sum of latencies in microseconds, bucket → count."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """Counts by `span_minutes`, kept for at least `kept_minutes`. Times are whole minutes since 1970 (UTC)."""

    span_minutes: int
    kept_minutes: int

    def oldest_kept(self, now_minute: int) -> int:
        """The first start that is still kept."""
        return floor(now_minute - self.kept_minutes, self.span_minutes)


def resolutions(retention_days: int) -> tuple[Resolution, ...]:
    """Finest first: minutes for three hours, hours for eight days, days for `retention_days`."""
    retention_minutes = retention_days * DAY_MINUTES
    return (
        Resolution(1, 180),
        Resolution(60, min(8 * DAY_MINUTES, retention_minutes)),
        Resolution(DAY_MINUTES, retention_minutes),
    )


def floor(minute: int, span_minutes: int) -> int:
    """The start of the span that contains `minute`."""
    return minute - minute % span_minutes


def finest_covering(
    since_minute: int | None, now_minute: int, complete_from: Mapping[Resolution, int]
) -> tuple[Resolution, int | None]:
    """The finest resolution that still has every count since `since_minute`, and the start to read it from.

    `complete_from` has the resolutions, finest first, and for each the minute since which nothing was dropped before its age.
    If none of them covers the time, the coarsest is returned, as it is for None, which asks for everything.
    """
    start = None
    for resolution, complete in complete_from.items():
        start = None if since_minute is None else floor(since_minute, resolution.span_minutes)
        if start is not None and start >= max(complete, resolution.oldest_kept(now_minute)):
            break
    return resolution, start


def rows_of(batch: Sequence[SeriesCounts], rolled_up_to: int, kept: Sequence[Resolution]) -> list[UpsertRow]:
    """The rows that a batch adds to the table, in key order, so that two processes never deadlock on row locks.

    Minutes up to and including `rolled_up_to` are already rolled up into hours and days, so counts of these minutes are added
    to all resolutions; later ones to the minutes alone.
    """
    sums: Counter[tuple[int, int, str, str, str, int, Kind]] = Counter()
    buckets: dict[tuple[int, int, str, str, str, int, Kind], Counter[int]] = {}
    for counted in batch:
        minute, route, backend, endpoint, status, kind = counted.key
        for resolution in kept if minute <= rolled_up_to else kept[:1]:
            key = (resolution.span_minutes, floor(minute, resolution.span_minutes), route, backend, endpoint, status, kind)
            sums[key] += counted.sum_us
            buckets.setdefault(key, Counter()).update(counted.buckets())
    return [(*key, sums[key], dict(buckets[key])) for key in sorted(buckets)]
