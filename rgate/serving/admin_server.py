"""AdminServer: a small server beside the gateway's own, at another address."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from ..chain.exchange import Exchange
from ..chain.middleware import LocalRoute, LocalRoutes
from ..chain.scope import ExchangeScope, reject
from ..config.models import ServerConfig
from ..errors import NoRoute, PluginError
from ..http1.client_address import IPAllowlist, is_from_web_page
from .listeners import Listeners
from .runtime_dir import prepare
from .server import Server
from .sockets import listen
from .unix_socket import UnixSocketPath

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..runtime.gateway import Gateway

__all__ = ["AdminServer"]

UNIX: Final = "unix:"
END_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 1.0
LIMITS: Final = ServerConfig(threads=2, max_in_flight=16, max_slow_clients=16, max_connections=128, drain_seconds=1)
_log = logging.getLogger("rgate.serving")


class AdminServer:
    """Answers local routes at an address of its own, in plain HTTP, while it is entered: for what is not for clients.

    It has threads of its own (two, up to 18 while they are taken), so it answers however busy the gateway is. A plugin keeps
    one over reloads (`gateway.keep`), returns it from `rgate_lifespan`, and offers it every gateway's routes there; the gateway
    in force is the one that answers. Every worker process has one, all at the same port, and so has the next program while it
    takes over; the kernel chooses by connection. Entering raises PluginError when the address cannot be listened at.

    A `host` that is "unix:PATH" stands for a unix socket of this `mode`, without a port. One process at a time has it: the last
    that was started, or, when that is gone without another in its place, within some two seconds any other. With `paths` in place
    of a host it is the first of these where a socket can be, and its directory is made. Then `on_trouble` is called with "", or,
    where there can be none, with the reasons; and nothing listens.

    Whoever can connect is admitted, if the route admits him too. But no web page ever is; and at a port the Host has to be an
    address, `localhost` or one of `hosts`, and nothing comes in that a proxy has forwarded (IPAllowlist says why).
    """

    def __init__(
        self,
        name: str,
        host: str = "",
        port: int = 0,
        mode: int = 0o600,
        *,
        hosts: Iterable[str] = (),
        paths: Sequence[str] = (),
        on_trouble: Callable[[str], object] = lambda why: None,
    ) -> None:
        self._name = name
        self._host, self._port = host, port
        self._mode = mode
        self._paths = paths
        self._on_trouble = on_trouble
        self._place = UnixSocketPath(host.removeprefix(UNIX), mode) if host.startswith(UNIX) else None
        self._at_port = IPAllowlist(IPAllowlist.EVERYWHERE, hosts)
        self._offered: list[tuple[Gateway, WSGIApplication]] = []
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def offer(self, gateway: Gateway, routes: LocalRoutes) -> None:
        """Have `routes` answered as soon as `gateway` is in force."""
        admitted = {path: self._route(route) for path, route in routes.items()}
        app = ExchangeScope(_nothing, reject, admitted, gateway.registry.report_failure)
        self._offered = [*(offered for offered in self._offered if offered[0].in_force), (gateway, app)]

    @property
    def url(self) -> str:
        """Where it listens, while it does. A unix socket is "unix:PATH"."""
        if self._server is None:
            return ""
        return self._host if self._place is not None else self._server.url

    def __enter__(self) -> AdminServer:
        self._over.clear()
        try:
            self._server = self._listening_somewhere() if self._paths else self._listening()
        except OSError as error:
            where = f"{self._host} port {self._port}" if self._place is None else self._host
            raise PluginError(f"{self._name}: cannot listen on {where}: {error.strerror or error}") from error
        if self._server is None:
            return self
        self._thread = threading.Thread(target=self._run, name=f"rgate-{self._name}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._server is None or self._thread is None:
            return
        self._over.set()
        self._server.stop()
        self._thread.join(END_SECONDS)
        self._server.server_close()
        if self._place is not None:
            self._place.leave()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        offered = self._offered
        app = next((app for gateway, app in reversed(offered) if gateway.in_force), offered[-1][1])
        return app(environ, start_response)

    def _route(self, route: WSGIApplication | LocalRoute) -> LocalRoute:
        local = route if isinstance(route, LocalRoute) else LocalRoute(route, _admit)
        return LocalRoute(local.admin_app or local.app, lambda environ: self._admits(environ) and local.allows(environ))

    def _admits(self, environ: WSGIEnvironment) -> bool:
        return self._at_port(environ) if self._place is None else not is_from_web_page(environ)

    def _listening_somewhere(self) -> Server | None:
        """At the first of the paths; None where there can be no socket at any of them."""
        failures = []
        for path in self._paths:
            self._place, self._host = UnixSocketPath(path, self._mode), f"{UNIX}{path}"
            try:
                server = self._listening()
            except OSError as error:
                failures.append(f"{path}: {error.strerror or error}")
            else:
                self._on_trouble("")
                return server
        self._on_trouble("; ".join(failures))
        return None

    def _listening(self) -> Server:
        place = self._place
        if self._paths:
            prepare(self._host.removeprefix(UNIX))  # again where somebody has tidied up
        with listen(self._host, self._port, shared=True) if place is None else place.take() as listener:
            server = Server(self, LIMITS, Listeners((listener,)))
        if place is not None:
            server.beat = lambda: None if place.is_served() else server.stop()
        return server

    def _run(self) -> None:
        """Serve, and once more where the place of a unix socket has become empty."""
        assert self._server is not None
        self._server.run()
        while not self._over.is_set():
            self._server.server_close()
            try:
                self._server = self._listening()
            except OSError as error:
                why = error.strerror or str(error)
                _log.warning("%s: cannot listen on %s: %s", self._name, self._host, why, extra={"about": (self._host, why)})
                self._over.wait(AGAIN_SECONDS)
                continue
            if self._over.is_set():  # and only the one before has been stopped
                self._server.stop()
            self._server.run()


def _admit(environ: WSGIEnvironment) -> bool:
    return True


def _nothing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    body = NoRoute("Nothing is answered at this path.").json(Exchange.of(environ).id)
    start_response("404 Not Found", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
