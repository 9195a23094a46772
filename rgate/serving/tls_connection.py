"""Connections of a server that speaks TLS: those that do, and those that are sent to where it is spoken."""

from __future__ import annotations

import logging
import re
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

from ..errors import GatewayError, HTTPSOnly, NotTLS, RequestError
from ..http1.environ import FIELDS_KEY, REJECTION_KEY
from ..http1.fields import Field, Fields
from ..tls.client_certificate import HEADER, forwarded_client_cert, ssl_environ
from ..tls.stream import PlaintextReceived, TLSStream
from .connection import RECEIVE_BYTES, Connection
from .events import READABLE
from .response import ResponseWriter

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from .server import Server

__all__ = ["RedirectConnection", "TLSConnection"]

_OF_CLIENT_CERTIFICATES = ("CERTIFICATE_VERIFY_FAILED", "PEER_DID_NOT_RETURN_A_CERTIFICATE")
_log = logging.getLogger("rgate.serving")


class TLSConnection(Connection):
    """A connection that begins with a TLS handshake, which holds no thread either, and has `head_seconds`."""

    __slots__ = ("_certificate", "_stream")
    plain = False

    def __init__(self, server: Server, sock: socket.socket, peer: tuple[str, int]) -> None:
        assert server.tls is not None
        self._stream = TLSStream(sock, server.tls.context)
        self._certificate: Field | None = None
        super().__init__(server, cast(socket.socket, self._stream), peer)

    def advance(self) -> bool:
        """Go on with what has come. False: the connection is over and must be closed."""
        if not self._stream.handshake_done and not self._lingering:
            return self._shake_hands()
        goes_on = super().advance()
        if self._stream.has_more and not self.queued and not self.deaf:
            self.events |= READABLE
        return goes_on

    def turn_away(self, error: GatewayError) -> bool:
        """Without a handshake there is no answer."""
        return self._stream.handshake_done and super().turn_away(error)

    def close(self) -> None:
        # A response that broke off must not look as if it had ended well.
        if self._stream.handshake_done and not self._response.cut:
            self._stream.send_close_notify()
        super().close()

    def _shake_hands(self) -> bool:
        stream, server = self._stream, self._server
        try:
            done = stream.do_handshake(RECEIVE_BYTES)
        except PlaintextReceived as plain:
            return self._answer_plainly(plain.args[0])
        except ssl.SSLError as error:
            refused = server.tls is not None and server.tls.requests_client_certificates and error.reason in _OF_CLIENT_CERTIFICATES
            level, reason = logging.INFO if refused else logging.DEBUG, error.reason
            _log.log(level, "%s: no TLS: %s", self._template["REMOTE_ADDR"], error, extra={"about": reason})
            self._lingering = True
            return self._linger()  # what the client is told must not be lost
        except OSError:
            return False
        if stream.wants_write:
            server.wait_to_send(self)
        if stream.has_more:
            self.events |= READABLE
        if not done:
            return not self.leaving
        self.deadline = server.now + server.config.head_seconds
        self._template |= ssl_environ(stream.tls)
        client = forwarded_client_cert(stream.tls)
        if client is not None:
            self._certificate = Field(HEADER, client)
            self._trust()
        return self.advance()

    def _trust(self) -> None:
        super()._trust()
        if self._certificate is not None:
            self._identify = partial(_vouch, self._certificate, self._identify)

    def _answer_plainly(self, block: bytes) -> bool:
        self._sock = self._stream.sock
        self._response = ResponseWriter(self._server.heads, self._sock)
        self._template |= {"wsgi.url_scheme": "http"}
        self._template.pop("HTTPS", None)
        self._refuse(NotTLS(), block)
        return self._linger()


def _vouch(field: Field, before: Callable[[WSGIEnvironment], object] | None, environ: WSGIEnvironment) -> None:
    """Say who the client is, in a header that stands in environ and goes to the backend as if the client had sent it."""
    if before is not None:
        before(environ)
    sent: Fields = environ[FIELDS_KEY]
    environ[FIELDS_KEY] = Fields([*sent, field], sent.proxy_fields)
    environ[field.key] = field.value


class RedirectConnection(Connection):
    """A connection to the plain port of a server that speaks TLS: every request is answered with its https URL (308)."""

    __slots__ = ()

    def _come_from(self, address: str, port: int) -> None:
        super()._come_from(address, port)
        server = self._server
        self._template |= {
            "SERVER_PORT": str(server.redirect_port),
            "wsgi.url_scheme": "http",
            REJECTION_KEY: partial(_elsewhere, server.public_port),
        }
        self._template.pop("HTTPS", None)


def _elsewhere(port: int, environ: WSGIEnvironment) -> GatewayError:
    host = re.sub(r":[0-9]*$", "", environ.get("HTTP_HOST", ""))
    if not host:
        return RequestError("no Host that the client could be sent to")
    target = environ["RAW_URI"]
    return HTTPSOnly(f"https://{host}{'' if port == 443 else f':{port}'}{target if target.startswith('/') else '/'}")
