"""The counts in SQL: one table that is added to, and dropped from by age. The one module that knows SQLAlchemy.

A row is keyed by span (minute, hour, day), start, route, backend, endpoint, status and latency bucket. Adding is an upsert,
so processes that share a database need not know of each other. Each minute is added up into its hour and day once it is
over; `added_up_to` in the other table is the last such minute, and what still comes for it goes to all three at once.

A batch is one JSON parameter that the database takes apart itself: row by row the sqlite3 module would let go of the
interpreter and wait for it again, which took 54 ms of processor time for 450 rows beside two busy threads, where one
statement takes 4.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from rgate import PluginError

from .aggregator import CLIENT_CLOSED, LOST, NO_BUCKET, PLUGIN, RETRIED, SeriesCounts
from .databases import READ, WRITE, WRITE_AT_ONCE, postgresql_engine, sqlite_engine
from .options import DIALECTS
from .report import PluginTimeRow, QueryResult, TrafficRow
from .resolutions import Resolution, floor, periods, reaching_back
from .rows import rows_of
from .schema import META, MIGRATIONS, TRAFFIC, read_meta, write_meta
from .sqlite_file import SqliteFile
from .storage_error import StorageError

__all__ = ["Store"]

_PAGE_BYTES = 4_096
_SQLITE_STATES = {  # sqlite.org/rescode
    5: "locked",
    6: "locked",
    8: "read_only",
    11: "corrupt",
    13: "full",
    14: "read_only",  # neither opened nor made
    26: "corrupt",
}
_log = logging.getLogger("rgate.plugins.stats")
_t = TRAFFIC.c


class _Span(NamedTuple):
    start_minute: int
    requests: int


class Store:
    """The database at a SQLAlchemy URL (sqlite or postgresql). Opened when first used, and again after trouble.

    One thread at a time. Every method but `close` raises Trouble when the database does not play along, within about
    half a second for sqlite; nothing is half added then. A corrupt sqlite file is renamed and a new one begun.
    `read_only` changes and repairs nothing. Raises PluginError for a URL that cannot be used or a driver that is missing.
    """

    def __init__(
        self,
        url: str,
        *,
        retention_days: int = 30,
        max_megabytes: int = 256,
        read_only: bool = False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._max_pages = max_megabytes * 1024 * 1024 // _PAGE_BYTES
        self._read_only = read_only
        self._wall = wall
        self._periods = periods(retention_days)
        self._engine, self._file = self._prepared(url)
        self._add = _addition(self._engine.dialect.name)
        self._add_if = _addition(self._engine.dialect.name, if_added_up_to=True)
        self._added_up_to = -1  # as last seen
        self._opened = False
        self._because = ""

    def add(self, batch: Sequence[SeriesCounts]) -> None:
        """Add counts: all of them or, when it raises, none."""
        if self._file and self._added_at_once(batch):
            return
        with self._transaction(WRITE) as connection:
            self._added_up_to = _added_up_to(connection)
            connection.execute(self._add, {"rows": json.dumps(rows_of(batch, self._added_up_to, self._periods))})

    def _added_at_once(self, batch: Sequence[SeriesCounts]) -> bool:
        """Add counts in one statement; False, and nothing is added, when minutes have been added up since the last time.

        So the file is locked for a few milliseconds of sqlite's own. In a transaction of several statements this thread would
        have to wait for the interpreter before each, busy as it is with requests, and every other process for this one.
        """
        rows = json.dumps(rows_of(batch, self._added_up_to, self._periods))
        with self._transaction(WRITE_AT_ONCE) as connection:
            connection.execute(self._add_if, {"rows": rows, "added_up_to": str(self._added_up_to)})
            return bool(connection.exec_driver_sql("SELECT changes()").scalar_one())

    def read(self, by: Sequence[str], since_minute: int | None, now_minute: int) -> QueryResult:
        """Sums by latency bucket, divided by the columns `by`, from the finest counts that reach back to `since_minute`."""
        with self._transaction(READ) as connection:
            meta = read_meta(connection)
            if not meta:
                return QueryResult(since_minute)
            start, these = self._these(since_minute, now_minute, meta)
            divided = by if "plugin" not in by else ()
            rows = [
                TrafficRow(tuple(row[: len(divided)]), *map(int, row[len(divided) :]))
                for row in connection.execute(_requests(divided).where(these))
            ]
            spent = []
            if "plugin" in by:
                found = connection.execute(_in_plugins(by).where(these))
                spent = [PluginTimeRow(tuple(row[: len(by)]), *map(int, row[len(by) :])) for row in found]
            begun = json.loads(meta["begun"])
            begun_minute = datetime.fromisoformat(begun["at"]).timestamp() // 60
        recent = begun_minute >= self._periods[-1].oldest_kept(now_minute)
        return QueryResult(start, rows, spent, begun if recent and begun["because"] else None)

    def tidy(self, now_minute: int) -> bool:
        """One step of what is to be done every minute: True when there may be more.

        Adds minutes that are over up into hours and days, then drops one span that is past its age, then, while the file
        is nearly full, the oldest there is, minutes first. When it is so full that nothing can be added up, the oldest minute
        is counted as lost.
        """
        try:
            with self._transaction(WRITE) as connection:
                if _add_up(connection, now_minute - 2, self._periods):  # what a process has not saved yet is younger
                    return True
                for period in self._periods:
                    if _dropped(connection, period, before=period.oldest_kept(now_minute)) is not None:
                        return True
                return self._crowded(connection) and self._make_room(connection, now_minute)
        except StorageError as trouble:
            if trouble.state != "full":
                raise
        with self._transaction(WRITE) as connection:
            return self._lose_oldest(connection, now_minute) or self._make_room(connection, now_minute)

    def close(self) -> None:
        """Let go of the connection; the next use opens it again."""
        self._engine.dispose()
        self._opened = False

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sa.Connection]:
        try:
            self._open()
            with self._engine.connect().execution_options(sqlite_begin=begin) as connection, connection.begin():
                yield connection
            if begin != READ and self._file and self._file.moved():
                raise FileNotFoundError("the file was moved away while it was written to")
        except (SQLAlchemyError, OSError, LookupError, ValueError) as error:  # the last two: not what rgate writes
            raise self._trouble(error) from error

    def _open(self) -> None:
        if self._opened and self._file and self._file.moved():
            _log.warning("statistics: %s is no longer the file it was; opening what is there now", self._file.path)
            self.close()
        if self._opened:
            return
        if self._file:
            self._file.note()
            if self._read_only and not self._file.noted:
                raise FileNotFoundError(f"there is no {self._file.path}")
            if not self._file.noted and "mode" not in self._engine.url.query:  # which may say that none is to be made
                self._file.create()
                self._file.note()
        with self._engine.connect().execution_options(sqlite_begin=READ) as connection, connection.begin():
            version = int(read_meta(connection).get("schema_version", 0))
        if version > len(MIGRATIONS):
            raise StorageError("newer", f"its schema has version {version}; this rgate knows up to {len(MIGRATIONS)}")
        if version < len(MIGRATIONS) and not self._read_only:
            self._migrate()
        if self._file and not self._file.noted:
            self._file.note()
        self._opened = True
        self._because = "the counts had vanished"  # if it comes to another beginning in this process

    def _migrate(self) -> None:
        with self._engine.connect().execution_options(sqlite_begin=WRITE) as connection, connection.begin():
            version = int(read_meta(connection).get("schema_version", 0))  # again: another process may have been quicker
            for migration in MIGRATIONS[version:]:
                migration(connection)
            if version == 0:
                at = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="seconds")
                write_meta(connection, "begun", json.dumps({"at": at, "because": self._because}))
                write_meta(connection, "added_up_to", str(int(self._wall() // 60) - 1))
            write_meta(connection, "schema_version", str(len(MIGRATIONS)))

    def _these(
        self, since_minute: int | None, now_minute: int, meta: dict[str, str]
    ) -> tuple[int | None, sa.ColumnElement[bool]]:
        """The rows that answer for the time since then, and where they begin."""
        complete_from = {period: int(meta.get(_complete_from(period), 0)) for period in self._periods}
        period, start = reaching_back(since_minute, now_minute, complete_from)
        these = sa.and_(_t.span_minutes == period.span_minutes, _t.start_minute >= (start or 0))
        if period.span_minutes > 1:
            not_in_these = max(start or 0, int(meta["added_up_to"]) + 1)
            these = sa.or_(these, sa.and_(_t.span_minutes == 1, _t.start_minute >= not_in_these))
        return start, these

    def _crowded(self, connection: sa.Connection) -> bool:
        if self._file is None:
            return False
        pages, free = (connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("page_count", "freelist_count"))
        return bool(pages - free > self._max_pages * 3 // 4)

    def _make_room(self, connection: sa.Connection, now_minute: int) -> bool:
        before = min(now_minute - 1, _added_up_to(connection) + 1)
        for period in self._periods:
            dropped = _dropped(connection, period, before=floor(before, period.span_minutes))
            if dropped is not None:
                write_meta(connection, _complete_from(period), str(dropped.start_minute + period.span_minutes))
                return True
        return False

    def _lose_oldest(self, connection: sa.Connection, now_minute: int) -> bool:
        dropped = _dropped(connection, self._periods[0], before=now_minute)
        if dropped is None:
            return False
        if dropped.start_minute > _added_up_to(connection):
            connection.execute(self._add, {"rows": json.dumps([(1, now_minute, "", "", "", LOST, 0, {0: dropped.requests})])})
        return True

    def _trouble(self, error: Exception) -> StorageError:
        self.close()
        cause = getattr(error, "orig", None) or error
        state = _SQLITE_STATES.get(getattr(cause, "sqlite_errorcode", 0) & 0xFF, "unavailable")
        if state == "corrupt" and self._file and not self._read_only:
            try:
                name = self._file.set_aside(self._wall())
            except OSError as failure:
                return StorageError(state, f"{cause}; not set aside: {failure}")
            if name:
                self._because = f"the file was corrupt and is set aside as {name}"
                _log.error("statistics: %s is corrupt (%s); set aside as %s, a new one is begun", self._file.path, cause, name)
        where = f"{self._file.path}: " if self._file else ""
        way_out = ""
        if state == "read_only" and self._file and not self._read_only:
            there = self._file.path.parent.is_dir()
            able = f"let the user with the number {os.geteuid()} write it and its folder" if there else "make its folder"
            way_out = f"; {able}, or name another file in plugins.stats.database"
        return StorageError(state, f"{where}{cause}{way_out}")

    def _prepared(self, text: str) -> tuple[sa.Engine, SqliteFile | None]:
        try:
            url = make_url(text)
            dialect = url.get_backend_name()
            if dialect == "sqlite":
                path = url.database or ""
                if path.startswith("file:"):
                    path = urlsplit(path).path
                else:
                    path = os.path.abspath(path)
                    url = url.set(database=path)
                return sqlite_engine(url, self._max_pages, self._read_only), SqliteFile(path)
            if dialect == "postgresql":
                return postgresql_engine(url), None
        except (ArgumentError, ImportError) as error:
            raise PluginError(f"plugin 'stats': the database cannot be used: {error}") from error
        raise PluginError(f"plugin 'stats': the database cannot be used: {dialect} is none of {', '.join(DIALECTS)}")


def _addition(dialect: str, *, if_added_up_to: bool = False) -> sa.Executable:
    """INSERT … SELECT from the JSON parameter `rows` (a list of Rows), adding to rows that are there.

    With `if_added_up_to` it adds nothing unless minutes have been added up to and with the parameter of that name.
    """
    rows = sa.bindparam("rows", type_=sa.Text)
    names = ("span_minutes", "start_minute", "route", "backend", "endpoint", "status", "sum_us")
    fields: list[sa.ColumnElement[Any]]
    if dialect == "sqlite":
        item = sa.func.json_each(rows).table_valued("value").c.value
        fields = [sa.func.json_extract(item, f"$[{at}]") for at in range(len(names) + 1)]
        each_bucket = sa.func.json_each
    else:
        item = sa.func.jsonb_array_elements(sa.cast(rows, JSONB)).table_valued(sa.Column("value", JSONB)).c.value
        fields = [*(sa.cast(item[at].astext, _t[name].type) for at, name in enumerate(names)), item[len(names)]]
        each_bucket = sa.func.jsonb_each_text
    labelled = [field.label(name) for field, name in zip(fields, (*names, "buckets"), strict=True)]
    these = sa.select(*labelled)
    if if_added_up_to:
        these = these.where(sa.exists().where(META.c.name == "added_up_to", META.c.value == sa.bindparam("added_up_to")))
    series = these.cte("series").prefix_with("MATERIALIZED")  # not taken apart again for every bucket
    bucket = each_bucket(series.c.buckets).table_valued("key", "value")
    key = [series.c[name] for name in names[:-1]]
    new = sa.select(*key, sa.cast(bucket.c.key, sa.Integer), sa.cast(bucket.c.value, sa.BigInteger), sa.literal(0))
    sums = sa.select(*key, sa.literal(NO_BUCKET), sa.literal(0), series.c.sum_us).where(
        sa.true()
    )  # or sqlite takes ON for JOIN's
    return _upsert(dialect, new.select_from(series.join(bucket, sa.true())).union_all(sums))


def _requests(by: Sequence[str]) -> sa.Select[Any]:
    """Sums, in the order of their fields."""
    columns = [_t[name] for name in by]
    cases = (
        (_t.status.between(0, 399), _t.count),
        (sa.and_(_t.status > 399, _t.status != CLIENT_CLOSED), _t.count),
        (_t.status == LOST, _t.count),
        (_t.status == RETRIED, _t.count),
        (_t.status == RETRIED, _t.sum_us),
        (sa.and_(_t.status >= LOST, _t.status != CLIENT_CLOSED), _t.sum_us),
        (_t.status == CLIENT_CLOSED, _t.count),
    )
    sums = (sa.func.sum(sa.case(case, else_=0)) for case in cases)
    return sa.select(*columns, _t.bucket, *sums).where(_t.status != PLUGIN).group_by(*columns, _t.bucket)


def _in_plugins(by: Sequence[str]) -> sa.Select[Any]:
    """Spent, in the order of their fields."""
    columns = [_t.endpoint if name == "plugin" else _t[name] for name in by]
    query = sa.select(*columns, _t.bucket, sa.func.sum(_t.count), sa.func.sum(_t.sum_us))
    return query.where(_t.status == PLUGIN).group_by(*columns, _t.bucket)


def _upsert(dialect: str, rows: sa.Select[Any] | sa.CompoundSelect[Any]) -> sa.Executable:
    into = sqlite.insert(TRAFFIC) if dialect == "sqlite" else postgresql.insert(TRAFFIC)
    new = into.from_select(_t.keys(), rows)
    return new.on_conflict_do_update(
        index_elements=list(TRAFFIC.primary_key.columns),
        set_={"count": _t.count + new.excluded.count, "sum_us": _t.sum_us + new.excluded.sum_us},
    )


def _add_up(connection: sa.Connection, up_to: int, lengths: Sequence[Resolution]) -> bool:
    """Add minutes up to and with `up_to` up into hours and days. False when that is done already."""
    done = connection.execute(sa.select(META.c.value).where(META.c.name == "added_up_to")).scalar_one()
    if int(done) >= up_to:
        return False
    ours = sa.update(META).where(META.c.name == "added_up_to", META.c.value == done).values(value=str(up_to))
    if connection.execute(ours).rowcount:  # or another process was quicker
        for period in lengths[1:]:
            minutes = sa.select(
                sa.literal(period.span_minutes).label("span_minutes"),
                (_t.start_minute - _t.start_minute % period.span_minutes).label("start_minute"),
                *list(_t)[2:],
            ).where(_t.span_minutes == 1, _t.start_minute > int(done), _t.start_minute <= up_to)
            each = minutes.subquery().c
            key = [each[column.name] for column in TRAFFIC.primary_key.columns]
            summed = sa.select(*key, sa.func.sum(each.count), sa.func.sum(each.sum_us)).group_by(*key)
            connection.execute(_upsert(connection.dialect.name, summed))
    return True


def _added_up_to(connection: sa.Connection) -> int:
    # FOR SHARE, where there is such a thing: what is added as a young minute must not become an old one meanwhile.
    query = sa.select(META.c.value).where(META.c.name == "added_up_to").with_for_update(read=True)
    return int(connection.execute(query).scalar_one())


def _dropped(connection: sa.Connection, period: Resolution, *, before: int) -> _Span | None:
    """Drop the oldest span of a period and return it, if there is one before `before`."""
    of_period = _t.span_minutes == period.span_minutes
    start = connection.execute(sa.select(sa.func.min(_t.start_minute)).where(of_period)).scalar()
    if start is None or start >= before:
        return None
    this = sa.and_(of_period, _t.start_minute == start)
    requests = connection.execute(sa.select(sa.func.sum(_t.count)).where(this, _t.status >= LOST)).scalar()
    connection.execute(sa.delete(TRAFFIC).where(this))
    return _Span(start, int(requests or 0))


def _complete_from(period: Resolution) -> str:
    return f"complete_from_{period.span_minutes}"
