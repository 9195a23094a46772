"""Temporary files for request bodies that come slowly while no thread is to be spent on them."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading

__all__ = ["Spool", "SpooledBody"]

_log = logging.getLogger("rgate.serving")


class Spool:
    """Gives room in temporary files: at most `max_body_bytes` for a body, `max_bytes` and `max_files` in all.

    The files are made in `directory` (None: the system's) and have no name, so nothing is left of them when the process ends.
    Where none can be made, or the disk is full, there is no room. Thread-safe.
    """

    def __init__(self, directory: str | None, max_body_bytes: int, max_bytes: int, max_files: int) -> None:
        self.change(directory, max_body_bytes, max_bytes, max_files)
        self.bytes = 0
        self.files = 0
        self._lock = threading.Lock()

    def change(self, directory: str | None, max_body_bytes: int, max_bytes: int, max_files: int) -> None:
        """Have other limits from now on. Files that there are stay where they are."""
        self.directory = directory
        self.max_body_bytes = max_body_bytes
        self.max_bytes = max_bytes
        self.max_files = max_files

    def open(self) -> SpooledBody | None:
        """A file for one body; None when there is no room for another."""
        with self._lock:
            if self.bytes >= self.max_bytes or not self.max_body_bytes or self.files >= self.max_files:
                return None
            self.files += 1
        try:
            return SpooledBody(self)
        except OSError as error:
            self.give_back(0)
            self.cannot(error)
            return None

    def take(self, size: int) -> bool:
        """Take so many bytes of the room, if they are there."""
        with self._lock:
            if self.bytes + size > self.max_bytes:
                return False
            self.bytes += size
            return True

    def give_back(self, size: int, files: int = 1) -> None:
        """Give back the room of files that had so many bytes."""
        with self._lock:
            self.bytes -= size
            self.files -= files

    def cannot(self, error: OSError) -> None:
        """Tell the operator why there is no room."""
        where = self.directory or "the system's temporary directory"
        why = error.strerror or str(error)
        words = "cannot spool request bodies in %s: %s; slow uploads hold threads instead (server.spool_directory)"
        _log.warning(words, where, why, extra={"dedup_key": why})


class SpooledBody:
    """One body, or the beginning of one. Written to its end, then read from its beginning. One thread at a time."""

    __slots__ = ("_file", "_read", "_spool", "size")

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._file = tempfile.TemporaryFile(buffering=0, prefix="rgate-", dir=spool.directory)  # noqa: SIM115 - see close()
        self.size = 0
        self._read = 0

    def write(self, block: bytes | bytearray) -> bool:
        """Append all of it. False: there is no room for it, and nothing has been written."""
        spool, size = self._spool, len(block)
        if self.size + size > spool.max_body_bytes or not spool.take(size):
            return False
        written = 0
        try:
            while written < size:
                written += os.pwrite(self._file.fileno(), memoryview(block)[written:], self.size + written)
        except OSError as error:
            spool.give_back(size, 0)
            spool.cannot(error)
            with contextlib.suppress(OSError):  # so that the disk has its room back
                os.ftruncate(self._file.fileno(), self.size)
            return False
        self.size += size
        return True

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; b"" at the end. Raises OSError."""
        block = os.pread(self._file.fileno(), min(size, self.size - self._read), self._read)
        self._read += len(block)
        return block

    def close(self) -> None:
        """Give the room back. May be called again."""
        if not self._file.closed:
            self._file.close()
            self._spool.give_back(self.size)
