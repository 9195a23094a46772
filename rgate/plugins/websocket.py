"""websocket: lets WebSocket connections through (RFC 6455). All other upgrades, such as h2c, are not passed on.

    plugins:
      websocket:
        max_tunnels: 10000             # default: at one time, in each worker process; one more gets 503
        idle_seconds: 3600             # default: without a byte in either direction; then both sides are closed
        max_duration_seconds: 86400    # in all; default: no limit

A route can have options of its own (`plugins: {websocket: {idle_seconds: 60}}`), or `websocket: false` for no WebSockets. The
`max_tunnels` of a route limits its own tunnels; the tunnels of all routes together stay within the limit of the section above.

A WebSocket handshake is a GET in HTTP/1.1 without a body, with `Connection: Upgrade`, `Upgrade: websocket`, one Sec-WebSocket-Key
and one Sec-WebSocket-Version (§4.1). Any other request goes to the backend without the upgrade, as an ordinary one. If the
backend does not switch protocols, its response is passed on, and the client's connection stays HTTP.

The exchange is over with the 101, and is counted and logged as such. How a tunnel ended is in the gateway's log (level debug).
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
UPGRADE_KEY: Final = "rgate.upgrade"
_log = logging.getLogger("rgate.plugins.websocket")

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class WebSocketOptions(BaseModel):
    """`max_tunnels` (0 to 1,000,000) applies per process. The two times are above 0 and at most a day."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tunnels: Annotated[int, Field(ge=0, le=1_000_000)] = 10_000
    idle_seconds: Seconds = 3_600.0
    max_duration_seconds: Seconds | None = None


def is_handshake(environ: WSGIEnvironment) -> bool:
    """Whether a request with `Upgrade` is a WebSocket handshake."""
    once = [environ.get(name, "") for name in ("HTTP_SEC_WEBSOCKET_KEY", "HTTP_SEC_WEBSOCKET_VERSION")]
    return (
        environ["REQUEST_METHOD"] == "GET"
        and PROTOCOL in map(str.strip, environ[UPGRADE_KEY].split(","))
        and all(value and "," not in value for value in once)
        and environ.get("CONTENT_LENGTH", "0") == "0"
        and "HTTP_TRANSFER_ENCODING" not in environ
    )


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("websocket", WebSocketOptions, per_route=True)


@hookimpl
def rgate_middlewares(gateway: Gateway) -> Middleware:
    tunnels_of_all = threading.BoundedSemaphore((gateway.options("websocket") or WebSocketOptions()).max_tunnels)

    def wrap(app: WSGIApplication, options: WebSocketOptions | None) -> WSGIApplication:
        own = options or WebSocketOptions()
        tunnels = threading.BoundedSemaphore(own.max_tunnels)

        def acquire() -> bool:
            if not tunnels.acquire(blocking=False):
                return False
            if tunnels_of_all.acquire(blocking=False):
                return True
            tunnels.release()
            return False

        def release() -> None:
            tunnels.release()
            tunnels_of_all.release()

        def websocket(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            if UPGRADE_KEY not in environ or not is_handshake(environ):
                return app(environ, start_response)
            if not acquire():
                raise Overloaded("max_tunnels")
            exchange = Exchange.of(environ)
            tunnel = exchange.tunnel = Tunnel(PROTOCOL, own.idle_seconds, own.max_duration_seconds, _on_close(exchange, release))
            try:
                return app(environ, start_response)
            finally:
                if not tunnel.established:
                    exchange.tunnel = None
                    release()

        return websocket

    # Innermost, so that every middleware that may refuse the request runs before a tunnel is counted.
    return Middleware("websocket", wrap, after="selection", modifies_request=False)


def _on_close(exchange: Exchange, release: Callable[[], None]) -> Callable[[Tunnel], None]:
    def on_close(tunnel: Tunnel) -> None:
        release()
        _log.debug(
            "%s: ended by %s after %.3f s, %d bytes received and %d sent",
            exchange.id, tunnel.closed_by, tunnel.seconds, tunnel.bytes_received, tunnel.bytes_sent,
        )  # fmt: skip

    return on_close
