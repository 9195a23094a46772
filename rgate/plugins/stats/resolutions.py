"""The three lengths of time that counts are kept by, and which of them answers a question.

Counts are added to their minute. Minutes that are over are added up into their hour and their day (UTC), once, and each of
the three is dropped at an age of its own. So the database has a bounded number of rows, an exchange costs it one row at
most, and a question reads a few hundred spans and the last few minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DAY_MINUTES", "Resolution", "floor", "periods", "reaching_back"]

DAY_MINUTES = 1_440


@dataclass(frozen=True, slots=True)
class Resolution:
    """Counts by `span_minutes`, kept for at least `kept_minutes`. Times are whole minutes since 1970 (UTC)."""

    span_minutes: int
    kept_minutes: int

    def oldest_kept(self, now_minute: int) -> int:
        """The first start that is still kept."""
        return floor(now_minute - self.kept_minutes, self.span_minutes)


def periods(retention_days: int) -> tuple[Resolution, ...]:
    """Finest first: minutes for three hours, hours for eight days, days for `retention_days`."""
    retention_minutes = retention_days * DAY_MINUTES
    return (
        Resolution(1, 180),
        Resolution(60, min(8 * DAY_MINUTES, retention_minutes)),
        Resolution(DAY_MINUTES, retention_minutes),
    )


def floor(minute: int, span_minutes: int) -> int:
    """The start of the span that `minute` is in."""
    return minute - minute % span_minutes


def reaching_back(
    since_minute: int | None, now_minute: int, complete_from: Mapping[Resolution, int]
) -> tuple[Resolution, int | None]:
    """The finest of the periods, finest first, that still has everything since then, and the start to read it from.

    `complete_from` says for each from when on nothing was dropped before its age. The coarsest answers what none can;
    None, which is everything, is always its.
    """
    start = None
    for period, complete in complete_from.items():
        start = None if since_minute is None else floor(since_minute, period.span_minutes)
        if start is not None and start >= max(complete, period.oldest_kept(now_minute)):
            break
    return period, start
