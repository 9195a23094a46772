"""Streams: responses that wait for their backend or client without holding a thread (event streams, downloads).

One thread relays all of them (event_loop.py). A response becomes a stream when its backend or client has kept a worker thread
waiting, if no plugin has wrapped its body. A stream buffers at most one block, so back-pressure from the client reaches the
backend. Blocks are large until all streams together hold HELD_BYTES, then small.
"""

from __future__ import annotations

import contextlib
import logging
import select
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final

from ..log import exception_key
from .event_loop import EventLoop
from .response_writer import Waits

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["Streams"]

LARGE_BLOCK_BYTES: Final = 262_144
SMALL_BLOCK_BYTES: Final = 16_384
HELD_BYTES: Final = 33_554_432
CHECK_SECONDS: Final = 0.1  # the shortest time between two searches for expired deadlines

_log = logging.getLogger("rgate.serving")


class _Stream:
    """A connection whose response is being relayed.

    fd        the one descriptor it waits for, the backend's or the client's; None if it has not waited yet
    deadline  when that wait times out
    held      the number of bytes that wait for the client
    ready     it waits for neither, but for the other streams to be served first
    """

    __slots__ = ("connection", "deadline", "fd", "held", "ready", "response")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.response = connection.response
        self.fd: int | None = None
        self.deadline = float("inf")
        self.held = 0
        self.ready = False


class Streams(EventLoop["Connection"]):
    """Relays all streams of a server. The thread that owns a connection passes it to add(), and ownership with it;
    Connection.resume_relayed() returns it to the worker threads."""

    def __init__(self) -> None:
        super().__init__("rgate-streams")
        self._streams: dict[Connection, _Stream] = {}
        self._waiting: dict[int, _Stream] = {}
        self._ready: deque[_Stream] = deque()
        self._held_bytes = 0
        self._next_check = float("inf")

    def __len__(self) -> int:
        """The number of streams."""
        return len(self._streams) + len(self._new)

    @property
    def block_bytes(self) -> int:
        """The largest block that may be read of a response, also by a worker thread."""
        return LARGE_BLOCK_BYTES if self._held_bytes < HELD_BYTES else SMALL_BLOCK_BYTES

    def _reject(self, item: Connection) -> None:
        item.response.abandon_relayed()
        item.resume_relayed()

    def _register(self, item: Connection) -> None:
        self._streams[item] = _Stream(item)

    def _begin(self, item: Connection, now: float) -> None:
        self._advance(self._streams[item], now)

    def _handle_event(self, fd: int, event: int, now: float) -> None:
        stream = self._waiting.get(fd)
        if stream is not None and not stream.ready:
            self._advance(stream, now)

    def _timeout_seconds(self) -> float:
        if self._ready:
            return 0.0
        return max(0.0, self._next_check - monotonic()) if self._streams else -1

    def _after_wait(self, now: float) -> None:
        for _ in range(len(self._ready)):
            stream = self._ready.popleft()
            stream.ready = False
            self._advance(stream, now)
        if now < self._next_check:
            return
        for stream in list(self._streams.values()):
            if stream.deadline <= now:
                self._advance(stream, now, timed_out=True)
        earliest = min((stream.deadline for stream in self._streams.values()), default=float("inf"))
        self._next_check = max(earliest, now + CHECK_SECONDS)

    def _end_all(self) -> None:
        for connection in [*self._streams, *self._new]:
            self._streams.pop(connection, None)
            if (
                connection.response.relay_some(SMALL_BLOCK_BYTES) is not Waits.NOTHING
            ):  # its sockets are shut down, which this detects
                connection.response.abandon_relayed()
            connection.resume_relayed()
        self._new.clear()

    def _advance(self, stream: _Stream, now: float, timed_out: bool = False) -> None:
        """Relay what is available, then wait for backend or client."""
        connection, response = stream.connection, stream.response
        try:
            waits = response.relay_some(self.block_bytes, timed_out)
            self._set_held(stream, response.unsent_bytes if waits is Waits.CLIENT else 0)
            if waits is Waits.NOTHING:
                self._remove(stream)
                connection.resume_relayed()
            elif waits is Waits.TURN:
                stream.deadline = float("inf")
                stream.ready = True
                self._ready.append(stream)
            else:
                body = response.relayed
                assert body is not None
                by_backend = waits is Waits.BACKEND
                seconds = body.wait_seconds if by_backend else connection.settings.config.write_seconds
                self._wait_for(stream, body.fileno() if by_backend else connection.fileno(), by_backend)
                stream.deadline = now + seconds
                self._next_check = min(self._next_check, stream.deadline)
        except Exception as error:
            _log.exception("a stream failed", extra={"dedup_key": exception_key(error)})
            self._remove(stream)
            response.abandon_relayed()
            connection.resume_relayed()

    def _wait_for(self, stream: _Stream, fd: int, for_backend: bool) -> None:
        """Have epoll wait for this descriptor, and for no other one of this stream."""
        if fd != stream.fd:
            self._unregister(stream)
            self._epoll.register(fd, select.EPOLLIN if for_backend else select.EPOLLOUT)
            stream.fd = fd
            self._waiting[fd] = stream

    def _unregister(self, stream: _Stream) -> None:
        fd, stream.fd = stream.fd, None
        if fd is not None:
            self._waiting.pop(fd, None)
            with contextlib.suppress(OSError):  # already closed
                self._epoll.unregister(fd)

    def _remove(self, stream: _Stream) -> None:
        self._set_held(stream, 0)
        self._unregister(stream)
        self._streams.pop(stream.connection, None)

    def _set_held(self, stream: _Stream, held: int) -> None:
        self._held_bytes += held - stream.held
        stream.held = held
