"""RepeatCache: results of parsing and checking that are kept for input that repeats, within a budget of bytes.

Every cache that is keyed by what clients or backends send is a RepeatCache. So memory_use() can list them all, and the sum of
their budgets is the most that a worker process keeps.
"""

from __future__ import annotations

import threading
import weakref
from array import array
from typing import Any, Final, NamedTuple, TypeVar

__all__ = ["MemoryUse", "RepeatCache", "memory_use"]

K = TypeVar("K")
V = TypeVar("V")

SEEN: Final = 4_096  # slots of the admission filter; a power of two; 8 bytes each
ENTRY_BYTES: Final = 120  # an entry's share of the dict itself, when the dict is as sparse as it gets
LARGEST_SHARE: Final = 16  # an entry over a 16th of the budget would push out too many others

_all: list[weakref.ref[RepeatCache[Any, Any]]] = []


class MemoryUse(NamedTuple):
    """The memory of all caches of one name: entries, bytes (counted, not measured), and the sum of their budgets."""

    name: str
    entries: int
    bytes: int
    max_bytes: int


class RepeatCache(dict[K, V]):
    """A dict of at most `max_bytes` for values that can be computed again. Read it like any dict.

    Only what is seen twice is kept. Much of what a gateway sees never repeats (an id, a cookie, a query), and keeping it would
    cost more than it saves and push out what does. So ask first, and compute the size only then:

        if cache.admits(key):
            cache.add(key, value, size_bytes)

    The admission filter has 4,096 hashes of keys that were seen once (32 KiB), as the doorkeeper of TinyLFU. A full cache is
    emptied. Safe to share between threads: reads are dict look-ups, add() and clear() take a lock of the cache's own. `name` is
    its name in memory_use(); caches of one name are added up there.
    """

    __slots__ = ("__weakref__", "_lock", "_seen", "bytes", "max_bytes", "name")

    def __init__(self, name: str, max_bytes: int) -> None:
        super().__init__()
        self.name = name
        self.max_bytes = max_bytes
        self.bytes = 8 * SEEN
        self._seen = array("q", bytes(8 * SEEN))
        self._lock = threading.Lock()
        _all[:] = [*(cache for cache in _all if cache() is not None), weakref.ref(self)]

    def admits(self, key: K) -> bool:
        """Whether the key has been seen before, recently. Call it once for each look-up that found nothing."""
        mark = hash(key)
        if self._seen[mark % SEEN] == mark:
            return True
        self._seen[mark % SEEN] = mark
        return False

    def add(self, key: K, value: V, size_bytes: int) -> None:
        """Keep an entry. `size_bytes` is the memory of key and value that nothing else shares, rather too high than too low."""
        size_bytes += ENTRY_BYTES
        if size_bytes > self.max_bytes // LARGEST_SHARE:
            return
        with self._lock:
            if key in self:
                return  # another thread was faster
            if self.bytes + size_bytes > self.max_bytes:
                self._empty()
            self[key] = value
            self.bytes += size_bytes

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._empty()

    def _empty(self) -> None:
        super().clear()
        self.bytes = 8 * SEEN


def memory_use() -> list[MemoryUse]:
    """The memory of all caches of this process, by name."""
    found: dict[str, MemoryUse] = {}
    for cache in [cache for reference in list(_all) if (cache := reference()) is not None]:
        one = MemoryUse(cache.name, len(cache), cache.bytes, cache.max_bytes)
        other = found.get(one.name, MemoryUse(one.name, 0, 0, 0))
        found[one.name] = MemoryUse(one.name, *map(sum, zip(one[1:], other[1:], strict=True)))
    return sorted(found.values())
