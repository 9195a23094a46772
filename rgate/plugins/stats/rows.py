"""From counts to rows of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from .pending import NO_BUCKET, Counted
from .periods import Period, floor

__all__ = ["Row", "rows_of"]

Row: TypeAlias = tuple[int, int, str, str, str, int, int, int, int]
"""Span, start, route, backend, endpoint, status, bucket (together the key), count, sum of latencies in microseconds."""


def rows_of(batch: Sequence[Counted], added_up_to: int, lengths: Sequence[Period]) -> list[Row]:
    """What a batch adds to the table, in the order of the key, so that processes never wait for each other in a circle.

    Minutes up to and with `added_up_to` have been added up into hours and days already: these get theirs directly.
    """
    rows: dict[tuple[int, int, str, str, str, int, int], tuple[int, int]] = {}
    for counted in batch:
        minute, route, backend, endpoint, status = counted.key
        cells = [(NO_BUCKET, 0, counted.sum_us), *((bucket, count, 0) for bucket, count in counted.buckets().items())]
        for period in lengths if minute <= added_up_to else lengths[:1]:
            start = floor(minute, period.span_minutes)
            for bucket, count, sum_us in cells:
                key = (period.span_minutes, start, route, backend, endpoint, status, bucket)
                before = rows.get(key, (0, 0))
                rows[key] = (before[0] + count, before[1] + sum_us)
    return [(*key, *row) for key, row in sorted(rows.items())]
