"""Who may connect: how many at one time, how many from one address."""

from __future__ import annotations

import heapq
import logging
import resource
import threading
from collections.abc import Collection
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from .connection_state import INCOMPLETE, UNUSED

if TYPE_CHECKING:
    from ..config.models import ServerConfig
    from ..http1.client_address import TrustedProxies
    from .connection import Connection

__all__ = ["ConnectionLimits"]

# So many connections over the limit are answered 503 in a way that the client can read it, which takes up to 2 s each;
# more are closed without an answer.
TURNED_AWAY: Final = 256
IDLE_AT_ONCE: Final = 64
UNFINISHED_AT_ONCE: Final = 16
UNFINISHED_SECONDS: Final = 2.0  # a request that has begun to come is not given up for another one before
SPOOL_FILES: Final = 1_024  # for bodies, or an eighth of all files where these are few
OTHER_FILES: Final = 512  # database, log, Docker, connections at rest, what plugins open
_log = logging.getLogger("rgate.serving")


class ConnectionLimits:
    """Counts connections. Its methods may be called by any thread.

    `most` is config.max_connections, or what the system's limit of open files allows: every request in flight needs a
    second file, the connection to the backend, and so does every stream and every tunnel. The limit is raised as far as it
    may be. `spool_files` is how many of the files bodies may take; those have no connection to a backend yet.
    """

    def __init__(self, config: ServerConfig, trusted: TrustedProxies) -> None:
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()
        self._room = 0
        self._looked_at_tick = -1
        self.change(config, trusted)

    def change(self, config: ServerConfig, trusted: TrustedProxies) -> None:
        """Count by these limits from now on. Connections that have not been counted so far stay so."""
        self._trusted = trusted
        self._most_per_client = config.max_connections_per_client
        in_flight = config.max_in_flight + config.max_slow_clients
        files = _allow_files(2 * config.max_connections + in_flight + OTHER_FILES)
        self._files = max(files - in_flight - OTHER_FILES, files // 2)
        self.most = min(config.max_connections, self._files)
        self.spool_files = min(SPOOL_FILES, files // 8)
        if self.most < config.max_connections:
            wanted = config.max_connections
            _log.warning("at most %d connections, not %d: the system allows %d open files", self.most, wanted, files)

    def has_room(self, connections: Collection[Connection], relayed: int, newest: Connection, tick: int, now: float) -> bool:
        """Whether `newest` may stay, when `relayed` of them are streams and tunnels. When there are too many, others go for it
        (see make_room)."""
        if len(connections) <= self.most and len(connections) + relayed <= self._files:
            return True
        with self._lock:
            if not self._room and self._looked_at_tick != tick:  # looking at all of them is dear
                self._looked_at_tick = tick
                self._room += self.make_room(connections, now, newest)
            if not self._room:
                return False
            self._room -= 1
            return True

    def make_room(self, connections: Collection[Connection], now: float, newest: Connection | None = None) -> int:
        """End those that have been idle the longest; if none is idle, those whose requests have been coming for the longest, or
        the most slowly: a head by when it has begun, a body by how long it is behind. Returns how many."""
        candidates = [it for it in list(connections) if it is not newest]
        leaving = heapq.nsmallest(IDLE_AT_ONCE, (it for it in candidates if it.state in UNUSED), key=attrgetter("idle_since"))
        if not leaving:
            latest = now - UNFINISHED_SECONDS
            unfinished = (it for it in candidates if it.state in INCOMPLETE and it.behind_since <= latest)
            leaving = heapq.nsmallest(UNFINISHED_AT_ONCE, unfinished, key=attrgetter("behind_since"))
        return sum(connection.expire() for connection in leaving)

    def enter(self, connection: Connection) -> bool:
        """Count a connection for the address it comes from; false when that has too many. Trusted proxies may have any."""
        most = self._most_per_client
        address = connection.address
        if most is None or address in self._trusted:
            return True
        with self._lock:
            count = self._counts.get(address, 0)
            if count >= most:
                return False
            self._counts[address] = count + 1
        connection.limited_address = address
        return True

    def leave(self, address: str) -> None:
        """A connection that was counted for this address is over."""
        with self._lock:
            count = self._counts.pop(address) - 1
            if count:
                self._counts[address] = count


def _allow_files(wanted: int) -> int:
    """Raise this process's limit of open files to `wanted` if possible; what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return wanted if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError) as error:
        _log.debug("cannot raise the limit of open files: %s", error)
        return soft
    return most
