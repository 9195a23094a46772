"""The tables of the statistics, their versions, and the table of single values."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

__all__ = ["META", "MIGRATIONS", "TRAFFIC", "read_meta", "write_meta"]

_metadata = sa.MetaData()
META = sa.Table(
    "rgate_meta", _metadata, sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False)
)
TRAFFIC = sa.Table(
    "rgate_traffic",
    _metadata,
    *(sa.Column(name, sa.Integer, primary_key=True, autoincrement=False) for name in ("span_minutes", "start_minute")),
    *(sa.Column(name, sa.Text, primary_key=True) for name in ("route", "backend", "endpoint")),
    *(sa.Column(name, sa.Integer, primary_key=True, autoincrement=False) for name in ("status", "bucket")),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("count", "sum_us")),
    sqlite_with_rowid=False,  # the key is most of the row: keep it once
)


def _create(connection: sa.Connection) -> None:
    _metadata.create_all(connection)


def _count_more_than_exchanges(connection: sa.Connection) -> None:
    """From now on there are statuses below LOST (see pending), which an earlier rgate would count as losses."""


MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (_create, _count_more_than_exchanges)
"""The n-th takes a database from schema version n to n + 1. Append; never change one that was released."""


def read_meta(connection: sa.Connection) -> dict[str, str]:
    """Everything in the table of single values; empty before the first migration."""
    if not sa.inspect(connection).has_table(META.name):
        return {}
    return {name: value for name, value in connection.execute(sa.select(META.c.name, META.c.value))}


def write_meta(connection: sa.Connection, name: str, value: str) -> None:
    connection.execute(sa.delete(META).where(META.c.name == name))
    connection.execute(sa.insert(META).values(name=name, value=value))
