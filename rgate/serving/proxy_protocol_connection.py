"""Connections that begin with a PROXY header, in which a proxy in front states the client's address."""

from __future__ import annotations

import logging
import socket
from typing import Final

from ..errors import Overloaded
from ..http1.environ import PROXY_HEADER_KEY
from ..http1.proxy_protocol import MAX_HEADER_BYTES, parse_proxy_header
from .connection import Connection
from .connection_owner import ConnectionOwner
from .connection_state import State
from .tls_connection import RedirectConnection, TLSConnection

__all__ = ["with_proxy_protocol"]

_log = logging.getLogger("rgate.serving")


class _ProxyProtocolConnection(Connection):
    """Reads a PROXY header, then continues as the other base class of a subclass.

    The header is looked at in the socket and taken out of it only when it is complete, so what follows, a TLS handshake or a
    request, is left untouched. It has `head_seconds`, and holds no thread. An invalid header closes the connection without
    an answer, as the specification asks for.
    """

    __slots__ = ()
    first_state = State.OPENING

    def __init__(self, owner: ConnectionOwner, sock: socket.socket, peer: tuple[str, int]) -> None:
        super().__init__(owner, sock, peer)
        self._proxied = sock  # a TLS connection wraps it; the header comes before the handshake

    def on_ready(self, event: int) -> bool:
        sock = self._proxied
        if sock is None or self.state is State.LINGERING:
            return super().on_ready(event)
        try:
            block = sock.recv(MAX_HEADER_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            header = parse_proxy_header(block) if block else None
        except BlockingIOError:
            return self.state is not State.CLOSING_IDLE
        except (OSError, ValueError) as error:
            _log.debug("%s: %s", self.address, error)
            return False
        if header is None:
            return bool(block) and self.state is State.OPENING and not self.client_half_closed
        sock.recv(header.size)
        self._proxied = None
        if header.address is not None:
            self._set_peer(header.address, header.port)
        self._template |= {PROXY_HEADER_KEY: True}
        if not self._owner.shared.limits.acquire(self):
            return self.reject(Overloaded(f"too many connections of {self.address}"))
        if self.state is State.OPENING and self.state_after_header is not State.OPENING:
            self.state = self.state_after_header
        return super().on_ready(event)

    state_after_header = State.IDLE


class _PlainConnection(_ProxyProtocolConnection):
    __slots__ = ()


class _TLSConnection(_ProxyProtocolConnection, TLSConnection):
    __slots__ = ()
    state_after_header = State.OPENING  # the handshake follows


class _RedirectConnection(_ProxyProtocolConnection, RedirectConnection):
    __slots__ = ()


_WITH_PROXY_PROTOCOL: Final[dict[type[Connection], type[Connection]]] = {
    Connection: _PlainConnection,
    TLSConnection: _TLSConnection,
    RedirectConnection: _RedirectConnection,
}


def with_proxy_protocol(connection_class: type[Connection]) -> type[Connection]:
    """The class of connections that begin with a PROXY header and continue as `connection_class`."""
    return _WITH_PROXY_PROTOCOL[connection_class]
