"""From counts to what is added to the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from .aggregator import SeriesCounts
from .resolutions import Resolution, floor

__all__ = ["Rows", "rows_of"]

Rows: TypeAlias = tuple[int, int, str, str, str, int, int, dict[int, int]]
"""Span, start, route, backend, endpoint, status, sum of latencies in microseconds, bucket → count."""


def rows_of(batch: Sequence[SeriesCounts], added_up_to: int, lengths: Sequence[Resolution]) -> list[Rows]:
    """What a batch adds to the table, in the order of the key, so that processes never wait for each other in a circle.

    Minutes up to and with `added_up_to` have been added up into hours and days already: these get theirs directly.
    """
    sums: Counter[tuple[int, int, str, str, str, int]] = Counter()
    buckets: dict[tuple[int, int, str, str, str, int], Counter[int]] = {}
    for counted in batch:
        minute, route, backend, endpoint, status = counted.key
        for period in lengths if minute <= added_up_to else lengths[:1]:
            key = (period.span_minutes, floor(minute, period.span_minutes), route, backend, endpoint, status)
            sums[key] += counted.sum_us
            buckets.setdefault(key, Counter()).update(counted.buckets())
    return [(*key, sums[key], dict(buckets[key])) for key in sorted(buckets)]
