"""Requests that are held up by their own clients: by one that does not read its response, or does not send its body."""

from __future__ import annotations

import logging
import select
import socket
import struct
from collections import Counter
from collections.abc import Collection
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

from .connection_state import State

if TYPE_CHECKING:
    from ..config.models import ServerConfig
    from ..http1.client_address import TrustedProxies
    from .connection import Connection

__all__ = ["SlowClients"]

LOOK_SECONDS: Final = 0.05
PATIENCE_SECONDS: Final = 2.0  # a client that has held up its request for less is never cut
WINDOW_SECONDS: Final = 8.0  # how fast a client is, is how much it has moved in this time, and at least half of it
_BYTES_MOVED: Final = struct.Struct("=120xQQ")  # of Linux's struct tcp_info: tcpi_bytes_acked, tcpi_bytes_received
_log = logging.getLogger("rgate.serving")


class _Seen(NamedTuple):
    """What was seen of a slow client: when, and how many bytes it had moved; at first, and half a window ago."""

    since: float
    moved: int
    later: float
    moved_later: int

    def at(self, now: float, moved: int) -> _Seen:
        """What is known of it now."""
        if now - self.later < WINDOW_SECONDS / 2:
            return self
        return _Seen(self.later, self.moved_later, now, moved)


class SlowClients:
    """Counts them, and cuts the slowest when there are too many.

    A thread that waits for a client does nothing for anybody else, and clients are not to be trusted; so for each such
    thread another one may come, up to `max_slow_clients`, of which one address may have `max_slow_clients_per_client`;
    trusted proxies and unix sockets may have all. What holds a thread, and how much it has moved, is asked of the kernel,
    and only when all threads are taken: a request costs nothing for it.
    """

    def __init__(self, config: ServerConfig, trusted: TrustedProxies) -> None:
        self._seen: dict[Connection, _Seen] = {}
        self._held = 0
        self._looked = 0.0
        self.change(config, trusted)

    def change(self, config: ServerConfig, trusted: TrustedProxies) -> None:
        """Count by these limits from now on."""
        self._most = config.max_slow_clients
        self._most_per_client = config.max_slow_clients_per_client
        self._trusted = trusted

    def count(self, connections: Collection[Connection], most: int | None = None) -> int:
        """How many threads are held up by clients at present, at most `max_slow_clients`; over `most`, if that is fewer, the
        slowest are cut already. For the main thread, while all are taken."""
        now = monotonic()
        if now - self._looked >= LOOK_SECONDS:
            seen = self._seen if now - self._looked < PATIENCE_SECONDS else {}  # else what was seen is of long ago
            self._looked = now
            busy = [connection for connection in list(connections) if connection.state is State.BUSY]
            held = set(_held(busy))
            # Who moves a byte at a time is not seen to wait at each look, but is no faster for it.
            moved = {it: _bytes_moved(it) for it in busy if it in held or it in seen}
            self._seen = {it: seen[it].at(now, size) if it in seen else _Seen(now, size, now, size) for it, size in moved.items()}
            over = self._over_their_share(held)
            self._held = len(held) - sum(over.values())
            excess = len(held) - (self._most if most is None else min(most, self._most))
            if excess > 0 or over:
                self._cut(now, held, moved, excess, over)
        return min(self._held, self._most)

    def _over_their_share(self, held: set[Connection]) -> dict[str, int]:
        """Of the addresses that have more than their share, by how many."""
        share = self._most_per_client
        if share is None:
            return {}
        counts = Counter(it.address for it in held if it.address)
        return {address: count - share for address, count in counts.items() if count > share and address not in self._trusted}

    def _cut(self, now: float, held: set[Connection], moved: dict[Connection, int], excess: int, over: dict[str, int]) -> None:

        def rate(connection: Connection) -> float:
            seen = self._seen[connection]
            return (moved[connection] - seen.moved) / max(now - seen.since, LOOK_SECONDS)

        slowest = []
        for connection in sorted(held, key=rate):
            left = over.get(connection.address, 0)
            if left > 0 or excess > 0:
                over[connection.address] = left - 1
                excess -= 1
                slowest.append(connection)
        # Who has just come is among them, and will have to show how fast it is; nobody else is cut in its stead.
        cut = [connection for connection in slowest if now - self._seen[connection].since >= PATIENCE_SECONDS]
        for connection in cut:
            connection.abort()
        if cut:
            words = "%d clients were cut: of %d that held up their requests, which is too many, or too many of one address"
            _log.warning(words, len(cut), len(held), extra={"about": ""})


def _held(connections: Collection[Connection]) -> list[Connection]:
    """Those that a thread waits for: their sockets take nothing more, or have nothing while a body is to come."""
    poll = select.poll()
    busy: dict[int, tuple[Connection, int]] = {}
    for connection in connections:
        body = connection.body
        wanted = select.POLLOUT | (0 if body is None or body.complete else select.POLLIN)
        try:
            fd = connection.fileno()
            poll.register(fd, wanted)
        except (OSError, ValueError):  # closed at this moment
            continue
        busy[fd] = (connection, wanted)
    # With an error or a hang-up nobody waits any more.
    ready = {fd: -1 if event & ~(select.POLLIN | select.POLLOUT) else event for fd, event in poll.poll(0)}
    return [connection for fd, (connection, wanted) in busy.items() if wanted & ~ready.get(fd, 0)]


def _bytes_moved(connection: Connection) -> int:
    """How many bytes have gone to its client and come from it, where the system tells; else 0."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_MOVED.size)
        acked, received = _BYTES_MOVED.unpack(info)
    except (OSError, AttributeError, struct.error):
        return 0
    return int(acked + received)
