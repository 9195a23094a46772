"""Whether what is in some files has changed: certificates, keys, the config itself."""

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
    """Something short that is another one as soon as a byte in a file is, or one cannot be read."""
    return hashlib.sha256(b"".join(map(_digest, files))).hexdigest()


class FileWatch:
    """Looks at `files` now and then; for one thread at a time.

    What counts is what is in them, however it got there: an editor that writes or renames, a symbolic link that leads elsewhere
    (Kubernetes), a mounted directory, NFS. No system call tells of all of these, but a look at a file costs microseconds. A
    change is taken when the files have been at rest for DEBOUNCE_SECONDS: half a file is not what was meant.

    They are read only when the inode, size or times of one are others. `clock` is monotonic.
    """

    def __init__(self, *files: str, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._files = files
        self.mark_read()

    def mark_read(self) -> None:
        """The files are about to be read for another reason: what is in them now is no change any more."""
        self._marks = {file: _marks(file) for file in self._files}
        self._known = {file: _digest(file) for file in self._files}
        self._moving = False
        self.next_poll_at = self._clock() + POLL_SECONDS

    def set_files(self, files: Iterable[str]) -> None:
        """Look at these from now on. One that is new here has been read a moment ago, as it is now."""
        self._files = tuple(dict.fromkeys(files))
        self._marks = {file: self._marks[file] if file in self._marks else _marks(file) for file in self._files}
        self._known = {file: self._known[file] if file in self._known else _digest(file) for file in self._files}

    def changed(self) -> bool:
        """Whether there is something else in the files than when this was said last, and they are at rest. Ask it when it is
        `next_poll_at` by the clock."""
        marks = {file: _marks(file) for file in self._files}
        if marks != self._marks:
            self._marks, self._moving = marks, True
            self.next_poll_at = self._clock() + DEBOUNCE_SECONDS
            return False
        self.next_poll_at = self._clock() + POLL_SECONDS
        if not self._moving:
            return False
        self._moving = False
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
