"""Clients that speak TLS: one on a socket, and one in memory whose every byte the test passes on."""

from __future__ import annotations

import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from .certificates import Pair, authority
from .raw_client import RawClient

SHOP = authority().issue("shop.example", "*.shop.example", "localhost", "127.0.0.1")
TLS: dict[str, Any] = {"tls": {"certificate": SHOP.certificate, "key": SHOP.key}}
"""Server options for TLS with one certificate."""


class SecureClient(RawClient):
    """One TLS connection to a server. `was_cut`: it ended without a TLS close_notify."""

    was_cut = False

    def __init__(
        self,
        url: str,
        name: str | None = "localhost",
        *,
        pair: Pair | None = None,
        context: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        super().__init__(url)
        context = context or authority().client_context(pair)
        if name is None:
            context.check_hostname = False
        try:
            self.tls = context.wrap_socket(self.sock, server_hostname=name, session=session, suppress_ragged_eofs=False)
        except BaseException:
            self.sock.close()
            raise
        self.sock: socket.socket = self.tls

    def __enter__(self) -> SecureClient:
        return self

    def _more(self) -> bool:
        try:
            return super()._more()
        except ssl.SSLError as error:  # SSLEOFError, but for Python 3.11.2
            if error.reason != "UNEXPECTED_EOF_WHILE_READING" and not isinstance(error, ssl.SSLEOFError):
                raise
            self.was_cut = True
            return False


class MemoryClient:
    """A TLS client without a socket: `to_send()` returns the bytes to send, `take()` accepts the bytes that arrived."""

    def __init__(self, name: str | None = "localhost", context: ssl.SSLContext | None = None) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = context or authority().client_context()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        self.do_handshake()

    def do_handshake(self) -> bool:
        """Continue the handshake; whether it is complete on this side."""
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def take(self, block: bytes) -> None:
        self.incoming.write(block)

    def to_send(self) -> bytes:
        return self.outgoing.read()

    def shake_hands_over(self, sock: socket.socket) -> None:
        """Complete the handshake over a socket."""
        sock.sendall(self.to_send())
        while not self.do_handshake():
            sock.sendall(self.to_send())
            block = sock.recv(65_536)
            assert block, "the server has closed within the handshake"
            self.take(block)
        sock.sendall(self.to_send())

    def read_over(self, sock: socket.socket) -> bytes:
        """Read the next plaintext block."""
        while True:
            try:
                return self.tls.read(65_536)
            except ssl.SSLWantReadError:
                block = sock.recv(65_536)
                assert block, "the server has closed"
                self.take(block)


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    return parts.hostname, parts.port
