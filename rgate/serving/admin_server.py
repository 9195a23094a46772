"""AdminServer: a second, small server with an address of its own, for pages that are not for clients."""

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
from .runtime_dir import make_directory
from .server import Server
from .sockets import listen
from .unix_socket import UnixSocketPath

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..runtime.gateway import Gateway

__all__ = ["AdminServer"]

UNIX: Final = "unix:"
STOP_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 1.0
LIMITS: Final = ServerConfig(threads=2, max_in_flight=16, max_slow_clients=16, max_connections=128, drain_seconds=1)
_log = logging.getLogger("rgate.serving")


class AdminServer:
    """A context manager that serves local routes in plain HTTP at an address of its own, while it is entered.

    It has its own threads (two; up to 20 while all are taken, and 16 more for slow clients), so it answers however busy the
    gateway is. A plugin keeps one across reloads (`gateway.resource`), returns it from `rgate_lifespan`, and calls set_routes()
    there with the routes of every gateway; the active gateway's routes are served. Each worker process has one. They share the
    port, also with the next program during an upgrade, and the kernel distributes the connections. Entering raises PluginError
    if the server cannot listen on the address.

    If `host` is "unix:PATH", it is a unix socket with this `mode`, and `port` has no effect. One process at a time owns it: the
    one started last. If that one ends without a replacement, another process binds the path within about two seconds. With
    `paths` instead of a host, the first path that can be bound is used, and its directory is made. Then `on_listen` is called
    with "", or, if no path can be bound, with the reasons, and the server does not listen.

    Every client that can connect is admitted, if the route also allows it, except web pages. At a port the Host must be an
    address, `localhost` or one of `hosts`, and forwarded requests are refused (see IPAllowlist).

    The thread `rgate-NAME` runs the server; only that thread replaces `_server`, when it has to bind a unix socket again.
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
        on_listen: Callable[[str], object] = lambda failure: None,
    ) -> None:
        self._name = name
        self._host, self._port = host, port
        self._mode = mode
        self._paths = paths
        self._on_listen = on_listen
        self._unix_socket = UnixSocketPath(host.removeprefix(UNIX), mode) if host.startswith(UNIX) else None
        self._port_allowlist = IPAllowlist(IPAllowlist.EVERYWHERE, hosts)
        self._apps: list[tuple[Gateway, WSGIApplication]] = []
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def set_routes(self, gateway: Gateway, routes: LocalRoutes) -> None:
        """Answer `routes` while `gateway` is the current one."""
        admitted = {path: self._route(route) for path, route in routes.items()}
        app = ExchangeScope(_nothing, reject, admitted, gateway.registry.report_failure)
        self._apps = [*(known for known in self._apps if known[0].is_current), (gateway, app)]

    @property
    def url(self) -> str:
        """The address it listens on, "unix:PATH" for a unix socket; "" while it does not listen."""
        if self._server is None:
            return ""
        return self._host if self._unix_socket is not None else self._server.url

    def __enter__(self) -> AdminServer:
        self._stopping.clear()
        try:
            self._server = self._listen_on_first_path() if self._paths else self._listen()
        except OSError as error:
            where = f"{self._host} port {self._port}" if self._unix_socket is None else self._host
            raise PluginError(f"{self._name}: cannot listen on {where}: {error.strerror or error}") from error
        if self._server is None:
            return self
        self._thread = threading.Thread(target=self._run, name=f"rgate-{self._name}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._server is None or self._thread is None:
            return
        self._stopping.set()
        self._server.stop()
        self._thread.join(STOP_SECONDS)
        self._server.server_close()
        if self._unix_socket is not None:
            self._unix_socket.unlink()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        apps = self._apps
        app = next((app for gateway, app in reversed(apps) if gateway.is_current), apps[-1][1])
        return app(environ, start_response)

    def _route(self, route: WSGIApplication | LocalRoute) -> LocalRoute:
        local = route if isinstance(route, LocalRoute) else LocalRoute(route, _admit)
        return LocalRoute(local.admin_app or local.app, lambda environ: self._admits(environ) and local.allows(environ))

    def _admits(self, environ: WSGIEnvironment) -> bool:
        return self._port_allowlist(environ) if self._unix_socket is None else not is_from_web_page(environ)

    def _listen_on_first_path(self) -> Server | None:
        """Listen on the first path that can be bound. None if there is no such path."""
        failures = []
        for path in self._paths:
            self._unix_socket, self._host = UnixSocketPath(path, self._mode), f"{UNIX}{path}"
            try:
                server = self._listen()
            except OSError as error:
                failures.append(f"{path}: {error.strerror or error}")
            else:
                self._on_listen("")
                return server
        self._on_listen("; ".join(failures))
        return None

    def _listen(self) -> Server:
        unix_socket = self._unix_socket
        if self._paths:
            make_directory(self._host.removeprefix(UNIX))  # it may have been removed since
        with listen(self._host, self._port, shared=True) if unix_socket is None else unix_socket.bind() as listener:
            server = Server(self, LIMITS, Listeners((listener,)))
        if unix_socket is not None:
            server.heartbeat = lambda: None if unix_socket.is_listening() else server.stop()
        return server

    def _run(self) -> None:
        """Serve. If the unix socket has been removed, bind it again and serve on."""
        assert self._server is not None
        self._server.run()
        while not self._stopping.is_set():
            self._server.server_close()
            try:
                self._server = self._listen()
            except OSError as error:
                reason = error.strerror or str(error)
                _log.warning(
                    "%s: cannot listen on %s: %s", self._name, self._host, reason, extra={"dedup_key": (self._host, reason)}
                )
                self._stopping.wait(RETRY_SECONDS)
                continue
            if self._stopping.is_set():  # __exit__() has stopped the previous server, not this one
                self._server.stop()
            self._server.run()


def _admit(environ: WSGIEnvironment) -> bool:
    return True


def _nothing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    body = NoRoute("There is no page at this path.").json(Exchange.of(environ).id)
    start_response("404 Not Found", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
