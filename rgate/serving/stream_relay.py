"""Streams: responses that wait for their backend or their client and hold no thread meanwhile (event streams, downloads).

One thread relays all of them (`loop.py`). A stream is a response whose body nothing in the chain has wrapped, once its
backend or its client has kept a thread waiting. It has at most one block in memory, so the back-pressure of the client
reaches the backend; all together hold no more than HELD_BYTES of large blocks, above which every block is a small one.
"""

from __future__ import annotations

import contextlib
import logging
import select
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final

from ..log import about
from .event_loop import SocketLoop
from .response_writer import Waits

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["Streams"]

LARGE_BLOCK_BYTES: Final = 262_144
SMALL_BLOCK_BYTES: Final = 16_384
HELD_BYTES: Final = 33_554_432
CHECK_SECONDS: Final = 0.1  # what is overdue is looked for at most as often

_log = logging.getLogger("rgate.serving")


class _Stream:
    """A connection whose response is being relayed.

    fd     the one descriptor that it waits for: the backend's or the client's; None: it has not waited yet
    due    when it has waited for too long
    held   how many bytes wait for the client
    ready  it waits for its turn only
    """

    __slots__ = ("connection", "due", "fd", "held", "ready", "response")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.response = connection.response
        self.fd: int | None = None
        self.due = float("inf")
        self.held = 0
        self.ready = False


class Streams(SocketLoop["Connection"]):
    """All streams of a server. A connection is given to add() by the thread that has its turn, and gets it back by
    Connection.resume_relayed()."""

    def __init__(self) -> None:
        super().__init__("rgate-streams")
        self._streams: dict[Connection, _Stream] = {}
        self._waiting: dict[int, _Stream] = {}
        self._ready: deque[_Stream] = deque()
        self._held_bytes = 0
        self._next_check = float("inf")

    def __len__(self) -> int:
        """How many there are at present."""
        return len(self._streams) + len(self._new)

    @property
    def block_bytes(self) -> int:
        """How much of a response may be read at one time, by a thread too."""
        return LARGE_BLOCK_BYTES if self._held_bytes < HELD_BYTES else SMALL_BLOCK_BYTES

    def _refuse(self, item: Connection) -> None:
        item.response.abandon_relayed()
        item.resume_relayed()

    def _enter(self, item: Connection) -> None:
        self._streams[item] = _Stream(item)

    def _begin(self, item: Connection, now: float) -> None:
        self._advance(self._streams[item], now)

    def _act(self, fd: int, event: int, now: float) -> None:
        stream = self._waiting.get(fd)
        if stream is not None and not stream.ready:
            self._advance(stream, now)

    def _wait_seconds(self) -> float:
        if self._ready:
            return 0.0
        return max(0.0, self._next_check - monotonic()) if self._streams else -1

    def _check(self, now: float) -> None:
        for _ in range(len(self._ready)):
            stream = self._ready.popleft()
            stream.ready = False
            self._advance(stream, now)
        if now < self._next_check:
            return
        for stream in list(self._streams.values()):
            if stream.due <= now:
                self._advance(stream, now, timed_out=True)
        earliest = min((stream.due for stream in self._streams.values()), default=float("inf"))
        self._next_check = max(earliest, now + CHECK_SECONDS)

    def _end_all(self) -> None:
        for connection in [*self._streams, *self._new]:
            self._streams.pop(connection, None)
            if connection.response.relay_some(SMALL_BLOCK_BYTES) is not Waits.NOTHING:  # it sees that its connections are cut
                connection.response.abandon_relayed()
            connection.resume_relayed()
        self._new.clear()

    def _advance(self, stream: _Stream, now: float, timed_out: bool = False) -> None:
        """Move what can be moved, and wait for the rest."""
        connection, response = stream.connection, stream.response
        try:
            waits = response.relay_some(self.block_bytes, timed_out)
            self._hold(stream, response.unsent_bytes if waits is Waits.CLIENT else 0)
            if waits is Waits.NOTHING:
                self._leave(stream)
                connection.resume_relayed()
            elif waits is Waits.TURN:
                stream.due = float("inf")
                stream.ready = True
                self._ready.append(stream)
            else:
                body = response.relayed
                assert body is not None
                by_backend = waits is Waits.BACKEND
                seconds = body.wait_seconds if by_backend else connection.settings.config.write_seconds
                self._wait(stream, body.fileno() if by_backend else connection.fileno(), by_backend)
                stream.due = now + seconds
                self._next_check = min(self._next_check, stream.due)
        except Exception as error:
            _log.exception("a stream failed", extra={"about": about(error)})
            self._leave(stream)
            response.abandon_relayed()
            connection.resume_relayed()

    def _wait(self, stream: _Stream, fd: int, for_backend: bool) -> None:
        """Have epoll tell of this descriptor, and of no other of this stream."""
        if fd != stream.fd:
            self._forget(stream)
            self._epoll.register(fd, select.EPOLLIN if for_backend else select.EPOLLOUT)
            stream.fd = fd
            self._waiting[fd] = stream

    def _forget(self, stream: _Stream) -> None:
        fd, stream.fd = stream.fd, None
        if fd is not None:
            self._waiting.pop(fd, None)
            with contextlib.suppress(OSError):  # it is closed
                self._epoll.unregister(fd)

    def _leave(self, stream: _Stream) -> None:
        self._hold(stream, 0)
        self._forget(stream)
        self._streams.pop(stream.connection, None)

    def _hold(self, stream: _Stream, held: int) -> None:
        self._held_bytes += held - stream.held
        stream.held = held
