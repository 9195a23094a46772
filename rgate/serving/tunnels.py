"""Tunnels: connections that an upgrade has taken out of HTTP, relayed byte by byte (RFC 9110 §7.8, RFC 6455).

One thread relays all of them (`loop.py`). A tunnel that is idle costs two sockets
and a few objects, and no thread. Each direction holds at most one block: until that is written nothing more is read, so
the back-pressure of either side reaches the other, in bounded memory.

When one side sends its last byte, the other is told so after it has got that byte (a half-close), and may go on sending for
as long as something comes. A socket here may be a TLSStream, which is used like a plain one.
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

from ..log import about
from ..tls.stream import TLSStream
from .event_loop import SocketLoop

if TYPE_CHECKING:
    from ..chain.exchange import Tunnel

__all__ = ["TunnelRelay", "Tunnels"]

BLOCK_BYTES: Final = 65_536
CHECK_SECONDS: Final = 1.0
ENDING_CHECK_SECONDS: Final = 0.1
HALF_CLOSED_SECONDS: Final = 10.0  # without a byte, when one side has ended
DEAF_SECONDS: Final = 0.5  # in all, when one side has closed and the other still sends

# A peer that is gone without a word is noticed after two minutes, however long the tunnel may be idle.
_KEEP_ALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))

_log = logging.getLogger("rgate.serving")


class _Lost(Exception):
    """A side is gone; the argument is its name."""


class _Side:
    """One of the two sockets of a tunnel.

    unsent    bytes on their way to it
    received  how many bytes have come from it
    ended     nothing more comes from it
    told      it knows that nothing more goes to it
    deaf      it has ended and takes nothing any more: what is still meant for it is dropped
    mask      the events that epoll is asked for; None: it does not watch this side
    """

    __slots__ = ("deaf", "ended", "fd", "mask", "name", "other", "received", "sock", "told", "tunnel", "unsent")

    other: _Side

    def __init__(self, name: str, sock: socket.socket | TLSStream, tunnel: TunnelRelay) -> None:
        self.name = name
        self.sock = sock
        self.tunnel = tunnel
        self.fd = sock.fileno()
        self.unsent = b""
        self.received = 0
        self.ended = self.told = self.deaf = False
        self.mask: int | None = None

    def receive(self) -> bytes | None:
        """What has come; None: nothing yet; b"": the end. Raises _Lost."""
        try:
            block = self.sock.recv(BLOCK_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _Lost(self.name) from error
        self.received += len(block)
        return block

    def send(self) -> bool:
        """Send of `unsent` what it takes; true when that is all. Raises _Lost."""
        try:
            sent = len(self.unsent) if self.deaf else self.sock.send(self.unsent)
        except BlockingIOError:
            return False
        except OSError as error:
            if not self.ended:
                raise _Lost(self.name) from error
            # It has had its say and closed. What it said may still be on its way to the other side, where a reset would
            # overtake it: so go on reading there for a moment.
            self.deaf = True
            sent = len(self.unsent)
        self.unsent = self.unsent[sent:]
        return not self.unsent

    def tell_end(self) -> None:
        """Let it know that nothing more goes to it."""
        self.told = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)


class TunnelRelay:
    """A client and a backend between which there is no more HTTP, as soon as `begin` has been called.

    `for_client` is what came after the head of the 101. `done` is called once, when the tunnel is over or nothing has come of
    it, and closes the backend's socket; `close_client`, which the server sets, closes the other.
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
        self.opened = self.active = monotonic()
        self.cut_at: float | None = None
        self.ended_first = ""
        self.close_client: Callable[[], object] = lambda: None
        self._tunnel = tunnel
        self._done = done

    def begin(self, for_backend: bytes) -> None:
        """The client has its 101, and `for_backend` is what it has sent after its request."""
        self.backend.unsent = for_backend
        self.client.received = len(for_backend)
        for side in (self.client, self.backend):
            side.sock.setblocking(False)
            with contextlib.suppress(OSError):
                side.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in _KEEP_ALIVE:
                    side.sock.setsockopt(socket.IPPROTO_TCP, option, value)

    def move(self, source: _Side) -> None:
        """Bring over what has come from one side, one block. Raises _Lost."""
        target = source.other
        while True:
            if target.unsent and not target.send():
                return
            if source.ended:
                if not target.told:
                    target.tell_end()
                return
            block = source.receive()
            if block is None:
                return
            if not block:
                source.ended = True
                self.ended_first = self.ended_first or source.name
                continue
            target.unsent = block
            # Of an end that came with the last bytes of TLS epoll will not tell. All else is for the next turn: a tunnel
            # that moves much must not keep the others waiting.
            if target.send() and not (isinstance(source.sock, TLSStream) and source.sock.eof_received):
                return

    @property
    def is_over(self) -> bool:
        """Whether both directions have come to their end."""
        return self.client.told and self.backend.told

    def overdue(self, now: float) -> str:
        """What ends it now: a side, a limit, or "" for nothing."""
        idle_seconds = now - self.active
        if self.ended_first and (idle_seconds > HALF_CLOSED_SECONDS or (self.cut_at is not None and now > self.cut_at)):
            return self.ended_first
        if idle_seconds > self._tunnel.idle_seconds:
            return "idle_seconds"
        if self._tunnel.max_duration_seconds is not None and now - self.opened > self._tunnel.max_duration_seconds:
            return "max_duration_seconds"
        return ""

    def end(self, by: str) -> None:
        """Tell whoever wants to know, and close both sides. Never raises."""
        tunnel = self._tunnel
        tunnel.seconds = monotonic() - self.opened
        tunnel.bytes_received, tunnel.bytes_sent = self.client.received, self.backend.received
        tunnel.closed_by = by
        acts: tuple[Callable[[], object], ...] = (partial(tunnel.on_close, tunnel), self._done, self.close_client)
        for act in acts:
            try:
                act()
            except BaseException as error:  # a plugin's SystemExit, too: it must not end the thread of all tunnels
                _log.exception("ending a tunnel failed", extra={"about": about(error)})


class Tunnels(SocketLoop[TunnelRelay]):
    """All open tunnels of a server."""

    def __init__(self) -> None:
        super().__init__("rgate-tunnels")
        self._sides: dict[int, _Side] = {}
        self._ending: set[TunnelRelay] = set()
        self._checked = self._ending_checked = monotonic()

    def __len__(self) -> int:
        """How many there are at present."""
        return len(self._sides) // 2 + len(self._new)

    def _refuse(self, item: TunnelRelay) -> None:
        item.end("stop")

    def _enter(self, item: TunnelRelay) -> None:
        for side in (item.client, item.backend):
            self._sides[side.fd] = side

    def _begin(self, item: TunnelRelay, now: float) -> None:
        self._advance(item.client, 0, now)
        if item.backend.fd in self._sides:  # else it is over already
            self._advance(item.backend, 0, now)

    def _act(self, fd: int, event: int, now: float) -> None:
        side = self._sides.get(fd)
        if side is not None:
            self._advance(side, event, now)

    def _wait_seconds(self) -> float:
        return ENDING_CHECK_SECONDS if self._ending else CHECK_SECONDS if self._sides else -1

    def _check(self, now: float) -> None:
        if self._ending and now - self._ending_checked >= ENDING_CHECK_SECONDS:
            self._ending_checked = now
            self._end_overdue(now, list(self._ending))
        if now - self._checked >= CHECK_SECONDS:
            self._checked = now
            self._end_overdue(now, self._all())

    def _end_all(self) -> None:
        for tunnel in [*self._all(), *self._new]:
            self._end(tunnel, "stop")
        self._new.clear()

    def _all(self) -> list[TunnelRelay]:
        return [side.tunnel for side in self._sides.values() if side.name == "client"]

    def _advance(self, side: _Side, event: int, now: float) -> None:
        """Move what can be moved after an event on one side."""
        tunnel, other = side.tunnel, side.other
        tunnel.active = now
        waited = bool(side.unsent)
        try:
            if event & select.EPOLLERR and (side.ended or other.unsent):
                self._reset(side)  # nothing is to be read from it now that would tell
            tunnel.move(side)
            if waited:
                tunnel.move(other)
            if tunnel.is_over:
                self._end(tunnel, tunnel.ended_first)
                return
            if tunnel.ended_first:
                self._ending.add(tunnel)
                if tunnel.cut_at is None and (side.deaf or other.deaf):
                    tunnel.cut_at = now + DEAF_SECONDS
            self._watch(side, event)
            self._watch(other, 0)
        except _Lost as lost:
            self._end(tunnel, lost.args[0])
        except Exception as error:
            _log.exception("a tunnel failed", extra={"about": about(error)})
            self._end(tunnel, side.name)

    @staticmethod
    def _reset(side: _Side) -> None:
        if not side.ended:
            raise _Lost(side.name)
        side.deaf = True

    def _watch(self, side: _Side, event: int) -> None:
        """Have epoll tell what this side waits for."""
        mask = select.EPOLLIN if not side.ended and not side.other.unsent else 0
        if side.unsent:
            mask |= select.EPOLLOUT
        fd = side.fd
        if not mask and (event & select.EPOLLHUP or side.deaf):
            # It is told of, always and again, although there is nothing to do before the other side goes on.
            if side.mask is not None:
                self._epoll.unregister(fd)
                side.mask = None
        elif side.mask is None:
            self._epoll.register(fd, mask)
            side.mask = mask
        elif mask != side.mask:
            self._epoll.modify(fd, mask)
            side.mask = mask

    def _end_overdue(self, now: float, tunnels: Iterable[TunnelRelay]) -> None:
        for tunnel in tunnels:
            by = tunnel.overdue(now)
            if by:
                self._end(tunnel, by)

    def _end(self, tunnel: TunnelRelay, by: str) -> None:
        tunnel.end(by)
        self._ending.discard(tunnel)
        for side in (tunnel.client, tunnel.backend):
            self._sides.pop(side.fd, None)
