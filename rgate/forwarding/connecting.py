"""A limit on the connections to one endpoint that are being opened at the same time; further ones wait in order.

A backend that accepts slowly has a short queue of connections that it has not accepted yet (its backlog: 5 for Python's
http.server). The kernel drops the first packet of connections beyond it, and sends it again only after 1 and 3 s. So a client
that opens many at once waits for seconds, or in vain, where one after the other would have been accepted within milliseconds.
"""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic
from typing import Final

__all__ = ["ConnectQueue"]

MAX_CONNECTING: Final = 32
MIN_CONNECTING: Final = 4
# A connect that takes longer no longer counts: otherwise all requests to a dead endpoint would wait for it one after the other.
HOLD_SECONDS: Final = 0.05
LOST_SECONDS: Final = 0.9  # a connect that takes so long has lost its first packet (RFC 6298 §2: sent again after 1 s)
HALVE_SECONDS: Final = 0.25  # losses come in bursts; a burst counts once
RECOVER_SECONDS: Final = 2.0


class ConnectQueue:
    """The queue for opening connections to one endpoint. Thread-safe: a lock of its own protects everything in it.

    Call enter() before connecting and connected() after it. At most MAX_CONNECTING connections count at a time; while connecting
    takes so long that packets must have been lost, the limit falls to MIN_CONNECTING at the lowest. Then each counts until the
    backend is known to have accepted it, because it has answered (accepted()). None counts for longer than HOLD_SECONDS.
    """

    __slots__ = ("_changed_at", "_holders", "_limit", "_lock", "_waiting")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders: dict[object, float] = {}  # the end of HOLD_SECONDS of each that counts, the oldest first
        self._waiting: deque[threading.Event] = deque()
        self._limit = MAX_CONNECTING
        self._changed_at = 0.0

    def enter(self, holder: object, until: float) -> bool:
        """Wait for a place, at most until a time of the monotonic clock. Returns whether there was one in time."""
        with self._lock:
            if not self._waiting and self._has_room():
                self._holders[holder] = monotonic() + HOLD_SECONDS
                return True
            wake = threading.Event()
            self._waiting.append(wake)
        while True:
            with self._lock:
                wake.clear()
                now = monotonic()
                first = self._waiting[0] is wake
                has_place = first and self._has_room()
                if has_place or now >= until:
                    self._waiting.remove(wake)
                    if has_place:
                        self._holders[holder] = now + HOLD_SECONDS
                    self._wake_first()
                    return has_place
                oldest = next(iter(self._holders.values()), until)
            wake.wait((min(oldest, until) if first else until) - now)

    def connected(self, holder: object, seconds: float, answered: bool) -> None:
        """Report that connecting has ended after so many seconds, and whether the backend has answered at all."""
        with self._lock:
            if seconds >= LOST_SECONDS or not answered:
                self._lower_limit()
            if not answered or self._limit == MAX_CONNECTING:
                self._leave(holder)

    def accepted(self, holder: object) -> None:
        """Report that the backend has answered on this connection for the first time."""
        if holder in self._holders:
            with self._lock:
                self._leave(holder)

    def _leave(self, holder: object) -> None:
        if self._holders.pop(holder, None) is not None:
            self._wake_first()

    def _wake_first(self) -> None:
        if self._waiting:
            self._waiting[0].set()

    def _has_room(self) -> bool:
        holders = self._holders
        if not holders:
            return True
        now = monotonic()
        while holders and next(iter(holders.values())) <= now:
            del holders[next(iter(holders))]
        if self._limit < MAX_CONNECTING and now - self._changed_at > RECOVER_SECONDS:
            self._limit, self._changed_at = min(2 * self._limit, MAX_CONNECTING), now
        return len(holders) < self._limit

    def _lower_limit(self) -> None:
        now = monotonic()
        if self._limit == MAX_CONNECTING or now - self._changed_at > HALVE_SECONDS:
            self._limit, self._changed_at = max(self._limit // 2, MIN_CONNECTING), now
