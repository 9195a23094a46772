"""RouteDispatch: hands a request over to the chain of its route."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from ..errors import InternalError, NoEndpoint
from .exchange import ENVIRON_KEY, Exchange

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..config import Route
    from ..discovery import EndpointQueue, EndpointTable

__all__ = ["RouteDispatch"]


class RouteDispatch:
    """Calls the chain of `exchange.route`, with the endpoints of the current snapshot as candidates.

    A request without candidates is suspended in `queue` if the backend's `wait_seconds` and the limits of the queue allow it;
    otherwise NoEndpoint is raised. If the config has been reloaded while a request was suspended, it continues at
    `current_dispatch()`, the dispatch of the active gateway with the router around it, so that the new config decides about it.

    dispatch   this dispatch with the router around it; set by build()
    """

    def __init__(
        self,
        table: EndpointTable,
        chains: Mapping[str, WSGIApplication],
        queue: EndpointQueue,
        current_dispatch: Callable[[], WSGIApplication | None] = lambda: None,
    ) -> None:
        self._table = table
        self._chains = chains
        self._queue = queue
        self._waiting = queue.waiting
        self._current_dispatch = current_dispatch
        self.dispatch: WSGIApplication = self

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        exchange: Exchange = environ[ENVIRON_KEY]
        route = exchange.route
        if route is None:
            raise InternalError("no router in the chain has set exchange.route")
        candidates = self._table.snapshot.endpoints.get(route.backend.name)
        if not candidates or (self._waiting and route.backend.name in self._waiting):  # no request overtakes suspended ones
            return self._suspend(environ, start_response, exchange, route)
        exchange.candidates = candidates
        return self._chains[route.name](environ, start_response)

    def _suspend(
        self, environ: WSGIEnvironment, start_response: StartResponse, exchange: Exchange, route: Route
    ) -> Iterable[bytes]:
        def on_resume(in_time: bool) -> Iterable[bytes]:
            return self._resume(environ, start_response, exchange, route, in_time)

        suspended = self._queue.suspended(environ, route.backend, on_resume)
        return self._call_chain(environ, start_response, exchange, route) if suspended is None else suspended

    def _call_chain(
        self, environ: WSGIEnvironment, start_response: StartResponse, exchange: Exchange, route: Route
    ) -> Iterable[bytes]:
        candidates = self._table.snapshot.endpoints.get(route.backend.name)
        if not candidates:
            raise NoEndpoint(f"backend {route.backend.name!r}")
        exchange.candidates = candidates
        return self._chains[route.name](environ, start_response)

    def _resume(
        self, environ: WSGIEnvironment, start_response: StartResponse, exchange: Exchange, route: Route, in_time: bool
    ) -> Iterable[bytes]:
        dispatch = self._current_dispatch()
        if dispatch is not None and dispatch is not self.dispatch:  # the config has been reloaded
            exchange.route = None
            return dispatch(environ, start_response)
        if in_time and not self._table.snapshot.endpoints.get(route.backend.name):
            return self._suspend(environ, start_response, exchange, route)  # the endpoint has gone again
        return self._call_chain(environ, start_response, exchange, route)
