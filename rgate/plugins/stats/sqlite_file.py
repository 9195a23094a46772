"""The file of an sqlite database: noticing that it is gone, and putting a broken one aside."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["SqliteFile"]

_KEPT_ASIDE = 3  # broken files kept for inspection; a failing disk must not fill up with them

_MAGIC = b"SQLite format 3\0"  # sqlite.org/fileformat2
_SUFFIXES = (".db", ".sqlite", ".sqlite3")


class SqliteFile:
    """The file at `path`, as this process last opened it. Processes that share it may all repair it: one will."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._opened: tuple[int, int] | None = None

    def note(self) -> None:
        """Remember the present file as the one that is open."""
        self._opened = self._identity()

    def create(self) -> None:
        """Make the file if it is not there, for this user alone; SQLite gives the same mode to what it writes beside it.

        Where it cannot be made nothing happens, as SQLite cannot make it either and says why.
        """
        with suppress(OSError):
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    @property
    def noted(self) -> bool:
        """Whether there was a file when `note()` was called."""
        return self._opened is not None

    def moved(self) -> bool:
        """Whether the path now leads to another file than the one that is open, or to none."""
        return self._identity() != self._opened

    def set_aside(self, now_seconds: float) -> str | None:
        """Rename the file, its log with it, to `<name>.corrupt-<time>` and return that name.

        None when it is no longer the file that was opened: another process has been quicker. Raises OSError, also when
        the file may be somebody else's: no sqlite file by its first bytes, nor by its name.
        """
        with self._directory_locked():
            if self._opened is None or self.moved():
                return None
            with self.path.open("rb") as file:
                if file.read(len(_MAGIC)) != _MAGIC and self.path.suffix not in _SUFFIXES:
                    raise FileExistsError("it is no sqlite file, and may be somebody else's; remove it or name another")
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
