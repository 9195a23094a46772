"""Memory that is free in this process, given back to the system.

malloc keeps what has been freed, for the next burst, and has a heap of its own for every few threads. After 6,000 TLS
connections, 200 at a time, a process was 24 MB larger than before; with two heaps 16 MB, and after giving back 6 MB. Under the
interpreter's lock threads seldom allocate at the same time, so more heaps gain nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from time import monotonic
from typing import Final

__all__ = ["Heap"]

QUIET_SECONDS: Final = 10.0
BUSY_SECONDS: Final = 60.0
MAX_HEAPS: Final = 2
_M_ARENA_MAX: Final = -8  # in glibc's malloc.h


class Heap:
    """Gives free memory of this process back: soon after traffic has ceased, and once a minute while it goes on.

    With another C library than glibc it does nothing. It takes some milliseconds, in which other threads go on until they
    allocate.
    """

    def __init__(self) -> None:
        self._trimmed = monotonic()
        self._used = False
        self._trim: Callable[[int], int] | None = None
        with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
            library = ctypes.CDLL(None)
            library.mallopt(_M_ARENA_MAX, MAX_HEAPS)
            self._trim = library.malloc_trim

    def look(self, now: float, quiet: bool) -> None:
        """To be called about once a second; `quiet` says that there is no traffic at this moment."""
        self._used = self._used or not quiet
        if self._used and self._trim is not None and now - self._trimmed >= (QUIET_SECONDS if quiet else BUSY_SECONDS):
            self._trimmed, self._used = now, False
            self._trim(0)
