"""SideServer: a small server beside the gateway's own, at another address."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from .config.models import ServerConfig
from .errors import NoRoute, PluginError
from .exchange import Exchange
from .hookspecs import LocalRoutes
from .scope import ExchangeScope, raise_refused
from .serving.listeners import Listeners
from .serving.server import Server
from .serving.sockets import listen

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .gateway import Gateway

__all__ = ["SideServer"]

END_SECONDS: Final = 5.0
LIMITS: Final = ServerConfig(threads=2, max_in_flight=16, max_slow_clients=16, max_connections=128, drain_seconds=1)


class SideServer:
    """Answers local routes at an address of its own, in plain HTTP, while it is entered: for what is not for clients.

    It has threads of its own (two, up to 18 while they are taken), so it answers however busy the gateway is. A plugin keeps
    one over reloads (`gateway.keep`), returns it from `rgate_lifespan`, and offers it every gateway's routes there; the gateway
    in force is the one that answers. Every worker process has one, all at the same port, and so has the next program while it
    takes over; the kernel chooses by connection. Entering raises PluginError when the address cannot be listened at.
    """

    def __init__(self, name: str, host: str, port: int) -> None:
        self._name = name
        self._host, self._port = host, port
        self._offered: list[tuple[Gateway, WSGIApplication]] = []
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    def offer(self, gateway: Gateway, routes: LocalRoutes) -> None:
        """Have `routes` answered as soon as `gateway` is in force."""
        app = ExchangeScope(_nothing, raise_refused, routes, gateway.registry.report_failure)
        self._offered = [*(offered for offered in self._offered if offered[0].in_force), (gateway, app)]

    @property
    def url(self) -> str:
        """Where it listens, while it does."""
        return self._server.url if self._server else ""

    def __enter__(self) -> SideServer:
        try:
            listener = listen(self._host, self._port, shared=True)
        except OSError as error:
            where = f"{self._host} port {self._port}"
            raise PluginError(f"{self._name}: cannot listen on {where}: {error.strerror or error}") from error
        with listener:
            self._server = Server(self, LIMITS, Listeners((listener,)))
        self._thread = threading.Thread(target=self._server.run, name=f"rgate-{self._name}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._server is not None and self._thread is not None
        self._server.stop()
        self._thread.join(END_SECONDS)
        self._server.server_close()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        offered = self._offered
        app = next((app for gateway, app in reversed(offered) if gateway.in_force), offered[-1][1])
        return app(environ, start_response)


def _nothing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    body = NoRoute("Nothing is answered at this path.").json(Exchange.of(environ).id)
    start_response("404 Not Found", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
