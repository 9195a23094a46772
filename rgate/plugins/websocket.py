"""websocket: lets WebSocket connections through (RFC 6455). Every other upgrade, h2c first of all, stays out.

    plugins:
      websocket:
        max_tunnels: 10000         # at one time, in each worker process; one more gets 503
        idle_seconds: 3600         # without a byte in either direction; then both sides are closed
        max_duration_seconds: 86400         # in all; default: no limit

A route may say otherwise (`plugins: {websocket: {idle_seconds: 60}}`, or `websocket: false` for none). The `max_tunnels` of
a route bounds its own tunnels; all together stay within that of the section above.

What counts as a WebSocket handshake is GET in HTTP/1.1 without a body, with `Connection: Upgrade`, `Upgrade: websocket`,
one Sec-WebSocket-Key and one Sec-WebSocket-Version (§4.1). Any other request goes to the backend without the upgrade, as an
ordinary one. So does the answer of a backend that does not switch protocols: the client's connection stays HTTP.

The exchange is over with the 101, and counted and logged so; how a tunnel went is in the log of the gateway (level debug).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from rgate import ConfigSection, Exchange, Gateway, Middleware, Overloaded, Tunnel, hookimpl

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["WebSocketOptions"]

PROTOCOL: Final = "websocket"
ASKED: Final = "rgate.upgrade"
_log = logging.getLogger("rgate.plugins.websocket")

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class WebSocketOptions(BaseModel):
    """`max_tunnels` (0 to 1,000,000) counts per process. `idle_seconds` and `max_duration_seconds` are above 0 and at most a day."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tunnels: Annotated[int, Field(ge=0, le=1_000_000)] = 10_000
    idle_seconds: Seconds = 3_600.0
    max_duration_seconds: Seconds | None = None


class _Places:
    """Places for tunnels: `take` one, or be told that there is none, and `give` it back."""

    def __init__(self, most: int, also: _Places | None = None) -> None:
        self._most = most
        self._taken = 0
        self._also = also
        self._lock = threading.Lock()

    def take(self) -> bool:
        with self._lock:
            if self._taken >= self._most or not (self._also is None or self._also.take()):
                return False
            self._taken += 1
            return True

    def give(self) -> None:
        with self._lock:
            self._taken -= 1
        if self._also is not None:
            self._also.give()


def is_handshake(environ: WSGIEnvironment) -> bool:
    """Whether a request that asks for an upgrade is a WebSocket handshake."""
    once = [environ.get(name, "") for name in ("HTTP_SEC_WEBSOCKET_KEY", "HTTP_SEC_WEBSOCKET_VERSION")]
    return (
        environ["REQUEST_METHOD"] == "GET"
        and PROTOCOL in map(str.strip, environ[ASKED].split(","))
        and all(value and "," not in value for value in once)
        and environ.get("CONTENT_LENGTH", "0") == "0"
        and "HTTP_TRANSFER_ENCODING" not in environ
    )


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("websocket", WebSocketOptions, per_route=True)


@hookimpl
def rgate_middlewares(gateway: Gateway) -> Middleware:
    places_of_all = _Places((gateway.options("websocket") or WebSocketOptions()).max_tunnels)

    def wrap(app: WSGIApplication, options: WebSocketOptions | None) -> WSGIApplication:
        own = options or WebSocketOptions()
        places = _Places(own.max_tunnels, places_of_all)

        def websocket(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            if ASKED not in environ or not is_handshake(environ):
                return app(environ, start_response)
            if not places.take():
                raise Overloaded("max_tunnels")
            exchange = Exchange.of(environ)
            tunnel = exchange.tunnel = Tunnel(PROTOCOL, own.idle_seconds, own.max_duration_seconds, _ended(exchange, places))
            try:
                return app(environ, start_response)
            finally:
                if not tunnel.established:
                    exchange.tunnel = None
                    places.give()

        return websocket

    # Innermost, so that whatever may refuse a request has had its chance before a place is taken.
    return Middleware("websocket", wrap, after="selection", modifies_request=False)


def _ended(exchange: Exchange, places: _Places) -> Callable[[Tunnel], None]:
    def ended(tunnel: Tunnel) -> None:
        places.give()
        _log.debug(
            "%s: ended by %s after %.3f s, %d bytes received and %d sent",
            exchange.id, tunnel.closed_by, tunnel.seconds, tunnel.bytes_received, tunnel.bytes_sent,
        )  # fmt: skip

    return ended
