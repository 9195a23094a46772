"""The chain: its order as data, its composition, and the hand-over to a route's own chain.

RouteDispatch hands a request over to its route's own chain, `map_body` is what a middleware uses to see a response body go
by. Everything is composed when a config is loaded; per request there are plain WSGI calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InternalError, NoEndpoint, PluginError, RgateError
from .exchange import ENVIRON_KEY, Exchange
from .middleware import Middleware

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..discovery import EndpointQueue, EndpointTable
    from ..discovery.model import Route

__all__ = ["ROUTING", "STANDARD_ORDER", "RouteDispatch", "chain_problem", "compose", "map_body", "order", "validate_app"]

STANDARD_ORDER = (  # outermost first
    "stats",  # sees what the client sees, the gateway's own errors too
    "access_log",  # the same, one line a request
    "normalize",  # last word on every response, faults included
    "faults",  # everything inside may raise GatewayError
    "routing",  # inside this the route is known and the chain is the route's own
    "bulkhead",  # refuses what would wait with too many others for one backend
    "retry",  # re-enters what is inside with the failed endpoint taken from the candidates
    "selection",  # picks one candidate: exchange.endpoint
)  # then the forwarder, which is no plugin

ROUTING = "routing"


def order(middlewares: Iterable[Middleware], wanted: Sequence[str] | None = None) -> tuple[Middleware, ...]:
    """The middlewares, outermost first.

    The built-ins stand in STANDARD_ORDER. Another one stands directly outside the one that it names as `before`, or
    directly inside the one it names as `after`; with neither, directly inside `routing`. Several at one place are
    sorted by name. `wanted`, the operator's whole list, overrides all of this and must name each middleware once.
    Raises PluginError.
    """
    by_name: dict[str, Middleware] = {}
    for middleware in middlewares:
        if middleware.name in by_name:
            raise PluginError(f"two plugins bring a middleware named {middleware.name!r}")
        by_name[middleware.name] = middleware
    if wanted is not None:
        if sorted(wanted) != sorted(by_name):
            missing, unknown = sorted(set(by_name) - set(wanted)), sorted(set(wanted) - set(by_name))
            problem = [f"missing {', '.join(missing)}"] * bool(missing) + [f"not active {', '.join(unknown)}"] * bool(unknown)
            raise PluginError(f"pipeline must name every active middleware once: {'; '.join(problem) or 'one is named twice'}")
        return tuple(by_name[name] for name in wanted)
    chain: list[str] = []
    places = {name: _place(m) for name, m in sorted(by_name.items()) if name not in STANDARD_ORDER}
    for anchor in STANDARD_ORDER:
        chain += [name for name, place in places.items() if place == ("before", anchor)]
        if anchor in by_name:
            chain.append(anchor)
        chain += [name for name, place in places.items() if place == ("after", anchor)]
    return tuple(by_name[name] for name in chain)


def _place(middleware: Middleware) -> tuple[str, str]:
    if middleware.before and middleware.after:
        raise PluginError(f"middleware {middleware.name!r} says both before and after; it can have one place only")
    side, anchor = ("before", middleware.before) if middleware.before else ("after", middleware.after or ROUTING)
    if anchor not in STANDARD_ORDER:
        raise PluginError(f"middleware {middleware.name!r} says {side}={anchor!r}; the names are {', '.join(STANDARD_ORDER)}")
    return side, anchor


def chain_problem(chain: Sequence[str], others: Collection[str] = ()) -> str:
    """What keeps a chain (names, outermost first) from answering any request, and the way out; "" when nothing does.

    `others` are the names in it that no built-in has.
    """
    if ROUTING not in chain:
        return f"nothing finds the route of a request: {_REPLACE.format(ROUTING)}"
    if "selection" not in chain and not others:
        return f"nothing chooses an endpoint: {_REPLACE.format('selection')}"
    for outer, inner, why in _NEEDED_ORDER:
        if outer in chain and inner in chain and chain.index(inner) < chain.index(outer):
            return f"{outer!r} must stand before {inner!r}: {why}"
    return ""


_REPLACE = "take {0!r} out of disable, or install a plugin of that name and write it under plugins"
_NEEDED_ORDER = (
    ("faults", ROUTING, "it answers when no route matches"),
    (ROUTING, "retry", "only a route has endpoints"),
    (ROUTING, "selection", "only a route has endpoints"),
    (ROUTING, "websocket", "only a route has options for it"),
    ("retry", "selection", "another endpoint must be chosen when it tries again"),
)
"""Outer, inner, and why: what no order of the operator's own can do without."""


def compose(app: WSGIApplication, middlewares: Sequence[Middleware], options: Callable[[str], Any]) -> WSGIApplication:
    """`app` inside `middlewares` (outermost first). Raises PluginError when a wrap fails or returns no usable app."""
    for middleware in reversed(middlewares):
        try:
            app = validate_app(middleware.name, middleware.wrap(app, options(middleware.name)))
        except RgateError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(f"plugin {middleware.name!r}: wrap() raised {type(error).__name__}: {error}") from error
    return app


def validate_app(name: str, app: WSGIApplication) -> WSGIApplication:
    """`app`, which the plugin's wrap() has returned, if it can be one. Raises PluginError."""
    call = app if inspect.isroutine(app) else getattr(app, "__call__", None)  # noqa: B004 - the method itself
    if call is None:
        raise PluginError(f"plugin {name!r}: wrap() returned {app!r}, which is no WSGI app")
    if inspect.isgeneratorfunction(call):
        # It would run only when iterated: outside every try around the call, and its close() would be the only one.
        raise PluginError(f"plugin {name!r}: the app is a generator function; return an iterable instead")
    return app


def map_body(body: Iterable[bytes], each: Callable[[bytes], bytes]) -> Iterable[bytes]:
    """`body` with `each(block)` applied to every block as it goes by, and `body.close()` still called.

    Use this instead of a generator expression, which would never close the inner body and so leak its connection.
    """
    return _WrappedBody(body, each)


class _WrappedBody:
    def __init__(self, body: Iterable[bytes], each: Callable[[bytes], bytes]) -> None:
        self._blocks = iter(body)
        self._each = each
        self._close = getattr(body, "close", None)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self._each(next(self._blocks))

    def close(self) -> None:
        if self._close is not None:
            self._close()


class RouteDispatch:
    """Hands a request to the chain of its route, with the candidates of this moment.

    Without candidates the request waits in `queue`, if it may. One that has waited during a reload goes on at `current()`, the
    dispatch of the current gateway with the router around it, so that the new config decides. Raises NoEndpoint.
    """

    def __init__(
        self,
        table: EndpointTable,
        chains: Mapping[str, WSGIApplication],
        queue: EndpointQueue,
        current: Callable[[], WSGIApplication | None] = lambda: None,
    ) -> None:
        self._table = table
        self._chains = chains
        self._queue = queue
        self._waiting = queue.waiting
        self._current = current
        self.dispatch: WSGIApplication = self  # with the router around it

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        exchange: Exchange = environ[ENVIRON_KEY]
        route = exchange.route
        if route is None:
            raise InternalError("no router in the chain has set exchange.route")
        candidates = self._table.snapshot.endpoints.get(route.backend.name)
        if not candidates or (self._waiting and route.backend.name in self._waiting):
            return self._queued(environ, start_response, exchange, route)
        exchange.candidates = candidates
        return self._chains[route.name](environ, start_response)

    def _queued(
        self, environ: WSGIEnvironment, start_response: StartResponse, exchange: Exchange, route: Route
    ) -> Iterable[bytes]:
        def go_on(in_time: bool) -> Iterable[bytes]:
            return self._after_waiting(environ, start_response, exchange, route, in_time)

        suspended = self._queue.suspended(environ, route.backend, go_on)
        return self._handed_over(environ, start_response, exchange, route) if suspended is None else suspended

    def _handed_over(
        self, environ: WSGIEnvironment, start_response: StartResponse, exchange: Exchange, route: Route
    ) -> Iterable[bytes]:
        candidates = self._table.snapshot.endpoints.get(route.backend.name)
        if not candidates:
            raise NoEndpoint(f"backend {route.backend.name!r}")
        exchange.candidates = candidates
        return self._chains[route.name](environ, start_response)

    def _after_waiting(
        self, environ: WSGIEnvironment, start_response: StartResponse, exchange: Exchange, route: Route, in_time: bool
    ) -> Iterable[bytes]:
        app = self._current()
        if app is not None and app is not self.dispatch:
            exchange.route = None
            return app(environ, start_response)
        if in_time and not self._table.snapshot.endpoints.get(route.backend.name):
            return self._queued(environ, start_response, exchange, route)  # it has gone again
        return self._handed_over(environ, start_response, exchange, route)
