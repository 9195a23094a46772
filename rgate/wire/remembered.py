"""What was worked out before, for what comes again."""

from __future__ import annotations

from array import array
from typing import Final, TypeVar

__all__ = ["Remembered"]

K = TypeVar("K")
V = TypeVar("V")

SEEN: Final = 4_096  # a power of two; 8 bytes each


class Remembered(dict[K, V]):
    """A dict of at most `most` entries, for what can be worked out anew; it is read like any other.

    offer() keeps only what has come twice of late: much of what a gateway sees never comes again (an id, a cookie, a
    query), and to keep that would cost more than it saves and push out what does. Which keys have come once is known by their
    hashes, in 32 KB. When it is full it begins anew. Safe to share between threads.
    """

    __slots__ = ("_most", "_seen")

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._seen = array("q", bytes(8 * SEEN))

    def offer(self, key: K, value: V) -> None:
        """Keep this, unless the key has not been offered before."""
        mark = hash(key)
        if self._seen[mark % SEEN] != mark:
            self._seen[mark % SEEN] = mark
            return
        if len(self) >= self._most:
            self.clear()
        self[key] = value
