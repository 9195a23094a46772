"""The options of the statistics: `plugins: {stats: …}` in config.yml."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rgate import IPAllowlist

__all__ = ["DIALECTS", "StatsOptions"]

DIALECTS = ("sqlite", "postgresql")


class StatsOptions(BaseModel):
    """What the statistics are kept in, how long, and where they are shown.

    database        SQLAlchemy URL. Default "sqlite:///rgate.db": a file in the current directory ("sqlite:////var/lib/…"
                    is absolute). sqlite or postgresql (whose driver is yours to install). Worker processes, and for
                    postgresql machines too, may share one: counts add up
    path            where they are answered. Default "/stats"
    allow           networks whose machines get an answer on the gateway's port; anybody else's requests go on to the routes.
                    Default None: this machine, as far as it can be told
    hosts           names by which they may ask for it, beside its addresses and localhost. Default ()
    flush_seconds   how often counts go to the database; what `kill -9` may lose. Default 0.5, 0.05 to 1
    retention_days  how long counts are kept. Default 30, 1 to 3,650. By the minute they are kept for 3 hours, by the hour
                    for 8 days, by the day for all of it
    max_megabytes   the most that an sqlite file may grow to (one megabyte is 1,048,576 bytes). From 3/4 of it on the oldest
                    counts by the minute go first. Default 256, 1 to 1,000,000
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    database: str = "sqlite:///rgate.db"
    path: str = "/stats"
    allow: tuple[str, ...] | None = None
    hosts: tuple[str, ...] = ()
    flush_seconds: Annotated[float, Field(ge=0.05, le=1)] = 0.5
    retention_days: Annotated[int, Field(ge=1, le=3_650)] = 30
    max_megabytes: Annotated[int, Field(ge=1, le=1_000_000)] = 256

    @field_validator("database")
    @classmethod
    def _names_a_database(cls, url: str) -> str:
        scheme, separator, rest = url.partition("://")
        if not separator or scheme.partition("+")[0] not in DIALECTS:
            raise ValueError(f"must be a URL that begins with {' or '.join(f'{name}://' for name in DIALECTS)}")
        if scheme.startswith("sqlite") and rest.strip("/") in ("", ":memory:"):
            raise ValueError("names no file; sqlite:///rgate.db is a file in the current directory")
        return url

    @field_validator("allow")
    @classmethod
    def _are_networks(cls, allow: tuple[str, ...] | None) -> tuple[str, ...] | None:
        IPAllowlist(allow or ())
        return allow

    @field_validator("path")
    @classmethod
    def _is_a_path(cls, path: str) -> str:
        if not path.startswith("/") or any(c in "?#%" or not "!" <= c <= "~" for c in path):
            raise ValueError("must begin with / and hold plain characters only")
        return path
