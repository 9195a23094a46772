"""Limits the number of connections, in total and by client address."""

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

# This many connections over the limit are answered 503 so that the client can read it, which takes up to 2 s each. Further ones
# are closed without an answer.
MAX_REJECTING: Final = 256
IDLE_BATCH: Final = 64  # idle connections closed at one time
UNFINISHED_BATCH: Final = 16  # connections with an unfinished request closed at one time
UNFINISHED_SECONDS: Final = 2.0  # an unfinished request is not given up for a new connection before this age
SPOOL_FILES: Final = 1_024  # for request bodies; at most an eighth of the file descriptors
RESERVED_FDS: Final = 512  # for database, log, Docker, pooled connections, files of plugins
_log = logging.getLogger("rgate.serving")


class ConnectionLimits:
    """Counts connections. Its methods may be called from any thread; a lock protects the counts.

    `max_connections` is the configured number, or what the system's limit of file descriptors allows if that is lower: every
    request in flight, stream and tunnel needs a second descriptor, for its connection to the backend. The soft limit is raised as
    far as the hard limit permits. `spool_files` is the number of descriptors that spooled bodies may take; their requests have
    no connection to a backend yet.
    """

    def __init__(self, config: ServerConfig, trusted: TrustedProxies) -> None:
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()
        self._room = 0
        self._evicted_at_tick = -1
        self.reconfigure(config, trusted)

    def reconfigure(self, config: ServerConfig, trusted: TrustedProxies) -> None:
        """Apply new limits. Connections that were not counted under the old ones are not counted retroactively."""
        self._trusted = trusted
        self._max_per_client = config.max_connections_per_client
        in_flight = config.max_in_flight + config.max_slow_clients
        fds = _raise_fd_limit(2 * config.max_connections + in_flight + RESERVED_FDS)
        self._connection_fds = max(fds - in_flight - RESERVED_FDS, fds // 2)
        self.max_connections = min(config.max_connections, self._connection_fds)
        self.spool_files = min(SPOOL_FILES, fds // 8)
        if self.max_connections < config.max_connections:
            message = "at most %d connections, not %d: the system allows %d open files"
            _log.warning(message, self.max_connections, config.max_connections, fds)

    def make_room(self, connections: Collection[Connection], relayed: int, newest: Connection, tick: int, now: float) -> bool:
        """Make sure that there is room for `newest`, one of `connections`; close others for it if there are too many (evict()).
        `relayed` of them are streams and tunnels. Returns False if `newest` must be rejected."""
        if len(connections) <= self.max_connections and len(connections) + relayed <= self._connection_fds:
            return True
        with self._lock:
            if not self._room and self._evicted_at_tick != tick:  # once per tick, because all are examined
                self._evicted_at_tick = tick
                self._room += self.evict(connections, now, newest)
            if not self._room:
                return False
            self._room -= 1
            return True

    def evict(self, connections: Collection[Connection], now: float, newest: Connection | None = None) -> int:
        """Close the connections that have been idle the longest. If none is idle, close those with the oldest or slowest
        unfinished request: heads are ordered by when they began, bodies by how long they have been behind the minimum rate.
        Returns how many."""
        candidates = [it for it in list(connections) if it is not newest]
        leaving = heapq.nsmallest(IDLE_BATCH, (it for it in candidates if it.state in UNUSED), key=attrgetter("idle_since"))
        if not leaving:
            latest = now - UNFINISHED_SECONDS
            unfinished = (it for it in candidates if it.state in INCOMPLETE and it.behind_since <= latest)
            leaving = heapq.nsmallest(UNFINISHED_BATCH, unfinished, key=attrgetter("behind_since"))
        return sum(connection.expire() for connection in leaving)

    def acquire(self, connection: Connection) -> bool:
        """Count a connection for its client address; False if that has too many. Trusted proxies are not limited."""
        limit = self._max_per_client
        address = connection.address
        if limit is None or address in self._trusted:
            return True
        with self._lock:
            count = self._counts.get(address, 0)
            if count >= limit:
                return False
            self._counts[address] = count + 1
        connection.limited_address = address
        return True

    def release(self, address: str) -> None:
        """Uncount a connection of this address, which acquire() had counted."""
        with self._lock:
            count = self._counts.pop(address) - 1
            if count:
                self._counts[address] = count


def _raise_fd_limit(wanted: int) -> int:
    """Raise the soft limit of file descriptors to `wanted` as far as possible. Returns the resulting limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= limit:
        return wanted if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (OSError, ValueError) as error:
        _log.debug("cannot raise the limit of file descriptors: %s", error)
        return soft
    return limit
