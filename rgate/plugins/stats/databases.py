"""The two kinds of database: how connections to SQLite and PostgreSQL are set up, and how a SQLite file is replaced."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

__all__ = ["READ", "WRITE", "WRITE_AT_ONCE", "SqliteFile", "limit_postgresql", "postgresql_engine", "sqlite_engine"]

READ = "BEGIN"
WRITE = "BEGIN IMMEDIATE"  # a transaction that first reads and then writes fails at once instead of waiting for another process
WRITE_AT_ONCE = ""  # a single statement is a transaction by itself
_BUSY_SECONDS = 0.5  # how long one attempt waits for another process's transaction
_CONNECT_SECONDS = 2
_STATEMENT_SECONDS = 5
_LOG_BYTES = 4 * 1024 * 1024  # SQLite truncates its write-ahead log to this size
_KEPT_ASIDE = 3  # broken files kept for inspection; a failing disk must not fill up with them
_MAGIC = b"SQLite format 3\0"  # sqlite.org/fileformat2
_SUFFIXES = (".db", ".sqlite", ".sqlite3")


def sqlite_engine(url: sa.URL, max_pages: int, read_only: bool) -> sa.Engine:
    """An engine whose transactions begin with the statement in the execution option `sqlite_begin` (READ, WRITE, …)."""
    engine = sa.create_engine(url, pool_size=1, max_overflow=0, hide_parameters=True, connect_args={"timeout": _BUSY_SECONDS})
    settings = {
        "journal_mode": "WAL",  # readers and the one writer do not block each other; consistent after kill -9
        "synchronous": "NORMAL",  # a crash of the machine may lose the last transactions, never the file
        "max_page_count": max_pages,
        "journal_size_limit": _LOG_BYTES,
    }

    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # no implicit transactions of the driver; `begin` starts them
        for name, value in ({"query_only": 1} if read_only else settings).items():
            connection.execute(f"PRAGMA {name}={value}").close()

    def begin(connection: sa.Connection) -> None:
        if statement := connection.get_execution_options().get("sqlite_begin", READ):
            connection.exec_driver_sql(statement)

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begin)
    return engine


def postgresql_engine(url: sa.URL) -> sa.Engine:
    """An engine that connects within 2 s, waits 0.5 s for a lock, and runs a statement for 5 s at most."""
    known = url.get_driver_name() in ("psycopg", "psycopg2") and "connect_timeout" not in url.query
    settings = {"connect_timeout": _CONNECT_SECONDS} if known else {}
    engine = sa.create_engine(url, pool_size=1, max_overflow=0, hide_parameters=True, connect_args=settings)
    event.listen(engine, "connect", limit_postgresql)
    return engine


def limit_postgresql(connection: Any, _: object) -> None:
    """Set the time limits of a new connection."""
    cursor = connection.cursor()
    cursor.execute(f"SET lock_timeout = {int(_BUSY_SECONDS * 1000)}")
    cursor.execute(f"SET statement_timeout = {_STATEMENT_SECONDS * 1000}")
    cursor.close()
    connection.commit()


class SqliteFile:
    """The database file at `path`, as this process last opened it.

    Detects that the file was removed or replaced, and renames a corrupt one. Of several processes that share a file and try to
    rename it, exactly one does.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._opened: tuple[int, int] | None = None

    def note(self) -> None:
        """Remember the file that is at the path now as the open one."""
        self._opened = self._identity()

    def create(self) -> None:
        """Create the file if it is absent, readable by this user only; SQLite gives the same mode to the files beside it.

        A failure is ignored, because SQLite then fails too and says why.
        """
        with suppress(OSError):
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    @property
    def noted(self) -> bool:
        """Whether there was a file when `note()` was called."""
        return self._opened is not None

    def moved(self) -> bool:
        """Whether the path now leads to a file other than the open one, or to none."""
        return self._identity() != self._opened

    def set_aside(self, now_seconds: float) -> str | None:
        """Rename the file, and its log with it, to `<name>.corrupt-<time>`, and return that name.

        Returns None if the path no longer leads to the open file, because another process was quicker. Raises OSError if the
        file cannot be renamed, or may belong to another program: neither its first bytes nor its name are those of a SQLite file.
        """
        with self._directory_locked():
            if self._opened is None or self.moved():
                return None
            with self.path.open("rb") as file:
                if file.read(len(_MAGIC)) != _MAGIC and self.path.suffix not in _SUFFIXES:
                    raise FileExistsError("it is not an SQLite file and may belong to another program; remove it or name another")
            moment = datetime.fromtimestamp(now_seconds, UTC)
            target = self.path.with_name(f"{self.path.name}.corrupt-{moment:%Y%m%dT%H%M%S.%fZ}")
            self.path.rename(target)
            with suppress(FileNotFoundError):
                self._beside("-wal").rename(f"{target}-wal")
            self._beside("-shm").unlink(missing_ok=True)
            aside = sorted(self.path.parent.glob(f"{self.path.name}.corrupt-*Z"))
            for old in aside[:-_KEPT_ASIDE]:
                old.unlink(missing_ok=True)
                old.with_name(f"{old.name}-wal").unlink(missing_ok=True)
            return target.name

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @contextmanager
    def _directory_locked(self) -> Iterator[None]:
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)
