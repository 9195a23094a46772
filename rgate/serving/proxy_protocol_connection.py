"""Connections that begin with a PROXY header: whose they are is what the proxy says."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

from ..errors import Overloaded
from ..http1.environ import PROXY_HEADER_KEY
from ..http1.proxy_protocol import MAX_HEADER_BYTES, parse_proxy_header
from .connection import Connection

if TYPE_CHECKING:
    from .server import Server

__all__ = ["announced"]

_log = logging.getLogger("rgate.serving")


def announced(kind: type[Connection]) -> type[Connection]:
    """Connections of this kind, with a PROXY header before their first byte.

    The header is looked at in the socket and taken out of it only when it is whole, so whatever follows, a TLS handshake
    or a request, is left untouched. It has `head_seconds`, and holds no thread; what is none ends the connection without a
    word, as the specification wants.
    """
    return type(f"ProxyProtocolConnection{kind.__name__}", (_Announced, kind), {"__slots__": ("_raw",)})


class _Announced(Connection):
    if TYPE_CHECKING:
        _raw: socket.socket | None
        __slots__ = ("_raw",)
    else:
        __slots__ = ()  # two bases with slots of their own cannot be joined

    def __init__(self, server: Server, sock: socket.socket, peer: tuple[str, int]) -> None:
        self._raw = sock
        super().__init__(server, sock, peer)

    def advance(self) -> bool:
        """Go on with what has come. False: the connection is over and must be closed."""
        raw = self._raw
        if raw is None:
            return super().advance()
        try:
            block = raw.recv(MAX_HEADER_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            announcement = parse_proxy_header(block) if block else None
        except BlockingIOError:
            return not self.leaving
        except (OSError, ValueError) as error:
            _log.debug("%s: %s", self.address, error)
            return False
        if announcement is None:
            return bool(block) and not self.late and not self.leaving
        raw.recv(announcement.size)
        self._raw = None
        if announcement.address is not None:
            self._come_from(announcement.address, announcement.port)
        self._template |= {PROXY_HEADER_KEY: True}
        if not self._server.admission.enter(self):
            return self.turn_away(Overloaded(f"too many connections of {self.address}"))
        return super().advance()
