"""Limits the threads that wait for slow clients: for one to read its response, or to send the rest of its body."""

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

SAMPLE_SECONDS: Final = 0.05
GRACE_SECONDS: Final = 2.0  # no client is disconnected before it has been slow for this long
WINDOW_SECONDS: Final = 8.0  # the rate of a client is measured over this time, or at least half of it
_TCP_INFO: Final = struct.Struct("=120xQQ")  # of Linux's struct tcp_info: tcpi_bytes_acked, tcpi_bytes_received
_log = logging.getLogger("rgate.serving")


class _Progress(NamedTuple):
    """Two samples of how many bytes had been transferred to and from a slow client, half a window apart.

    The rate is measured since the earlier one. At first both are the same.
    """

    since: float
    bytes_since: int
    sampled_at: float
    bytes_sampled: int

    def updated(self, now: float, transferred: int) -> _Progress:
        """The progress with a new sample, if half a window has passed."""
        if now - self.sampled_at < WINDOW_SECONDS / 2:
            return self
        return _Progress(self.sampled_at, self.bytes_sampled, now, transferred)


class SlowClients:
    """Counts slow clients, and disconnects the slowest when there are too many.

    For every thread that waits for a client the pool may start another one, up to `max_slow_clients` in total and
    `max_slow_clients_per_client` for one address; trusted proxies and unix sockets have no limit of their own. Which threads
    wait, and how many bytes have been transferred, is asked of the kernel, only while all threads are taken, so it costs nothing
    per request.

    count() is called by the thread that is in Server.run(); reconfigure() may be called from any.
    """

    def __init__(self, config: ServerConfig, trusted: TrustedProxies) -> None:
        self._progress: dict[Connection, _Progress] = {}
        self._blocked = 0
        self._sampled_at = 0.0
        self.reconfigure(config, trusted)

    def reconfigure(self, config: ServerConfig, trusted: TrustedProxies) -> None:
        """Apply new limits."""
        self._limit = config.max_slow_clients
        self._max_per_client = config.max_slow_clients_per_client
        self._trusted = trusted

    def count(self, connections: Collection[Connection], limit: int | None = None) -> int:
        """Count the threads that wait for clients, at most `max_slow_clients`. Above that number, or `limit` if that is lower,
        disconnect the slowest. Call it while all threads are taken."""
        now = monotonic()
        if now - self._sampled_at >= SAMPLE_SECONDS:
            previous = self._progress if now - self._sampled_at < GRACE_SECONDS else {}  # older samples are useless
            self._sampled_at = now
            busy = [connection for connection in list(connections) if connection.state is State.BUSY]
            blocked = set(_blocked_on_client(busy))
            # A client that transfers single bytes is not blocked at every sample, but not faster for it: keep its progress.
            transferred = {it: _bytes_transferred(it) for it in busy if it in blocked or it in previous}
            self._progress = {
                it: previous[it].updated(now, size) if it in previous else _Progress(now, size, now, size)
                for it, size in transferred.items()
            }
            over = self._over_their_share(blocked)
            self._blocked = len(blocked) - sum(over.values())
            excess = len(blocked) - (self._limit if limit is None else min(limit, self._limit))
            if excess > 0 or over:
                self._disconnect_slowest(now, blocked, transferred, excess, over)
        return min(self._blocked, self._limit)

    def _over_their_share(self, blocked: set[Connection]) -> dict[str, int]:
        """By how many clients each address exceeds its share; only addresses that do."""
        share = self._max_per_client
        if share is None:
            return {}
        counts = Counter(it.address for it in blocked if it.address)
        return {address: count - share for address, count in counts.items() if count > share and address not in self._trusted}

    def _disconnect_slowest(
        self, now: float, blocked: set[Connection], transferred: dict[Connection, int], excess: int, over: dict[str, int]
    ) -> None:
        def rate(connection: Connection) -> float:
            progress = self._progress[connection]
            return (transferred[connection] - progress.bytes_since) / max(now - progress.since, SAMPLE_SECONDS)

        slowest = []
        for connection in sorted(blocked, key=rate):
            left = over.get(connection.address, 0)
            if left > 0 or excess > 0:
                over[connection.address] = left - 1
                excess -= 1
                slowest.append(connection)
        # New clients are among the slowest until their rate is known. They are spared, and no other is disconnected instead.
        cut = [connection for connection in slowest if now - self._progress[connection].since >= GRACE_SECONDS]
        for connection in cut:
            connection.abort()
        if cut:
            message = "disconnected %d slow clients: too many threads (%d) waited for clients in total, or for one address"
            _log.warning(message, len(cut), len(blocked), extra={"dedup_key": ""})


def _blocked_on_client(connections: Collection[Connection]) -> list[Connection]:
    """The connections whose thread waits for the client: the send buffer is full, or nothing is readable while a body is read."""
    poll = select.poll()
    busy: dict[int, tuple[Connection, int]] = {}
    for connection in connections:
        body = connection.body
        wanted = select.POLLOUT | (0 if body is None or body.complete else select.POLLIN)
        try:
            fd = connection.fileno()
            poll.register(fd, wanted)
        except (OSError, ValueError):  # just closed
            continue
        busy[fd] = (connection, wanted)
    # After an error or a hang-up the thread no longer waits.
    ready = {fd: -1 if event & ~(select.POLLIN | select.POLLOUT) else event for fd, event in poll.poll(0)}
    return [connection for fd, (connection, wanted) in busy.items() if wanted & ~ready.get(fd, 0)]


def _bytes_transferred(connection: Connection) -> int:
    """The number of bytes acknowledged by the client and received from it; 0 where the system does not report them."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        acked, received = _TCP_INFO.unpack(info)
    except (OSError, AttributeError, struct.error):
        return 0
    return int(acked + received)
