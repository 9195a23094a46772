"""Temporary files for request bodies that arrive slowly, so that they hold no thread."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading

__all__ = ["Spool", "SpooledBody"]

_log = logging.getLogger("rgate.serving")


class Spool:
    """Makes temporary files, with at most `max_body_bytes` each, and `max_bytes` and `max_files` in total.

    The files are in `directory` (None: the system's) and have no name, so they vanish when the process ends. If a file cannot be
    created or written, that is logged and treated as if a limit were reached. Thread-safe: a lock protects the totals.
    """

    def __init__(self, directory: str | None, max_body_bytes: int, max_bytes: int, max_files: int) -> None:
        self.reconfigure(directory, max_body_bytes, max_bytes, max_files)
        self.bytes = 0
        self.files = 0
        self._lock = threading.Lock()

    def reconfigure(self, directory: str | None, max_body_bytes: int, max_bytes: int, max_files: int) -> None:
        """Apply new limits. Existing files stay where they are."""
        self.directory = directory
        self.max_body_bytes = max_body_bytes
        self.max_bytes = max_bytes
        self.max_files = max_files

    def open(self) -> SpooledBody | None:
        """A file for one body; None if a limit is reached or no file can be created."""
        with self._lock:
            if self.bytes >= self.max_bytes or not self.max_body_bytes or self.files >= self.max_files:
                return None
            self.files += 1
        try:
            return SpooledBody(self)
        except OSError as error:
            self.release(0)
            self.log_failure(error)
            return None

    def reserve(self, size: int) -> bool:
        """Count `size` bytes against max_bytes; False, without counting them, if they exceed it."""
        with self._lock:
            if self.bytes + size > self.max_bytes:
                return False
            self.bytes += size
            return True

    def release(self, size: int, files: int = 1) -> None:
        """Uncount `size` bytes and `files` files."""
        with self._lock:
            self.bytes -= size
            self.files -= files

    def log_failure(self, error: OSError) -> None:
        """Log why bodies cannot be spooled."""
        directory = self.directory or "the system's temporary directory"
        reason = error.strerror or str(error)
        message = "cannot spool request bodies in %s: %s; slow uploads hold threads instead (server.spool_directory)"
        _log.warning(message, directory, reason, extra={"dedup_key": reason})


class SpooledBody:
    """One request body, or its first part. First written, then read from the start. Used by one thread at a time."""

    __slots__ = ("_file", "_read", "_spool", "size")

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._file = tempfile.TemporaryFile(buffering=0, prefix="rgate-", dir=spool.directory)  # noqa: SIM115 - see close()
        self.size = 0
        self._read = 0

    def write(self, block: bytes | bytearray) -> bool:
        """Append the whole block. False: a limit is reached or writing failed, and nothing was appended."""
        spool, size = self._spool, len(block)
        if self.size + size > spool.max_body_bytes or not spool.reserve(size):
            return False
        written = 0
        try:
            while written < size:
                written += os.pwrite(self._file.fileno(), memoryview(block)[written:], self.size + written)
        except OSError as error:
            spool.release(size, 0)
            spool.log_failure(error)
            with contextlib.suppress(OSError):  # free the disk space
                os.ftruncate(self._file.fileno(), self.size)
            return False
        self.size += size
        return True

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes; b"" at the end. Raises OSError."""
        block = os.pread(self._file.fileno(), min(size, self.size - self._read), self._read)
        self._read += len(block)
        return block

    def close(self) -> None:
        """Delete the file and uncount it. May be called again."""
        if not self._file.closed:
            self._file.close()
            self._spool.release(self.size)
