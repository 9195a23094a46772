"""build(): from a config to the chains, on one screen. Gateway: what plugins are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from ..chain.dispatch import RouteDispatch
from ..chain.middleware import LocalRoute, LocalRoutes, Middleware
from ..chain.pipeline import ROUTING, chain_problem, compose, order
from ..chain.plugin_guard import PluginGuard, guarded
from ..chain.scope import ExchangeScope, OnFailed, reject
from ..chain.timing import timed
from ..config import Backend, Config, Route, UpstreamTLS
from ..config.file_watch import fingerprint
from ..discovery import EndpointQueue, EndpointTable
from ..discovery.model import Endpoint
from ..errors import GatewayError, PluginError
from ..forwarding.body_limit import BodyLimit
from ..forwarding.forwarder import Forwarder
from ..forwarding.probe import probe
from ..http1.cache import MemoryUse, memory_use
from ..plugin.hookspecs import SelectionPolicy
from ..plugin.registry import Registry
from ..plugins import BUILTIN
from ..serving.readiness import Readiness
from ..serving.runtime_dir import socket_paths
from ..tls.server_context import ServerTLS
from .runtime import Runtime
from .worker_channel import Workers

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..chain.exchange import Exchange

__all__ = ["Gateway", "build"]

_T = TypeVar("_T")
_NONE: Mapping[str, str] = MappingProxyType({})


class Gateway:
    """One config, composed. It is a WSGI app; plugins get it when the config is loaded. Frozen once build() has returned it.

    config        the whole config
    registry      the active plugins; `registry.hook` calls their hooks
    runtime       what this process keeps over reloads; the core's own, plugins use the attributes below
    backends      by name
    routes        in config order
    table         EndpointTable; `table.snapshot` is what discovery knows now
    policies      selection policies by name
    local_routes  exact path → WSGI app
    queue         requests that wait for an endpoint of their backend
    workers       the other worker processes
    chains        route name → names of the middleware that its requests pass, outermost first
    plugin_guards by name, plugins that may be skipped or disabled when they fail
    tls           the TLS of the server; None without server.tls
    readiness     whether this process wants new traffic, and what an operator should know
    app           the outermost WSGI app
    dispatch      the part of the chain from `routing` inwards, for requests that have waited during a reload
    lowest_body_limit     the lowest limit for which a route may refuse a body by its length, before any of it has been read
    logs_failed_requests  whether a plugin logs every request that fails, with its id; then the core does not log its fault
    """

    backends: Mapping[str, Backend]
    routes: tuple[Route, ...]
    policies: Mapping[str, SelectionPolicy]
    table: EndpointTable
    tls: ServerTLS | None
    dispatch: WSGIApplication
    app: WSGIApplication
    lowest_body_limit: int | None

    _is_built = False

    def __init__(self, config: Config, registry: Registry, runtime: Runtime) -> None:
        self.config = config
        self.registry = registry
        self.runtime = runtime
        self.queue: EndpointQueue = runtime.queue
        self.workers: Workers = Workers(runtime.workers)
        self.readiness: Readiness = runtime.readiness
        self.local_routes: Mapping[str, WSGIApplication | LocalRoute] = {}
        self.chains: Mapping[str, tuple[str, ...]] = {}
        self.plugin_guards: Mapping[str, PluginGuard] = {}
        self.logs_failed_requests: bool = False
        self._on_failed: list[OnFailed] = []

    def __setattr__(self, name: str, value: object) -> None:
        if self._is_built:
            raise AttributeError(f"gateway.{name} cannot change: a gateway is frozen once it is built")
        object.__setattr__(self, name, value)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self.app(environ, start_response)

    def options(self, name: str, route: Route | None = None, backend: Backend | None = None) -> Any:
        """The validated options of an active plugin, those of a route or a backend if it has some; see Config.options()."""
        return self.config.options(name, route, backend)

    @property
    def is_current(self) -> bool:
        """Whether new requests go to this gateway."""
        return self.runtime.current is self

    @property
    def reports(self) -> bool:
        """Whether this process logs what concerns all worker processes; one of them does."""
        return self.runtime.reports

    def resource(self, name: str, key: object, factory: Callable[[], _T]) -> _T:
        """An object that stays the same over reloads: the existing one, or what `factory()` returns.

        The gateway of a changed config gets the same object while `key` is equal (usually the options that it was made for),
        so counters and open files go on. `name` begins with the plugin's. Once no gateway holds the object, its close() is
        called if it has one. Call this in hooks only; `factory` must start no thread, because worker processes may be forked
        later. Raises ValueError when this gateway has the name for another key.
        """
        return self.runtime.resources.get_or_create(name, key, factory, self)

    def update_plugin_warnings(self) -> None:
        """Show operators which plugins have failed, if this is the current gateway."""
        if not self.is_current:
            return
        found = [guard.notice for guard in self.plugin_guards.values() if guard.notice]
        if found:
            self.readiness.warnings["plugins"] = "; ".join(found)
        else:
            self.readiness.warnings.pop("plugins", None)

    def reload(self) -> str:
        """Read the config again and make it active, in every worker process. Returns "" when it is, or why it is refused, one
        problem per line. Takes some seconds at most. From any thread. Raises RgateError when the outcome is not known, or when
        the config cannot be read again, as under another WSGI server."""
        return self.runtime.on_reload()

    def socket_paths(self) -> list[str]:
        """Paths where this gateway may have the unix socket by which commands on this machine find it, the best first. Empty
        under another WSGI server, which may have several processes with a gateway each."""
        return socket_paths(*self.runtime.listening) if self.runtime.listening is not None else []

    def probe(self, endpoint: Endpoint, target: str = "", headers: Mapping[str, str] = _NONE, seconds: float = 2.0) -> int:
        """Connect to an endpoint, apart from the pools, and send GET `target`. Returns the status of the response. Without a
        target it only connects, with the TLS of the endpoint's backend, and returns 0.

        `seconds` limits both the connecting and the wait for the response's head; the body is not read. Raises the
        GatewayError that a request would end with. From any thread. Probes are not in the statistics.
        """
        tls = self.backends[endpoint.backend].tls
        return probe(self.runtime.upstreams.get(endpoint.address, tls), target, headers, seconds)

    def on_failed_request(self, callback: OnFailed) -> None:
        """Have `callback(exchange, environ)` called once for every request that has failed, after its end: with a fault of
        status 400 or more, or with a status of 500 or more from its backend. For hooks that are called when a config is
        loaded. Requests that succeed cost nothing for it.

        It is called in the thread of the request, so it must be quick and must not block. An exception is logged. The chain
        may have changed the environ.
        """
        self._on_failed.append(callback)

    @contextmanager
    def running(self) -> Iterator[Gateway]:
        """Run this gateway while inside, as the first of its runtime: discovery, and the lifespans of its plugins. Enter before
        serving, leave after the last exchange."""
        self.runtime.start(self)
        try:
            yield self
        finally:
            self.runtime.stop()

    def memory(self) -> list[MemoryUse]:
        """The size and limit of each cache by which this process parses repeated requests and responses faster."""
        return memory_use()


def build(config: Config, registry: Registry, runtime: Runtime | None = None) -> Gateway:
    """Compose the gateway that `config` describes. Raises PluginError. It starts nothing and replaces nothing:
    `runtime.start()` or `runtime.activate()` does. Without `runtime` the gateway has one of its own, where it is current.

    client ⇄ ExchangeScope ─→ outer chain … routing ─→ RouteDispatch ─→ the route's own chain ─→ forwarder ⇄ endpoint
    """
    gateway = Gateway(config, registry, runtime or Runtime())
    try:
        _resolve(gateway)
        _compose(gateway)
    except BaseException:
        gateway.runtime.discard(gateway)
        raise
    gateway._is_built = True
    if runtime is None:
        gateway.runtime.activate(gateway)
    return gateway


def _resolve(gateway: Gateway) -> None:
    """The nouns of the config: backends, routes, policies, endpoints, TLS."""
    config, registry, runtime = gateway.config, gateway.registry, gateway.runtime
    # A backend equal to one of the current gateway is the same object, so that the forwarder sees quickly that it is equal.
    known = runtime.current.backends if runtime.current is not None else {}
    gateway.backends = {
        backend.name: known[backend.name] if known.get(backend.name) == backend else backend for backend in config.backends
    }
    gateway.routes = config.routes
    gateway.lowest_body_limit = min((r.max_body_bytes for r in gateway.routes if r.max_body_bytes is not None), default=None)
    gateway.policies = _unique(registry.collect("rgate_selection_policies", config=config))
    sources = registry.collect("rgate_discovery_sources", config=config)
    gateway.table = EndpointTable(gateway.backends.values(), sources, runtime.discovery)
    tls = config.server.tls
    gateway.tls = (
        gateway.resource("rgate.tls", (tls, fingerprint(tls.files)), lambda: ServerTLS(tls)) if tls is not None else None
    )
    for backend in gateway.backends.values():
        if backend.tls != UpstreamTLS():
            runtime.upstreams.load_tls_context(backend.tls)


def _compose(gateway: Gateway) -> None:
    config, registry = gateway.config, gateway.registry
    local_routes: LocalRoutes = {}
    for routes in registry.collect("rgate_local_routes", gateway=gateway):
        for path in sorted(routes.keys() & local_routes.keys()):
            raise PluginError(f"two plugins answer the local route {path!r}")
        local_routes.update(routes)
    gateway.local_routes = MappingProxyType(local_routes)

    middlewares = [*registry.collect("rgate_middlewares", gateway=gateway), *registry.wsgi_middlewares(config)]
    chain = order([_guarded(gateway, middleware) for middleware in middlewares], config.pipeline)
    at = next((i for i, m in enumerate(chain) if m.name == ROUTING), -1) + 1
    outer, inner = chain[:at], chain[at:]

    _check_outer(gateway, outer)
    _check_chain("the chain", chain)
    apps: dict[str, WSGIApplication] = {}
    chains: dict[str, tuple[str, ...]] = {}
    for route in gateway.routes:
        own = [m for m in inner if route.options.get(m.name, route.backend.options.get(m.name, ...)) is not None]
        _check_chain(f"route {route.name!r}", (*outer, *own))
        edited = any(m.modifies_request for m in (*outer, *own))
        forwarder = Forwarder(gateway.runtime.upstreams, route, edited, gateway.config.server.via)
        app = compose(forwarder, own, partial(gateway.options, route=route))
        apps[route.name] = app if route.max_body_bytes is None else BodyLimit(app, route.max_body_bytes)
        chains[route.name] = tuple(m.name for m in (*outer, *own))
    gateway.chains = MappingProxyType(chains)

    runtime = gateway.runtime
    route_dispatch = RouteDispatch(
        gateway.table, apps, gateway.queue, lambda: runtime.current.dispatch if runtime.current is not None else None
    )
    gateway.dispatch = route_dispatch.dispatch = compose(route_dispatch, outer[-1:], gateway.options)
    app = compose(gateway.dispatch, outer[:-1], gateway.options)
    refused = compose(reject, [m for m in outer if m.name != ROUTING], gateway.options)
    gateway.app = scope = ExchangeScope(app, refused, local_routes, partial(_report, gateway), gateway._on_failed)
    scope.lowest_body_limit = gateway.lowest_body_limit


def _report(gateway: Gateway, exchange: Exchange, error: BaseException, hook: str = "") -> None:
    """Log what the chain or, with `hook`, a local route has raised, except a fault that a plugin logs in any case."""
    if hook or not (gateway.logs_failed_requests and isinstance(error, GatewayError)):
        gateway.registry.report_failure(exchange, error, hook)


def _guarded(gateway: Gateway, middleware: Middleware) -> Middleware:
    """The middleware as the chains have it: timed, and with its failures handled, if the config asks for that."""
    name = middleware.name
    treatment = gateway.config.plugin_common(name)
    if treatment.timed:
        middleware = timed(middleware)
    if treatment.on_error == "fail":
        return middleware
    if middleware.essential:
        raise PluginError(f"plugin {name!r}: no request may pass without it, so on_error can only be fail")
    disable_after = None if isinstance(treatment.on_error, str) else treatment.on_error.disable_after
    plugin = gateway.registry.describe(name)
    guard = PluginGuard(plugin, disable_after=disable_after, on_change=gateway.update_plugin_warnings)
    gateway.plugin_guards = {**gateway.plugin_guards, name: guard}
    return guarded(middleware, guard)


def _check_chain(where: str, chain: Sequence[Middleware]) -> None:
    names = [middleware.name for middleware in chain]
    if problem := chain_problem(names, [name for name in names if name not in BUILTIN]):
        raise PluginError(f"{where} cannot answer any request: {problem}")


def _check_outer(gateway: Gateway, outer: Sequence[Middleware]) -> None:
    """Refuse options of a route for a middleware outside of `routing`, which runs before the route is known."""
    for route in gateway.routes:
        for middleware in outer:
            section = gateway.registry.sections.get(middleware.name)
            if middleware.name in route.options and not (section and section.per_route):
                name = middleware.name
                raise PluginError(f"route {route.name!r}: {name!r} runs before the route is known, so it cannot differ by route")


def _unique(policies: Iterable[SelectionPolicy]) -> dict[str, SelectionPolicy]:
    found: dict[str, SelectionPolicy] = {}
    for policy in policies:
        if policy.name in found:
            raise PluginError(f"two plugins have a selection policy named {policy.name!r}")
        found[policy.name] = policy
    return found
