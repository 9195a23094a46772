"""What was worked out before, for what comes again: within a budget of bytes, and in one list with all others.

Everything in a process that is remembered of what strangers send is a Remembered, so that memory_use() has all of it and the sum
of the budgets is the most that a worker process keeps.
"""

from __future__ import annotations

import threading
import weakref
from array import array
from typing import Any, Final, NamedTuple, TypeVar

__all__ = ["MemoryUse", "RepeatCache", "memory_use"]

K = TypeVar("K")
V = TypeVar("V")

SEEN: Final = 4_096  # a power of two; 8 bytes each
ENTRY_BYTES: Final = 120  # the share of the dict itself that an entry has, while the dict is as empty as it gets
LARGEST_SHARE: Final = 16  # an entry over a 16th of the budget would push out too many others

_all: list[weakref.ref[RepeatCache[Any, Any]]] = []


class MemoryUse(NamedTuple):
    """How much is remembered under one name: entries, bytes (counted, not measured), and the most that it may be."""

    name: str
    entries: int
    bytes: int
    max_bytes: int


class RepeatCache(dict[K, V]):
    """A dict for what can be worked out anew, of at most `max_bytes`; it is read like any other.

    What is kept has come twice of late: much of what a gateway sees never comes again (an id, a cookie, a query), and to
    keep that would cost more than it saves and push out what does. So ask first, and work out only then what keeping takes:

        if known.comes_again(key):
            known.keep(key, value, size_bytes)

    Which keys have come once is known by their hashes, in 32 KB. When it is full it begins anew. Safe to share between
    threads. `name` is what memory_use() calls it; several of one name are added up there.
    """

    __slots__ = ("__weakref__", "_lock", "_seen", "bytes", "max_bytes", "name")

    def __init__(self, name: str, max_bytes: int) -> None:
        super().__init__()
        self.name = name
        self.max_bytes = max_bytes
        self.bytes = 8 * SEEN
        self._seen = array("q", bytes(8 * SEEN))
        self._lock = threading.Lock()
        _all[:] = [*(known for known in _all if known() is not None), weakref.ref(self)]

    def comes_again(self, key: K) -> bool:
        """Whether the key has been asked for before, of late. Once for each time that it was not found."""
        mark = hash(key)
        if self._seen[mark % SEEN] == mark:
            return True
        self._seen[mark % SEEN] = mark
        return False

    def keep(self, key: K, value: V, size_bytes: int) -> None:
        """Keep this. `size_bytes` is what key and value take with all that nobody else holds, rather too much than too little."""
        size_bytes += ENTRY_BYTES
        if size_bytes > self.max_bytes // LARGEST_SHARE:
            return
        with self._lock:
            if key in self:
                return  # by another thread
            if self.bytes + size_bytes > self.max_bytes:
                self._forget()
            self[key] = value
            self.bytes += size_bytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        super().clear()
        self.bytes = 8 * SEEN


def memory_use() -> list[MemoryUse]:
    """Everything that is remembered in this process, by name."""
    found: dict[str, MemoryUse] = {}
    for known in [known for reference in list(_all) if (known := reference()) is not None]:
        one = MemoryUse(known.name, len(known), known.bytes, known.max_bytes)
        other = found.get(one.name, MemoryUse(one.name, 0, 0, 0))
        found[one.name] = MemoryUse(one.name, *map(sum, zip(one[1:], other[1:], strict=True)))
    return sorted(found.values())
