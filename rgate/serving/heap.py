"""Returns free memory of this process to the system.

glibc's malloc keeps freed memory for the next burst, and has one heap for every few threads. After 6,000 TLS connections, 200 at
a time, a process was 24 MB larger than before; with two heaps 16 MB, and 6 MB after trimming. Because of the interpreter's lock
threads rarely allocate at the same time, so more heaps would not help.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from time import monotonic
from typing import Final

__all__ = ["Heap"]

IDLE_SECONDS: Final = 10.0
BUSY_SECONDS: Final = 60.0
MAX_HEAPS: Final = 2
_M_ARENA_MAX: Final = -8  # in glibc's malloc.h


class Heap:
    """Trims the heap: IDLE_SECONDS after the last trim once there is no traffic, every BUSY_SECONDS while there is.

    Has no effect with another C library than glibc. Trimming takes some milliseconds; other threads only wait if they allocate.
    """

    def __init__(self) -> None:
        self._trimmed_at = monotonic()
        self._used = False
        self._trim: Callable[[int], int] | None = None
        with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
            library = ctypes.CDLL(None)
            library.mallopt(_M_ARENA_MAX, MAX_HEAPS)
            self._trim = library.malloc_trim

    def trim_if_due(self, now: float, idle: bool) -> None:
        """Call this about once a second; `idle` says that there is no traffic. Without new traffic nothing is trimmed twice."""
        self._used = self._used or not idle
        if self._used and self._trim is not None and now - self._trimmed_at >= (IDLE_SECONDS if idle else BUSY_SECONDS):
            self._trimmed_at, self._used = now, False
            self._trim(0)
