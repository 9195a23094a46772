"""TLS connections, and plain HTTP connections that are redirected to HTTPS."""

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
from .connection_owner import ConnectionOwner
from .connection_state import State
from .events import READABLE
from .response_writer import ResponseWriter

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["RedirectConnection", "TLSConnection"]

_OF_CLIENT_CERTIFICATES = ("CERTIFICATE_VERIFY_FAILED", "PEER_DID_NOT_RETURN_A_CERTIFICATE")
_log = logging.getLogger("rgate.serving")


class TLSConnection(Connection):
    """A connection that begins with a TLS handshake. The handshake holds no thread either, and has `head_seconds`."""

    __slots__ = ("_certificate", "_stream")
    is_plaintext = False
    first_state = State.OPENING

    def __init__(self, owner: ConnectionOwner, sock: socket.socket, peer: tuple[str, int]) -> None:
        tls = owner.settings.tls
        assert tls is not None
        self._stream = TLSStream(sock, tls.context)
        self._certificate: Field | None = None
        super().__init__(owner, cast(socket.socket, self._stream), peer)

    def on_ready(self, event: int) -> bool:
        if not self._stream.handshake_done and self.state is not State.LINGERING:
            return self._do_handshake(event)
        is_open = super().on_ready(event)
        if self._stream.has_more and self.state is not State.YIELDED and not self.has_stopped_reading:
            self.events.add(READABLE)
        return is_open

    def reject(self, error: GatewayError) -> bool:
        """Without a handshake there can be no answer."""
        return self._stream.handshake_done and super().reject(error)

    def close(self) -> None:
        # A response that broke off must not look complete, so the client is sent no close_notify then.
        if self._stream.handshake_done and not self.response.aborted:
            self._stream.send_close_notify()
        super().close()

    def _do_handshake(self, event: int) -> bool:
        stream, owner = self._stream, self._owner
        try:
            is_done = stream.do_handshake(RECEIVE_BYTES)
        except PlaintextReceived as plaintext:
            return self._reject_plain_http(plaintext.args[0])
        except ssl.SSLError as error:
            tls = self.settings.tls
            is_refused = tls is not None and tls.requests_client_certificates and error.reason in _OF_CLIENT_CERTIFICATES
            level, reason = logging.INFO if is_refused else logging.DEBUG, error.reason
            _log.log(level, "%s: TLS handshake failed: %s", self._template["REMOTE_ADDR"], error, extra={"dedup_key": reason})
            return self._linger()  # the alert that tells the client why must not be lost
        except OSError:
            return False
        if stream.wants_write:
            owner.watch_writable(self)
        if stream.has_more:
            self.events.add(READABLE)
        if not is_done:
            return self.state is not State.CLOSING_IDLE
        self.deadline = owner.now + self.settings.config.head_seconds
        if self.state is State.OPENING:
            self.state = State.IDLE
        self._template |= ssl_environ(stream.tls)
        client = forwarded_client_cert(stream.tls)
        if client is not None:
            self._certificate = Field(HEADER, client)
            self._apply_settings()
        return self.on_ready(event)

    def _apply_settings(self) -> None:
        super()._apply_settings()
        if self._certificate is not None:
            self._identify = partial(_add_client_certificate, self._certificate, self._identify)

    def _reject_plain_http(self, block: bytes) -> bool:
        self._sock = self._stream.sock
        self.response = ResponseWriter(self._owner.shared.head_encoder, self._sock)
        self._template |= {"wsgi.url_scheme": "http"}
        self._template.pop("HTTPS", None)
        return self._refuse(NotTLS(), block)


def _add_client_certificate(field: Field, identify: Callable[[WSGIEnvironment], object] | None, environ: WSGIEnvironment) -> None:
    """Add the header about the client's certificate. The backend gets it as if the client had sent it."""
    if identify is not None:
        identify(environ)
    sent: Fields = environ[FIELDS_KEY]
    environ[FIELDS_KEY] = Fields([*sent, field], sent.proxy_fields)
    environ[field.key] = field.value


class RedirectConnection(Connection):
    """A connection to the plain HTTP port of a TLS server: every request is redirected to its https URL (308)."""

    __slots__ = ()

    def _apply_settings(self) -> None:
        super()._apply_settings()
        shared, tls = self._owner.shared, self.settings.config.tls
        public_port = (tls and tls.public_port) or shared.port
        self._template |= {
            "SERVER_PORT": str(shared.redirect_port),
            "wsgi.url_scheme": "http",
            REJECTION_KEY: partial(_https_redirect, public_port),
        }
        self._template.pop("HTTPS", None)


def _https_redirect(port: int, environ: WSGIEnvironment) -> GatewayError:
    """The rejection (REJECTION_KEY) of a request: a redirect, or an error when the request has no Host to redirect to."""
    host = re.sub(r":[0-9]*$", "", environ.get("HTTP_HOST", ""))
    if not host:
        return RequestError("no Host that the client could be sent to")
    target = environ["RAW_URI"]
    return HTTPSOnly(f"https://{host}{'' if port == 443 else f':{port}'}{target if target.startswith('/') else '/'}")
