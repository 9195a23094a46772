"""Store: the counts in SQL. Rows are added to one table and dropped from it by age. Only this package imports SQLAlchemy.

A row is keyed by span (minute, hour, day), start, route, backend, endpoint, status, kind and latency bucket. Adding is an
upsert, so processes that share a database do not have to know of each other. Each minute is rolled up into its hour and day
once it is over. META's `rolled_up_to` is the last such minute; counts that arrive later for it are added to all three spans.

A batch is passed as one JSON parameter, which the database unpacks itself. Row by row, the sqlite3 module would release the
interpreter lock and wait for it again: 450 rows took 54 ms of CPU time beside two busy threads; one statement takes 4 ms.
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

from . import DIALECTS
from .aggregator import CLIENT_CLOSED, NO_BUCKET, Kind, SeriesCounts
from .databases import READ, WRITE, WRITE_AT_ONCE, SqliteFile, postgresql_engine, sqlite_engine
from .report import PluginTimeRow, QueryResult, StorageError, TrafficRow
from .resolutions import Resolution, finest_covering, floor, resolutions, rows_of
from .schema import META, MIGRATIONS, TRAFFIC, read_meta, write_meta

__all__ = ["Store"]

_PAGE_BYTES = 4_096
_SQLITE_STATES = {  # sqlite.org/rescode
    5: "locked",
    6: "locked",
    8: "read_only",
    11: "corrupt",
    13: "full",
    14: "read_only",  # neither opened nor created
    26: "corrupt",
}
_log = logging.getLogger("rgate.plugins.stats")
_t = TRAFFIC.c


class _Span(NamedTuple):
    start_minute: int
    requests: int


class Store:
    """The database at a SQLAlchemy URL (sqlite or postgresql). It is opened when first used, and again after an error.

    Use it from one thread at a time. Every method but `close` raises StorageError when the database cannot be used, within about
    half a second for SQLite; then nothing has been added. A corrupt SQLite file is renamed and a new one created. With
    `read_only` nothing is changed, migrated or repaired. Raises PluginError for a URL that cannot be used or a missing driver.
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
        self._resolutions = resolutions(retention_days)
        self._engine, self._file = self._make_engine(url)
        self._add = _addition(self._engine.dialect.name)
        self._add_if = _addition(self._engine.dialect.name, if_rolled_up_to=True)
        self._rolled_up_to = -1  # as last read
        self._opened = False
        self._because = ""

    def add(self, batch: Sequence[SeriesCounts]) -> None:
        """Add counts: all of them or, when it raises, none."""
        if self._file and self._added_at_once(batch):
            return
        with self._transaction(WRITE) as connection:
            self._rolled_up_to = _rolled_up_to(connection)
            connection.execute(self._add, {"rows": json.dumps(rows_of(batch, self._rolled_up_to, self._resolutions))})

    def _added_at_once(self, batch: Sequence[SeriesCounts]) -> bool:
        """Add counts in one statement. False, and nothing is added, if minutes were rolled up since the last time.

        One statement locks the file for a few milliseconds of SQLite's own. In a transaction of several statements this thread
        would wait for the interpreter, which is busy with requests, before each, and every other process for this one.
        """
        rows = json.dumps(rows_of(batch, self._rolled_up_to, self._resolutions))
        with self._transaction(WRITE_AT_ONCE) as connection:
            connection.execute(self._add_if, {"rows": rows, "rolled_up_to": str(self._rolled_up_to)})
            return bool(connection.exec_driver_sql("SELECT changes()").scalar_one())

    def read(self, by: Sequence[str], since_minute: int | None, now_minute: int) -> QueryResult:
        """Sums by latency bucket and the columns `by`, from the finest counts that cover the time since `since_minute`."""
        with self._transaction(READ) as connection:
            meta = read_meta(connection)
            if not meta:
                return QueryResult(since_minute)
            start, condition = self._row_filter(since_minute, now_minute, meta)
            divided = by if "plugin" not in by else ()
            rows = [
                TrafficRow(tuple(row[: len(divided)]), *map(int, row[len(divided) :]))
                for row in connection.execute(_traffic_query(divided).where(condition))
            ]
            plugin_times = []
            if "plugin" in by:
                found = connection.execute(_plugin_time_query(by).where(condition))
                plugin_times = [PluginTimeRow(tuple(row[: len(by)]), *map(int, row[len(by) :])) for row in found]
            begun = json.loads(meta["begun"])
            begun_minute = datetime.fromisoformat(begun["at"]).timestamp() // 60
        recent = begun_minute >= self._resolutions[-1].oldest_kept(now_minute)
        return QueryResult(start, rows, plugin_times, begun if recent and begun["because"] else None)

    def compact(self, now_minute: int) -> bool:
        """Do one step of the maintenance that is due every minute; True if there may be more to do.

        Rolls finished minutes up into hours and days, then drops one span that is past its age, then, while the file is nearly
        full, the oldest span there is, minutes first. If the file is too full to roll anything up, the oldest minute is dropped
        and counted as lost.
        """
        try:
            with self._transaction(WRITE) as connection:
                if _roll_up(connection, now_minute - 2, self._resolutions):  # what a process has not saved yet is younger
                    return True
                for resolution in self._resolutions:
                    if _drop_oldest(connection, resolution, before=resolution.oldest_kept(now_minute)) is not None:
                        return True
                return self._is_near_limit(connection) and self._evict(connection, now_minute)
        except StorageError as error:
            if error.state != "full":
                raise
        with self._transaction(WRITE) as connection:
            return self._lose_oldest(connection, now_minute) or self._evict(connection, now_minute)

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
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
        except (SQLAlchemyError, OSError, LookupError, ValueError) as error:  # the last two: contents not written by rgate
            raise self._storage_error(error) from error

    def _open(self) -> None:
        if self._opened and self._file and self._file.moved():
            _log.warning("statistics: %s was replaced by another file; opening that one", self._file.path)
            self.close()
        if self._opened:
            return
        if self._file:
            self._file.note()
            if self._read_only and not self._file.noted:
                raise FileNotFoundError(f"there is no {self._file.path}")
            if not self._file.noted and "mode" not in self._engine.url.query:  # a mode may say not to create the file
                self._file.create()
                self._file.note()
        with self._engine.connect().execution_options(sqlite_begin=READ) as connection, connection.begin():
            version = int(read_meta(connection).get("schema_version", 0))
        if version > len(MIGRATIONS):
            raise StorageError("newer", f"its schema has version {version}; this rgate knows up to {len(MIGRATIONS)}")
        if version < len(MIGRATIONS):
            if not self._read_only:
                self._migrate()
            elif version:
                way_out = f"a gateway that uses it migrates it to {len(MIGRATIONS)} when it starts"
                raise StorageError("older", f"its schema has version {version}; {way_out}")
        if self._file and not self._file.noted:
            self._file.note()
        self._opened = True
        self._because = "the counts had vanished"  # if this process has to create the database again

    def _migrate(self) -> None:
        with self._engine.connect().execution_options(sqlite_begin=WRITE) as connection, connection.begin():
            version = int(read_meta(connection).get("schema_version", 0))  # again: another process may have been quicker
            for migration in MIGRATIONS[version:]:
                migration(connection)
            if version == 0:
                at = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="seconds")
                write_meta(connection, "begun", json.dumps({"at": at, "because": self._because}))
                write_meta(connection, "rolled_up_to", str(int(self._wall() // 60) - 1))
            write_meta(connection, "schema_version", str(len(MIGRATIONS)))

    def _row_filter(
        self, since_minute: int | None, now_minute: int, meta: dict[str, str]
    ) -> tuple[int | None, sa.ColumnElement[bool]]:
        """Where the counts that cover the time since `since_minute` begin, and the condition that selects their rows."""
        complete_from = {resolution: int(meta.get(_complete_from(resolution), 0)) for resolution in self._resolutions}
        resolution, start = finest_covering(since_minute, now_minute, complete_from)
        condition = sa.and_(_t.span_minutes == resolution.span_minutes, _t.start_minute >= (start or 0))
        if resolution.span_minutes > 1:
            not_rolled_up = max(start or 0, int(meta["rolled_up_to"]) + 1)
            condition = sa.or_(condition, sa.and_(_t.span_minutes == 1, _t.start_minute >= not_rolled_up))
        return start, condition

    def _is_near_limit(self, connection: sa.Connection) -> bool:
        if self._file is None:
            return False
        pages, free = (connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("page_count", "freelist_count"))
        return bool(pages - free > self._max_pages * 3 // 4)

    def _evict(self, connection: sa.Connection, now_minute: int) -> bool:
        """Drop the oldest span of the finest resolution that has one which is rolled up already."""
        before = min(now_minute - 1, _rolled_up_to(connection) + 1)
        for resolution in self._resolutions:
            dropped = _drop_oldest(connection, resolution, before=floor(before, resolution.span_minutes))
            if dropped is not None:
                write_meta(connection, _complete_from(resolution), str(dropped.start_minute + resolution.span_minutes))
                return True
        return False

    def _lose_oldest(self, connection: sa.Connection, now_minute: int) -> bool:
        """Drop the oldest minute; if it is not rolled up yet, count its requests as lost."""
        dropped = _drop_oldest(connection, self._resolutions[0], before=now_minute)
        if dropped is None:
            return False
        if dropped.start_minute > _rolled_up_to(connection):
            lost = [(1, now_minute, "", "", "", 0, Kind.LOST, 0, {0: dropped.requests})]
            connection.execute(self._add, {"rows": json.dumps(lost)})
        return True

    def _storage_error(self, error: Exception) -> StorageError:
        """Translate an error, close the connection, and rename the file if it is corrupt."""
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
                _log.error("statistics: %s is corrupt (%s); renamed to %s, starting a new one", self._file.path, cause, name)
        where = f"{self._file.path}: " if self._file else ""
        way_out = ""
        if state == "read_only" and self._file and not self._read_only:
            there = self._file.path.parent.is_dir()
            able = f"let the user with the number {os.geteuid()} write it and its folder" if there else "make its folder"
            way_out = f"; {able}, or name another file in plugins.stats.database"
        return StorageError(state, f"{where}{cause}{way_out}")

    def _make_engine(self, text: str) -> tuple[sa.Engine, SqliteFile | None]:
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
        raise PluginError(f"plugin 'stats': the database cannot be used: {dialect} is not one of {', '.join(DIALECTS)}")


def _addition(dialect: str, *, if_rolled_up_to: bool = False) -> sa.Executable:
    """INSERT … SELECT from the JSON parameter `rows` (a list of UpsertRow), adding to existing rows.

    With `if_rolled_up_to` it adds nothing unless `rolled_up_to` in META equals the parameter of that name.
    """
    rows = sa.bindparam("rows", type_=sa.Text)
    names = ("span_minutes", "start_minute", "route", "backend", "endpoint", "status", "kind", "sum_us")
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
    unpacked = sa.select(*labelled)
    if if_rolled_up_to:
        unpacked = unpacked.where(sa.exists().where(META.c.name == "rolled_up_to", META.c.value == sa.bindparam("rolled_up_to")))
    series = unpacked.cte("series").prefix_with("MATERIALIZED")  # else it would be unpacked again for every bucket
    bucket = each_bucket(series.c.buckets).table_valued("key", "value")
    key = [series.c[name] for name in names[:-1]]
    new = sa.select(*key, sa.cast(bucket.c.key, sa.Integer), sa.cast(bucket.c.value, sa.BigInteger), sa.literal(0))
    sums = sa.select(*key, sa.literal(NO_BUCKET), sa.literal(0), series.c.sum_us).where(
        sa.true()  # else sqlite reads the ON of ON CONFLICT as that of a join
    )
    return _upsert(dialect, new.select_from(series.join(bucket, sa.true())).union_all(sums))


def _traffic_query(by: Sequence[str]) -> sa.Select[Any]:
    """Selects the fields of TrafficRow, in their order."""
    columns = [_t[name] for name in by]
    is_request, is_client_closed = _t.kind == Kind.REQUEST.value, _t.status == CLIENT_CLOSED
    cases = (
        (sa.and_(is_request, _t.status < 400), _t.count),
        (sa.and_(is_request, _t.status >= 400, ~is_client_closed), _t.count),
        (_t.kind == Kind.LOST.value, _t.count),
        (_t.kind == Kind.RETRIED.value, _t.count),
        (_t.kind == Kind.RETRY.value, _t.count),
        (sa.and_(is_request, ~is_client_closed), _t.sum_us),
        (sa.and_(is_request, is_client_closed), _t.count),
    )
    sums = (sa.func.sum(sa.case(case, else_=0)) for case in cases)
    return sa.select(*columns, _t.bucket, *sums).where(_t.kind != Kind.PLUGIN.value).group_by(*columns, _t.bucket)


def _plugin_time_query(by: Sequence[str]) -> sa.Select[Any]:
    """Selects the fields of PluginTimeRow, in their order."""
    columns = [_t.endpoint if name == "plugin" else _t[name] for name in by]
    query = sa.select(*columns, _t.bucket, sa.func.sum(_t.count), sa.func.sum(_t.sum_us))
    return query.where(_t.kind == Kind.PLUGIN.value).group_by(*columns, _t.bucket)


def _upsert(dialect: str, rows: sa.Select[Any] | sa.CompoundSelect[Any]) -> sa.Executable:
    into = sqlite.insert(TRAFFIC) if dialect == "sqlite" else postgresql.insert(TRAFFIC)
    new = into.from_select(_t.keys(), rows)
    return new.on_conflict_do_update(
        index_elements=list(TRAFFIC.primary_key.columns),
        set_={"count": _t.count + new.excluded.count, "sum_us": _t.sum_us + new.excluded.sum_us},
    )


def _roll_up(connection: sa.Connection, up_to: int, kept: Sequence[Resolution]) -> bool:
    """Add the minutes up to and including `up_to` to their hours and days. False if that is done already."""
    done = connection.execute(sa.select(META.c.value).where(META.c.name == "rolled_up_to")).scalar_one()
    if int(done) >= up_to:
        return False
    ours = sa.update(META).where(META.c.name == "rolled_up_to", META.c.value == done).values(value=str(up_to))
    if connection.execute(ours).rowcount:  # else another process was quicker
        for resolution in kept[1:]:
            minutes = sa.select(
                sa.literal(resolution.span_minutes).label("span_minutes"),
                (_t.start_minute - _t.start_minute % resolution.span_minutes).label("start_minute"),
                *list(_t)[2:],
            ).where(_t.span_minutes == 1, _t.start_minute > int(done), _t.start_minute <= up_to)
            each = minutes.subquery().c
            key = [each[column.name] for column in TRAFFIC.primary_key.columns]
            summed = sa.select(*key, sa.func.sum(each.count), sa.func.sum(each.sum_us)).group_by(*key)
            connection.execute(_upsert(connection.dialect.name, summed))
    return True


def _rolled_up_to(connection: sa.Connection) -> int:
    # FOR SHARE, where the database has it: a minute that is added to as not rolled up must not be rolled up meanwhile.
    query = sa.select(META.c.value).where(META.c.name == "rolled_up_to").with_for_update(read=True)
    return int(connection.execute(query).scalar_one())


def _drop_oldest(connection: sa.Connection, resolution: Resolution, *, before: int) -> _Span | None:
    """Drop the oldest span of a resolution that starts before `before`, and return it; None if there is none."""
    of_resolution = _t.span_minutes == resolution.span_minutes
    start = connection.execute(sa.select(sa.func.min(_t.start_minute)).where(of_resolution)).scalar()
    if start is None or start >= before:
        return None
    span = sa.and_(of_resolution, _t.start_minute == start)
    is_exchange = _t.kind.in_([Kind.REQUEST.value, Kind.LOST.value])
    requests = connection.execute(sa.select(sa.func.sum(_t.count)).where(span, is_exchange)).scalar()
    connection.execute(sa.delete(TRAFFIC).where(span))
    return _Span(start, int(requests or 0))


def _complete_from(resolution: Resolution) -> str:
    return f"complete_from_{resolution.span_minutes}"
