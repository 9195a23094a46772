"""Tunnels: connections that left HTTP by an upgrade, relayed byte by byte (RFC 9110 §7.8, RFC 6455).

One thread relays all of them (event_loop.py), so an idle tunnel costs two sockets and a few objects, and no thread. Each
direction buffers at most one block. Until it is written nothing more is read, so back-pressure passes through in bounded memory.

When one side closes its sending direction, the other side gets all bytes and then the same half-close. It may continue to send
until it has been silent for HALF_CLOSED_SECONDS. A socket here may be a TLSStream, which is used like a plain socket.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

from ..log import exception_key
from ..tls.stream import TLSStream
from .event_loop import EventLoop

if TYPE_CHECKING:
    from ..chain.exchange import Tunnel

__all__ = ["TunnelRelay", "Tunnels"]

BLOCK_BYTES: Final = 65_536
CHECK_SECONDS: Final = 1.0
ENDING_CHECK_SECONDS: Final = 0.1
HALF_CLOSED_SECONDS: Final = 10.0  # without a byte, after one side has closed its sending direction
DISCARD_SECONDS: Final = 0.5  # in total, after one side has closed completely and the other still sends

# A peer that vanishes without a packet is detected after two minutes, however long the tunnel may be idle.
_KEEP_ALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))

_log = logging.getLogger("rgate.serving")


class _PeerReset(Exception):
    """A side has reset or lost its connection; the argument is its name."""


class _Side:
    """One of the two sockets of a tunnel.

    unsent        bytes to be sent to it
    received      the number of bytes received from it
    eof_received  it has closed its sending direction
    eof_sent      the sending direction to it has been shut down
    discarding    it has closed both directions: bytes for it are discarded
    mask          the events epoll waits for; None if this side is not registered
    """

    __slots__ = ("discarding", "eof_received", "eof_sent", "fd", "mask", "name", "other", "received", "sock", "tunnel", "unsent")

    other: _Side

    def __init__(self, name: str, sock: socket.socket | TLSStream, tunnel: TunnelRelay) -> None:
        self.name = name
        self.sock = sock
        self.tunnel = tunnel
        self.fd = sock.fileno()
        self.unsent = b""
        self.received = 0
        self.eof_received = self.eof_sent = self.discarding = False
        self.mask: int | None = None

    def receive(self) -> bytes | None:
        """The bytes received; None if there are none yet, b"" at the end. Raises _PeerReset."""
        try:
            block = self.sock.recv(BLOCK_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _PeerReset(self.name) from error
        self.received += len(block)
        return block

    def send(self) -> bool:
        """Send as much of `unsent` as the socket accepts; True if that is all of it. Raises _PeerReset."""
        try:
            sent = len(self.unsent) if self.discarding else self.sock.send(self.unsent)
        except BlockingIOError:
            return False
        except OSError as error:
            if not self.eof_received:
                raise _PeerReset(self.name) from error
            # It sent its last bytes and then closed. They may not have reached the other side yet, where a reset would overtake
            # them. So continue to read from the other side for a moment.
            self.discarding = True
            sent = len(self.unsent)
        self.unsent = self.unsent[sent:]
        return not self.unsent

    def shutdown_write(self) -> None:
        """Half-close: tell it that nothing more will be sent."""
        self.eof_sent = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)


class TunnelRelay:
    """One tunnel between a client and a backend. It starts with begin().

    `for_client` is the data that followed the head of the 101. `done` is called once, when the tunnel ends or if it never
    started, and closes the backend's socket. `close_client`, which the server sets, closes the client's.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        client: socket.socket | TLSStream,
        backend: socket.socket | TLSStream,
        for_client: bytes,
        done: Callable[[], object],
    ) -> None:
        self.client = _Side("client", client, self)
        self.backend = _Side("backend", backend, self)
        self.client.other, self.backend.other = self.backend, self.client
        self.client.unsent = for_client
        self.backend.received = len(for_client)
        self.opened_at = self.active_at = monotonic()
        self.discard_deadline: float | None = None
        self.first_to_close = ""
        self.close_client: Callable[[], object] = lambda: None
        self._tunnel = tunnel
        self._done = done

    def begin(self, for_backend: bytes) -> None:
        """Start the tunnel: the client has received its 101. `for_backend` is the data it sent after its request."""
        self.backend.unsent = for_backend
        self.client.received = len(for_backend)
        for side in (self.client, self.backend):
            side.sock.setblocking(False)
            with contextlib.suppress(OSError):
                side.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in _KEEP_ALIVE:
                    side.sock.setsockopt(socket.IPPROTO_TCP, option, value)

    def relay(self, source: _Side) -> None:
        """Relay one block from `source` to the other side. Raises _PeerReset."""
        target = source.other
        while True:
            if target.unsent and not target.send():
                return
            if source.eof_received:
                if not target.eof_sent:
                    target.shutdown_write()
                return
            block = source.receive()
            if block is None:
                return
            if not block:
                source.eof_received = True
                self.first_to_close = self.first_to_close or source.name
                continue
            target.unsent = block
            # epoll does not report an end that TLS received together with the last bytes, so continue in that case. Otherwise
            # return: a busy tunnel must not delay the others.
            if target.send() and not (isinstance(source.sock, TLSStream) and source.sock.eof_received):
                return

    @property
    def is_over(self) -> bool:
        """Whether both directions have ended."""
        return self.client.eof_sent and self.backend.eof_sent

    def expiry_reason(self, now: float) -> str:
        """Why the tunnel must end now: the name of a side or of a limit; "" if it must not."""
        idle_seconds = now - self.active_at
        if self.first_to_close and (
            idle_seconds > HALF_CLOSED_SECONDS or (self.discard_deadline is not None and now > self.discard_deadline)
        ):
            return self.first_to_close
        if idle_seconds > self._tunnel.idle_seconds:
            return "idle_seconds"
        if self._tunnel.max_duration_seconds is not None and now - self.opened_at > self._tunnel.max_duration_seconds:
            return "max_duration_seconds"
        return ""

    def end(self, by: str) -> None:
        """Report the end to the tunnel's callbacks, and close both sides. Never raises."""
        tunnel = self._tunnel
        tunnel.seconds = monotonic() - self.opened_at
        tunnel.bytes_received, tunnel.bytes_sent = self.client.received, self.backend.received
        tunnel.closed_by = by
        callbacks: tuple[Callable[[], object], ...] = (partial(tunnel.on_close, tunnel), self._done, self.close_client)
        for callback in callbacks:
            try:
                callback()
            except BaseException as error:  # even SystemExit of a plugin must not end the thread of all tunnels
                _log.exception("ending a tunnel failed", extra={"dedup_key": exception_key(error)})


class Tunnels(EventLoop[TunnelRelay]):
    """All open tunnels of a server."""

    def __init__(self) -> None:
        super().__init__("rgate-tunnels")
        self._sides: dict[int, _Side] = {}
        self._ending: set[TunnelRelay] = set()
        self._checked_at = self._ending_checked_at = monotonic()

    def __len__(self) -> int:
        """The number of open tunnels."""
        return len(self._sides) // 2 + len(self._new)

    def _reject(self, item: TunnelRelay) -> None:
        item.end("stop")

    def _register(self, item: TunnelRelay) -> None:
        for side in (item.client, item.backend):
            self._sides[side.fd] = side

    def _begin(self, item: TunnelRelay, now: float) -> None:
        self._advance(item.client, 0, now)
        if item.backend.fd in self._sides:  # otherwise it has ended already
            self._advance(item.backend, 0, now)

    def _handle_event(self, fd: int, event: int, now: float) -> None:
        side = self._sides.get(fd)
        if side is not None:
            self._advance(side, event, now)

    def _timeout_seconds(self) -> float:
        return ENDING_CHECK_SECONDS if self._ending else CHECK_SECONDS if self._sides else -1

    def _after_wait(self, now: float) -> None:
        if self._ending and now - self._ending_checked_at >= ENDING_CHECK_SECONDS:
            self._ending_checked_at = now
            self._end_expired(now, list(self._ending))
        if now - self._checked_at >= CHECK_SECONDS:
            self._checked_at = now
            self._end_expired(now, self._all())

    def _end_all(self) -> None:
        for tunnel in [*self._all(), *self._new]:
            self._end(tunnel, "stop")
        self._new.clear()

    def _all(self) -> list[TunnelRelay]:
        return [side.tunnel for side in self._sides.values() if side.name == "client"]

    def _advance(self, side: _Side, event: int, now: float) -> None:
        """Relay after an event on one side, and end the tunnel if it is over or fails."""
        tunnel, other = side.tunnel, side.other
        tunnel.active_at = now
        was_blocked = bool(side.unsent)
        try:
            if event & select.EPOLLERR and (side.eof_received or other.unsent):
                self._on_error(side)  # reading, which would report the error, is suspended
            tunnel.relay(side)
            if was_blocked:
                tunnel.relay(other)
            if tunnel.is_over:
                self._end(tunnel, tunnel.first_to_close)
                return
            if tunnel.first_to_close:
                self._ending.add(tunnel)
                if tunnel.discard_deadline is None and (side.discarding or other.discarding):
                    tunnel.discard_deadline = now + DISCARD_SECONDS
            self._update_epoll(side, event)
            self._update_epoll(other, 0)
        except _PeerReset as reset:
            self._end(tunnel, reset.args[0])
        except Exception as error:
            _log.exception("a tunnel failed", extra={"dedup_key": exception_key(error)})
            self._end(tunnel, side.name)

    @staticmethod
    def _on_error(side: _Side) -> None:
        if not side.eof_received:
            raise _PeerReset(side.name)
        side.discarding = True

    def _update_epoll(self, side: _Side, event: int) -> None:
        """Register with epoll the events this side waits for."""
        mask = select.EPOLLIN if not side.eof_received and not side.other.unsent else 0
        if side.unsent:
            mask |= select.EPOLLOUT
        fd = side.fd
        if not mask and (event & select.EPOLLHUP or side.discarding):
            # epoll would report it continuously, although there is nothing to do until the other side continues.
            if side.mask is not None:
                self._epoll.unregister(fd)
                side.mask = None
        elif side.mask is None:
            self._epoll.register(fd, mask)
            side.mask = mask
        elif mask != side.mask:
            self._epoll.modify(fd, mask)
            side.mask = mask

    def _end_expired(self, now: float, tunnels: Iterable[TunnelRelay]) -> None:
        for tunnel in tunnels:
            reason = tunnel.expiry_reason(now)
            if reason:
                self._end(tunnel, reason)

    def _end(self, tunnel: TunnelRelay, by: str) -> None:
        tunnel.end(by)
        self._ending.discard(tunnel)
        for side in (tunnel.client, tunnel.backend):
            self._sides.pop(side.fd, None)
