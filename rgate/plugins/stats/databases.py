"""Connections to the two kinds of database: how they begin transactions, and what they wait for at most."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

__all__ = ["READ", "WRITE", "WRITE_AT_ONCE", "limit_postgresql", "postgresql_engine", "sqlite_engine"]

READ = "BEGIN"
WRITE = "BEGIN IMMEDIATE"  # one that reads first and writes then could not wait for another process: it fails at once
WRITE_AT_ONCE = ""  # a single statement is a transaction by itself
_BUSY_SECONDS = 0.5  # how long one attempt waits for another process's transaction
_CONNECT_SECONDS = 2
_STATEMENT_SECONDS = 5
_LOG_BYTES = 4 * 1024 * 1024  # what sqlite's write-ahead log is cut back to


def sqlite_engine(url: sa.URL, max_pages: int, read_only: bool) -> sa.Engine:
    engine = sa.create_engine(url, pool_size=1, max_overflow=0, hide_parameters=True, connect_args={"timeout": _BUSY_SECONDS})
    settings = {
        "journal_mode": "WAL",  # readers and the one writer do not hold each other up; clean after kill -9
        "synchronous": "NORMAL",  # a crash of the machine may lose the last transactions, never the file
        "max_page_count": max_pages,
        "journal_size_limit": _LOG_BYTES,
    }

    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # no transactions of the driver's own: `begin` says which
        for name, value in ({"query_only": 1} if read_only else settings).items():
            connection.execute(f"PRAGMA {name}={value}").close()

    def begin(connection: sa.Connection) -> None:
        if statement := connection.get_execution_options().get("sqlite_begin", READ):
            connection.exec_driver_sql(statement)

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begin)
    return engine


def postgresql_engine(url: sa.URL) -> sa.Engine:
    known = url.get_driver_name() in ("psycopg", "psycopg2") and "connect_timeout" not in url.query
    settings = {"connect_timeout": _CONNECT_SECONDS} if known else {}
    engine = sa.create_engine(url, pool_size=1, max_overflow=0, hide_parameters=True, connect_args=settings)
    event.listen(engine, "connect", limit_postgresql)
    return engine


def limit_postgresql(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"SET lock_timeout = {int(_BUSY_SECONDS * 1000)}")
    cursor.execute(f"SET statement_timeout = {_STATEMENT_SECONDS * 1000}")
    cursor.close()
    connection.commit()
