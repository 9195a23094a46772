"""Query: the parameters of a report, `?by=route,status&since=1h`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from rgate import QueryError

__all__ = ["BY", "BY_NAME", "Query"]

BY = ("route", "backend", "endpoint", "status", "plugin")
"""The columns of a report: requests can be divided by the first four, the time in timed plugins by plugin, route, backend."""

BY_NAME = ("route", "backend", "status")
"""Those of BY whose values are names from the config and contain no address."""

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_AHEAD_SECONDS = 60.0  # by which the clock of the client may be fast
_SINCE = "a number with s, m, h or d (30s, 15m, 1h, 7d), or an ISO 8601 time (2026-01-31T12:00:00Z)"


@dataclass(frozen=True, slots=True)
class Query:
    """`by` divides the report into groups; counts older than `since_minute` (whole minutes since 1970, UTC) are left out."""

    by: tuple[str, ...] = ()
    since_minute: int | None = None

    @classmethod
    def of(cls, by: Sequence[str], since: str | None, now_seconds: float) -> Query:
        """A query from the words of `?by=…&since=…`. A time without an offset is UTC. Raises QueryError."""
        for name in by:
            if name not in BY:
                raise QueryError(f"by={name} is not known; allowed are {', '.join(BY)}, one or several with commas between")
        if "plugin" in by and {"endpoint", "status"} & {*by}:
            raise QueryError(
                "by=plugin is allowed with route and backend only: a plugin's time is not known by endpoint or status"
            )
        return cls(tuple(dict.fromkeys(by)), None if since is None else _minute(since, now_seconds))

    @classmethod
    def parse(cls, query_string: str, now_seconds: float) -> Query:
        """A query from the query string of a URL. Raises QueryError."""
        by: list[str] = []
        since: str | None = None
        for name, value in parse_qsl(query_string, keep_blank_values=True):
            if name == "by":
                by += value.split(",")
            elif name == "since" and since is None:
                since = value
            elif name == "since":
                raise QueryError("since is given twice")
            else:
                raise QueryError(f"{name} is not known; allowed are by and since")
        return cls.of(by, since, now_seconds)


def _minute(since: str, now_seconds: float) -> int:
    if match := re.fullmatch(r"([0-9]{1,9})([smhd])", since):
        seconds = now_seconds - int(match[1]) * _SECONDS[match[2]]
    else:
        try:
            # In a URL, the + of an offset is decoded to a space.
            moment = datetime.fromisoformat(since.replace(" ", "+") if "T" in since else since)
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise QueryError(f"since={since} cannot be read; allowed is {_SINCE}") from None
    if seconds > now_seconds + _AHEAD_SECONDS:
        raise QueryError(f"since={since} is in the future; allowed is {_SINCE}")
    return int(min(max(0.0, seconds), now_seconds) // 60)
