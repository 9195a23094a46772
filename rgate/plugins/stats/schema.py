"""The tables of the statistics, and the migrations between their versions."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from .aggregator import NO_BUCKET, Kind

__all__ = ["META", "MIGRATIONS", "TRAFFIC", "read_meta", "write_meta"]

_metadata = sa.MetaData()
META = sa.Table(
    "rgate_meta", _metadata, sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False)
)
"""Single values: schema_version, begun (when and why the database was created), rolled_up_to, complete_from_<span>."""

TRAFFIC = sa.Table(
    "rgate_traffic",
    _metadata,
    *(sa.Column(name, sa.Integer, primary_key=True, autoincrement=False) for name in ("span_minutes", "start_minute")),
    *(sa.Column(name, sa.Text, primary_key=True) for name in ("route", "backend", "endpoint")),
    sa.Column("status", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("bucket", sa.Integer, primary_key=True, autoincrement=False),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("count", "sum_us")),
    sqlite_with_rowid=False,  # the key is most of the row: store it once
)
"""The counts. `kind` is a Kind, the unit that the row counts; `sum_us` is 0 in all rows but those of NO_BUCKET."""

_OLD = "rgate_traffic_2"


def _create(connection: sa.Connection) -> None:
    """Create the tables as they are today; the later migrations find nothing to do."""
    _metadata.create_all(connection)


def _add_negative_statuses(connection: sa.Connection) -> None:
    """Version 2 changed no table: it added rows with statuses -2 and -3, which version 1 would have read as losses."""


def _add_kind(connection: sa.Connection) -> None:
    """Version 3 has the column `kind` in place of statuses below 0, and the name `rolled_up_to` for `added_up_to`.

    The key of a table cannot be changed in SQLite, so rows are moved to a new table: one span at a time, each deleted from the
    old table before the next is copied, so that a file near its size limit does not need twice the space. The number of
    attempts beyond the first stood in `sum_us` under status -3.
    """
    if "kind" in {column["name"] for column in sa.inspect(connection).get_columns(TRAFFIC.name)}:
        return
    connection.exec_driver_sql(f"ALTER TABLE {TRAFFIC.name} RENAME TO {_OLD}")
    TRAFFIC.create(connection)
    old = sa.table(_OLD, *(sa.column(column.name) for column in TRAFFIC.columns if column.name != "kind"))
    o = old.c
    kind = sa.case({-1: Kind.LOST.value, -2: Kind.PLUGIN.value, -3: Kind.RETRIED.value}, value=o.status, else_=Kind.REQUEST.value)
    names = [o.span_minutes, o.start_minute, o.route, o.backend, o.endpoint]
    status = sa.case((o.status < 0, 0), else_=o.status)
    moved = sa.select(*names, status, kind, o.bucket, o["count"], sa.case((o.status == -3, 0), else_=o.sum_us))
    retries = sa.select(*names, status, sa.literal(Kind.RETRY.value), sa.literal(0), o.sum_us, sa.literal(0)).where(
        o.status == -3, o.bucket == NO_BUCKET
    )
    starts = sa.select(o.span_minutes, o.start_minute).distinct().order_by(o.span_minutes, o.start_minute)
    for span_minutes, start_minute in connection.execute(starts).all():
        span = sa.and_(o.span_minutes == span_minutes, o.start_minute == start_minute)
        for rows in (moved, retries):
            connection.execute(sa.insert(TRAFFIC).from_select(list(TRAFFIC.c), rows.where(span)))
        connection.execute(sa.delete(old).where(span))
    connection.exec_driver_sql(f"DROP TABLE {_OLD}")
    connection.execute(sa.update(META).where(META.c.name == "added_up_to").values(name="rolled_up_to"))


MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (_create, _add_negative_statuses, _add_kind)
"""The n-th migration takes a database from schema version n to n + 1, in one transaction with all others that are due. Append;
never change one that was released."""


def read_meta(connection: sa.Connection) -> dict[str, str]:
    """All of META; empty before the first migration."""
    if not sa.inspect(connection).has_table(META.name):
        return {}
    return {name: value for name, value in connection.execute(sa.select(META.c.name, META.c.value))}


def write_meta(connection: sa.Connection, name: str, value: str) -> None:
    """Insert or replace one value of META."""
    connection.execute(sa.delete(META).where(META.c.name == name))
    connection.execute(sa.insert(META).values(name=name, value=value))
