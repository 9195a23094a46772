"""build(): the picture of the gateway on one screen. Gateway: what plugins are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from time import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from ..chain.dispatch import RouteDispatch
from ..chain.middleware import LocalRoutes, Middleware
from ..chain.pipeline import ROUTING, chain_problem, compose, order
from ..chain.plugin_guard import PluginGuard, guarded
from ..chain.scope import ExchangeScope, OnFailed, reject
from ..chain.timing import timed
from ..config import Config
from ..config.file_watch import contents
from ..discovery import EndpointQueue, EndpointTable, Snapshot
from ..discovery.model import Backend, Endpoint, Route, Timeouts, UpstreamTLS
from ..errors import GatewayError, PluginError, RgateError
from ..forwarding.body_limit import BodyLimit
from ..forwarding.forwarder import Forwarder
from ..forwarding.probe import probe
from ..forwarding.upstream import UpstreamPools
from ..http1.cache import MemoryUse, memory_use
from ..log import trouble
from ..plugin.hookspecs import SelectionPolicy
from ..plugin.registry import Registry
from ..plugins import BUILTIN
from ..serving.readiness import Readiness
from ..serving.runtime_dir import socket_paths
from ..tls.server_context import ServerTLS
from .resources import ResourcePool
from .running import GatewayRuntime
from .worker_channel import WorkerChannel

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..chain.exchange import Exchange

__all__ = ["Gateway", "build"]

_T = TypeVar("_T")
_NONE: Mapping[str, str] = MappingProxyType({})


class Gateway:
    """One config, composed. It is a WSGI app; plugins are given it at start-up.

    config        the whole config, frozen
    registry      the active plugins; `registry.hook` calls their hooks
    backends      by name
    routes        in config order
    table         EndpointTable; `table.snapshot` is the present state of discovery
    policies      selection policies by name
    local_routes  exact path → WSGI app
    queue         requests that wait for an endpoint of their backend
    siblings      the other worker processes, to ask them for something
    chains        route name → names of the middleware it passes, outermost first
    isolations    by name, plugins that may be skipped or disabled when they fail
    tls           what the server speaks TLS with; None without server.tls
    condition     whether this process wants new traffic, and what an operator should know
    in_force      whether it runs and no other has taken its place
    on_reload     what reload() does in this process
    listening     host and port that rgate's own server listens at; None under another WSGI server, and until it is known
    tells         whether this is the one of several worker processes that tells what concerns all of them
    logs_failures whether a plugin logs every request that fails, with its id, so that nobody else need log its fault

    `before` is the gateway whose place it is to take when the config has changed; what that one has kept it may go on with.
    """

    def __init__(self, config: Config, registry: Registry, before: Gateway | None = None) -> None:
        self.config = config
        self.registry = registry
        self._kept: ResourcePool = ResourcePool(before._kept if before else None)
        known = before.backends if before else {}
        # What is equal to one of before is that one, so that the forwarder knows it at a glance.
        self.backends: Mapping[str, Backend] = {
            name: known[name] if known.get(name) == backend else backend for name, backend in _backends(config).items()
        }
        self.routes: tuple[Route, ...] = tuple(_routes(config, self.backends))
        self.policies: Mapping[str, SelectionPolicy] = _unique(registry.collect("rgate_selection_policies", config=config))
        sources = registry.collect("rgate_discovery_sources", config=config)
        self.table: EndpointTable = EndpointTable(self.backends.values(), sources, before=before.table if before else None)
        tls = config.server.tls
        self.tls = self.resource("rgate.tls", (tls, contents(tls.files)), lambda: ServerTLS(tls)) if tls is not None else None
        limits = (config.server.max_response_head_bytes, config.server.max_response_headers)
        self.upstreams: UpstreamPools = before.upstreams if before else UpstreamPools(*limits)
        for backend in self.backends.values():
            if backend.tls != UpstreamTLS():
                self.upstreams.prepare(backend.tls)
        self.queue: EndpointQueue = before.queue if before else EndpointQueue()
        self.dispatch: WSGIApplication
        self._line: list[Gateway] = before._line if before else [self]  # shared; the one in force
        if before is None:
            self.queue.follow(self.table, self.backends.values(), config.server.max_waiting)
        self.table.on_snapshot(_connect_anew)
        self.workers: WorkerChannel = WorkerChannel(before.workers if before else None)
        self.readiness: Readiness = before.readiness if before else Readiness()
        self.on_reload: Callable[[], str] = before.on_reload if before else _cannot_reload
        self.listening: tuple[str, int] | None = before.listening if before else None
        self.tells: bool = before.tells if before else True
        self.local_routes: LocalRoutes = {}
        self.chains: Mapping[str, tuple[str, ...]] = {}
        self.plugin_guards: dict[str, PluginGuard] = {}
        self.in_force: bool = False
        # The lowest limit for which a route may refuse a body by its length, before any of it has come.
        self.lowest_body_limit = min((r.max_body_bytes for r in self.routes if r.max_body_bytes is not None), default=None)
        self.logs_failed_requests: bool = False
        self._on_failed: list[OnFailed] = []
        self.app: WSGIApplication

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self.app(environ, start_response)

    def options(self, name: str, route: Route | None = None) -> Any:
        """The validated options of an active plugin, a route's own where it has some: an instance of its section's model,
        or None without a section."""
        own = route.options.get(name) if route else None
        return own or self.config.plugins.get(name)

    def resource(self, name: str, key: object, make: Callable[[], _T]) -> _T:
        """An object that outlives a change of the config: what `make()` returns, or the one that is there already.

        The gateway that is made of a changed config gets the same object as long as `key` is equal, usually the options it
        was made for, so counters and open files go on. `name` begins with the plugin's; asked for again in the same gateway
        it is the same object. Once no gateway keeps it, its close() is called if it has one. For hooks, in the thread that
        calls them; `make` must start no thread, as worker processes may be forked after it. Raises ValueError when the name
        is kept for another key.
        """
        return self._kept.get(name, key, make)

    def update_plugin_warnings(self) -> None:
        """Have the condition say what an operator should know of plugins that have failed."""
        found = [isolation.notice for isolation in self.plugin_guards.values() if isolation.notice]
        if found:
            self.readiness.notices["plugins"] = "; ".join(found)
        else:
            self.readiness.notices.pop("plugins", None)

    def reload(self) -> str:
        """Have the config read again and taken up, in every worker process. Returns why it is refused, a line for each problem,
        or "" when it is in force; that takes some seconds at most. From any thread. Raises RgateError where that cannot be
        known, or where nothing can be read again, as under another WSGI server."""
        return self.on_reload()

    def socket_paths(self) -> list[str]:
        """Where a unix socket of this gateway may be that commands on this machine are to find: the paths, the best first. None
        under another WSGI server, which may have several processes, each with a gateway and all at once."""
        return socket_paths(*self.listening) if self.listening is not None else []

    def probe(self, endpoint: Endpoint, target: str = "", headers: Mapping[str, str] = _NONE, seconds: float = 2.0) -> int:
        """Ask an endpoint, on a connection of its own: GET `target`. Returns the status; without a target it only connects,
        in the way of the endpoint's backend, and the status is 0.

        `seconds` bounds the connecting and the wait for the response's head, each; its body is not read. Raises the
        GatewayError that a request would end in. From any thread; it is in no statistics.
        """
        tls = self.backends[endpoint.backend].tls
        return probe(self.upstreams.at(endpoint.address, tls), target, headers, seconds)

    def on_failed_request(self, callback: OnFailed) -> None:
        """Have `callback(exchange, environ)` called for every request that has failed, once it is over: one that ended in a
        fault with a status of 400 or more, or in a status of 500 or more from its backend. For hooks that are called when a
        config is loaded; a request that does not fail costs nothing for it.

        Called in the thread of the request, so it must be quick and must not block; what it raises is logged. The environ is
        what the chain has left of it.
        """
        self._on_failed.append(callback)

    @contextmanager
    def running(self) -> Iterator[Gateway]:
        """Enter before serving, leave after the last exchange: plugins' lifespans around live discovery."""
        running = GatewayRuntime(self)
        try:
            yield self
        finally:
            running.end()

    def memory(self) -> list[MemoryUse]:
        """What this process remembers of requests and responses so as to read them faster, by name, and how much it may be."""
        return memory_use()

    def take_over(self, before: Gateway) -> None:
        """Be the gateway in force in place of `before`. The core's own."""
        self.in_force, before.in_force = True, False
        self.table.take_over(before.table)
        self._line[0] = self
        self.queue.follow(self.table, self.backends.values(), self.config.server.max_waiting)
        self.workers.take_over()
        self.upstreams.limit(self.config.server.max_response_head_bytes, self.config.server.max_response_headers)
        self._kept.settle()
        self.update_plugin_warnings()  # those of `before` are in the chains again

    def tidy(self) -> None:
        """Close connections that rest for too long, and those to endpoints that are gone; remind of certificates that end, and
        of lines that are lost. The core's own."""
        ending = self.tls.remind(time()) if self.tls is not None else ""
        for name, notice in (("certificates", ending), ("log", trouble())):
            if notice:
                self.readiness.notices[name] = notice
            else:
                self.readiness.notices.pop(name, None)
        found = self.table.snapshot.found
        self.upstreams.keep({(e.address, self.backends[name].tls) for name, endpoints in found.items() for e in endpoints})

    def close(self, beside: Gateway | None = None) -> None:
        """Close what has been kept, and every connection, but for what is in use `beside` as well. The core's own."""
        if beside is None:
            self._kept.close()
            self.upstreams.close()
        else:
            self._kept.close(beside._kept)
            self.upstreams.forget(but={backend.tls for backend in beside.backends.values()})


def build(config: Config, registry: Registry, before: Gateway | None = None) -> Gateway:
    """Compose the gateway that `config` describes, to take the place of `before` if there is one. Raises PluginError.

    client ⇄ ExchangeScope ─→ outer chain … routing ─→ RouteDispatch ─→ the route's own chain ─→ forwarder ⇄ endpoint
    """
    gateway = Gateway(config, registry, before)
    try:
        _compose(gateway)
    except BaseException:
        gateway.close(before)
        raise
    return gateway


def _compose(gateway: Gateway) -> None:
    config, registry = gateway.config, gateway.registry
    for routes in registry.collect("rgate_local_routes", gateway=gateway):
        for path in sorted(routes.keys() & gateway.local_routes.keys()):
            raise PluginError(f"two plugins answer the local route {path!r}")
        gateway.local_routes.update(routes)

    middlewares = [*registry.collect("rgate_middlewares", gateway=gateway), *registry.wsgi_middlewares(config)]
    chain = order([_treated(gateway, middleware) for middleware in middlewares], config.pipeline)
    at = next((i for i, m in enumerate(chain) if m.name == ROUTING), -1) + 1
    outer, inner = chain[:at], chain[at:]

    _check_outer(gateway, outer)
    _check_workable("the chain", chain)
    apps: dict[str, WSGIApplication] = {}
    for route in gateway.routes:
        own = [m for m in inner if route.options.get(m.name, ...) is not None]
        _check_workable(f"route {route.name!r}", (*outer, *own))
        edited = any(m.modifies_request for m in (*outer, *own))
        forwarder = Forwarder(gateway.upstreams, route, edited, gateway.config.server.via)
        app = compose(forwarder, own, partial(gateway.options, route=route))
        apps[route.name] = app if route.max_body_bytes is None else BodyLimit(app, route.max_body_bytes)
        gateway.chains = {**gateway.chains, route.name: tuple(m.name for m in (*outer, *own))}

    route_dispatch = RouteDispatch(gateway.table, apps, gateway.queue, lambda: gateway._line[0].dispatch)
    gateway.dispatch = route_dispatch.dispatch = compose(route_dispatch, outer[-1:], gateway.options)
    app = compose(gateway.dispatch, outer[:-1], gateway.options)
    refused = compose(reject, [m for m in outer if m.name != ROUTING], gateway.options)
    gateway.app = scope = ExchangeScope(app, refused, gateway.local_routes, partial(_report, gateway), gateway._on_failed)
    scope.lowest_body_limit = gateway.lowest_body_limit


def _report(gateway: Gateway, exchange: Exchange, error: BaseException, hook: str = "") -> None:
    """Log what has come out of the chain or, with `hook`, of a local route; but no fault that has a line of its own anyway."""
    if hook or not (gateway.logs_failed_requests and isinstance(error, GatewayError)):
        gateway.registry.report_failure(exchange, error, hook)


def _treated(gateway: Gateway, middleware: Middleware) -> Middleware:
    """The middleware as it stands in the chains: timed, and its failures dealt with, if the config asks for it."""
    name = middleware.name
    treatment = gateway.config.treatment(name)
    if treatment.timed:
        middleware = timed(middleware)
    if treatment.on_error == "fail":
        return middleware
    if middleware.essential:
        raise PluginError(f"plugin {name!r}: no request may pass without it, so on_error can only be fail")
    disable_after = None if isinstance(treatment.on_error, str) else treatment.on_error.disable_after
    plugin = gateway.registry.describe(name)
    gateway.plugin_guards[name] = PluginGuard(plugin, disable_after=disable_after, on_change=gateway.update_plugin_warnings)
    return guarded(middleware, gateway.plugin_guards[name])


def _check_workable(where: str, chain: Sequence[Middleware]) -> None:
    names = [middleware.name for middleware in chain]
    if problem := chain_problem(names, [name for name in names if name not in BUILTIN]):
        raise PluginError(f"{where} cannot answer any request: {problem}")


def _cannot_reload() -> str:
    raise RgateError("this gateway cannot read its config again; start it anew")


def _check_outer(gateway: Gateway, outer: Sequence[Middleware]) -> None:
    """Refuse what a route cannot say: a middleware outside of `routing` runs before the route is known."""
    for route in gateway.routes:
        for middleware in outer:
            section = gateway.registry.sections.get(middleware.name)
            if middleware.name in route.options and not (section and section.per_route):
                name = middleware.name
                raise PluginError(f"route {route.name!r}: {name!r} runs before the route is known, so it cannot differ by route")


def _backends(config: Config) -> dict[str, Backend]:
    """By name. One that says nothing of max_in_flight may have 80 % of what the process may, so that no other is without."""
    most = config.server.max_in_flight
    share = most if len(config.backends) == 1 else max(1, most * 4 // 5)
    return {entry.name: _backend(entry, share) for entry in config.backends}


def _backend(config: Any, most: int) -> Backend:
    labels = (label.partition("=") for label in config.match_labels)
    pairs = tuple((name, value) for name, _, value in labels)
    files = config.tls.files
    tls = UpstreamTLS(**dict(config.tls), contents=contents(files) if files else "")
    most = config.max_in_flight or most
    return Backend(config.name, pairs, config.policy, tls, max_in_flight=most, wait_seconds=config.wait_seconds)


def _connect_anew(snapshot: Snapshot) -> None:
    """Have endpoints that are stopping met on fresh connections only: those that rest may be closed at any moment."""
    for endpoints in snapshot.found.values():
        for endpoint in endpoints:
            activity = endpoint.state
            if endpoint.stopping != activity.stopping:
                activity.stopping = endpoint.stopping
                if activity.upstream is not None:
                    activity.upstream.pool.rest(not activity.stopping)


def _routes(config: Config, backends: Mapping[str, Backend]) -> Iterator[Route]:
    for entry in config.routes:
        yield Route(
            name=entry.name or entry.path_prefix,
            path_prefix=entry.path_prefix.rstrip("/"),
            backend=backends[entry.backend],
            hosts=tuple(host.lower() for host in entry.hosts),
            methods=tuple(method.upper() for method in entry.methods),
            headers=tuple((name.lower(), value) for name, value in entry.headers.items()),
            strip_prefix=entry.strip_prefix,
            max_body_bytes=entry.max_body_bytes,
            timeouts=Timeouts(entry.timeouts.connect_seconds, entry.timeouts.response_seconds),
            options={name: options or None for name, options in entry.plugins.items()},
        )


def _unique(policies: Iterable[SelectionPolicy]) -> dict[str, SelectionPolicy]:
    found: dict[str, SelectionPolicy] = {}
    for policy in policies:
        if policy.name in found:
            raise PluginError(f"two plugins bring a selection policy named {policy.name!r}")
        found[policy.name] = policy
    return found
