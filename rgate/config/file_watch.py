"""Detects changes of the contents of files: certificates, keys, the config itself."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Final

__all__ = ["POLL_SECONDS", "FileWatch", "fingerprint"]

POLL_SECONDS: Final = 1.0
DEBOUNCE_SECONDS: Final = 0.3


def fingerprint(files: Iterable[str]) -> str:
    """A digest of the files' contents. It changes with any byte, and when a file becomes unreadable."""
    return hashlib.sha256(b"".join(map(_digest, files))).hexdigest()


class FileWatch:
    """Polls `files` for changes. Not thread-safe: one thread at a time.

    Only the contents count, however they changed: an editor that writes or renames, a symbolic link that is switched
    (Kubernetes), a mounted directory, NFS. No notification of the system covers all of these, while a stat takes microseconds.
    A change counts once the files have been unchanged for DEBOUNCE_SECONDS, so that a half-written file is not used.

    Files are read only when inode, size or times of one have changed. `clock` is monotonic.
    """

    def __init__(self, *files: str, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._files = files
        self.mark_read()

    def mark_read(self) -> None:
        """Take the present contents as known: the caller is about to read the files anyway."""
        self._marks = {file: _marks(file) for file in self._files}
        self._known = {file: _digest(file) for file in self._files}
        self._unsettled = False
        self.next_poll_at = self._clock() + POLL_SECONDS

    def set_files(self, files: Iterable[str]) -> None:
        """Watch these files from now on. One that was not watched before counts as read in its present state."""
        self._files = tuple(dict.fromkeys(files))
        self._marks = {file: self._marks[file] if file in self._marks else _marks(file) for file in self._files}
        self._known = {file: self._known[file] if file in self._known else _digest(file) for file in self._files}

    def changed(self) -> bool:
        """Whether the contents differ from those at the last change, and the files are at rest. To be called at `next_poll_at`,
        a time of the clock."""
        marks = {file: _marks(file) for file in self._files}
        if marks != self._marks:
            self._marks, self._unsettled = marks, True
            self.next_poll_at = self._clock() + DEBOUNCE_SECONDS
            return False
        self.next_poll_at = self._clock() + POLL_SECONDS
        if not self._unsettled:
            return False
        self._unsettled = False
        before, self._known = self._known, {file: _digest(file) for file in self._files}
        return self._known != before


def _digest(file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except (OSError, ValueError):
        return b"cannot be read"


def _marks(file: str) -> tuple[int, ...]:
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return ()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
