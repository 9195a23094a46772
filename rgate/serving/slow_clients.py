"""Requests that are held up by their own clients: by one that does not read its response, or does not send its body."""

from __future__ import annotations

import logging
import select
from collections.abc import Collection
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["SlowClients"]

LOOK_SECONDS: Final = 0.05
PATIENCE_SECONDS: Final = 2.0  # a client that has made no progress for less is never cut
_log = logging.getLogger("rgate.serving")


class SlowClients:
    """Counts them, and cuts the slowest when there are too many.

    A thread that waits for a client does nothing for anybody else, and clients are not to be trusted; so for each such
    thread another one may come, up to `most` of them. What holds a thread is asked of the kernel, and only when all
    threads are taken: a request costs nothing for it.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._since: dict[Connection, float] = {}
        self._looked = 0.0

    def count(self, connections: Collection[Connection]) -> int:
        """How many threads are held up by clients at present, at most `most`. For the main thread, while all are taken."""
        now = monotonic()
        if now - self._looked >= LOOK_SECONDS:
            since = self._since if now - self._looked < PATIENCE_SECONDS else {}  # else what was seen is of long ago
            self._looked = now
            self._since = {connection: since.get(connection, now) for connection in _held(connections)}
            if len(self._since) > self._most:
                self._cut(now)
        return min(len(self._since), self._most)

    def _cut(self, now: float) -> None:
        excess = len(self._since) - self._most
        slowest = sorted(self._since.items(), key=lambda item: item[1])[:excess]
        cut = [connection for connection, since in slowest if now - since >= PATIENCE_SECONDS]
        for connection in cut:
            connection.cut()
        if cut:
            words = "%d clients were cut: more than %d hold up their requests"
            _log.warning(words, len(cut), self._most, extra={"about": ""})


def _held(connections: Collection[Connection]) -> list[Connection]:
    """Those that a thread waits for: their sockets take nothing more, or have nothing while a body is to come."""
    poll = select.poll()
    busy: dict[int, tuple[Connection, int]] = {}
    for connection in list(connections):
        if connection.busy and not connection.tunnelled and not connection.relayed:
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
