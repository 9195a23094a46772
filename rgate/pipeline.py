"""The chain: its order as data, its composition, and the three pieces of the core that stand in it.

ExchangeScope is outermost, RouteDispatch hands a request over to its route's own chain, `wrap_body` is what a
middleware uses to see a response body go by. Everything is composed when a config is loaded; per request there are
plain WSGI calls.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from .errors import GatewayError, InternalFault, NoEndpoint, PluginError, RequestError, RgateError
from .exchange import ENVIRON_KEY, Exchange
from .hookspecs import Middleware
from .wire.environ import REFUSED_KEY, TARGET_KEY, adopt

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .discovery import EndpointTable

__all__ = ["ROUTING", "STANDARD_ORDER", "ExchangeScope", "RouteDispatch", "compose", "order", "raise_refused", "wrap_body"]

STANDARD_ORDER = (  # outermost first
    "stats",  # sees what the client sees, the gateway's own errors too
    "access_log",  # the same, one line a request
    "normalize",  # last word on every response, faults included
    "faults",  # everything inside may raise GatewayError
    "routing",  # inside this the route is known and the chain is the route's own
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


def compose(app: WSGIApplication, middlewares: Sequence[Middleware], options: Callable[[str], Any]) -> WSGIApplication:
    """`app` inside `middlewares` (outermost first). Raises PluginError when a wrap fails or returns no usable app."""
    for middleware in reversed(middlewares):
        try:
            wrapped = middleware.wrap(app, options(middleware.name))
        except RgateError:
            raise
        except Exception as error:
            raise PluginError(f"plugin {middleware.name!r}: wrap() raised {type(error).__name__}: {error}") from error
        call = wrapped if inspect.isroutine(wrapped) else getattr(wrapped, "__call__", None)  # noqa: B004 - the method itself
        if call is None:
            raise PluginError(f"plugin {middleware.name!r}: wrap() returned {wrapped!r}, which is no WSGI app")
        if inspect.isgeneratorfunction(call):
            # It would run only when iterated: outside every try around the call, and its close() would be the only one.
            raise PluginError(f"plugin {middleware.name!r}: the app is a generator function; return an iterable instead")
        app = wrapped
    return app


def wrap_body(body: Iterable[bytes], each: Callable[[bytes], bytes]) -> Iterable[bytes]:
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
    """Hands a request to the chain of its route, with the candidates of this moment. Raises NoEndpoint when there are none."""

    def __init__(self, table: EndpointTable, chains: Mapping[str, WSGIApplication]) -> None:
        self._table = table
        self._chains = chains

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        exchange: Exchange = environ[ENVIRON_KEY]
        route = exchange.route
        if route is None:
            raise InternalFault("no router in the chain has set exchange.route")
        candidates = self._table.snapshot.endpoints.get(route.backend.name)
        if not candidates:
            raise NoEndpoint(f"backend {route.backend.name!r}")
        exchange.candidates = candidates
        return self._chains[route.name](environ, start_response)


def raise_refused(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The innermost app for requests that the server refused: raises what it found, or what it makes of the request."""
    error: GatewayError | Callable[[WSGIEnvironment], GatewayError] = environ[REFUSED_KEY]
    raise error if isinstance(error, GatewayError) else error(environ)


def answer_asterisk(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """`OPTIONS *` asks about the gateway itself (RFC 9110 §9.3.7)."""
    start_response("204 No Content", [])
    return []


class ExchangeScope:
    """The outermost app: answers local routes, gives every other request its Exchange, and ends it in time.

    `refused` is the outer chain around `raise_refused`. What still comes out of the chain as an exception before the
    response has begun becomes a plain answer in the common shape.
    """

    def __init__(
        self,
        app: WSGIApplication,
        refused: WSGIApplication,
        local_routes: Mapping[str, WSGIApplication],
        on_failure: Callable[[Exchange, Exception], object],
    ) -> None:
        self._app = app
        self._refused = refused
        self._local_routes = {"*": answer_asterisk, **local_routes}
        self._on_failure = on_failure

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        app = self._app
        if TARGET_KEY not in environ:
            try:
                adopt(environ)
            except ValueError as error:
                environ[REFUSED_KEY] = RequestError(str(error))
        if REFUSED_KEY in environ:
            app = self._refused
        elif environ["PATH_INFO"] in self._local_routes:
            return self._local(environ, start_response)
        environ[ENVIRON_KEY] = exchange = Exchange()
        sent: list[tuple[str, str]] = []

        def begin(status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None) -> Callable[[bytes], object]:
            nonlocal sent
            exchange.status = int(status[:3])
            sent = headers
            return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

        try:
            body = app(environ, begin)
        except Exception as error:
            self._on_failure(exchange, error)
            body = _last_resort(exchange, error, begin)
        if type(body) is list:
            for block in body:
                exchange.bytes_sent += len(block)
            exchange.finish()
            return body
        return _ExchangeBody(exchange, body, begin, lambda: sent, self._on_failure)

    def _local(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """A local route: outside the chain, so that it is never forwarded and never counted."""
        environ[ENVIRON_KEY] = exchange = Exchange()
        try:
            return self._local_routes[environ["PATH_INFO"]](environ, start_response)
        except Exception as error:
            self._on_failure(exchange, error)
            return _last_resort(exchange, error, start_response)


class _ExchangeBody:
    """A response body that ends its exchange before its last byte goes out.

    An app may call start_response as late as for its first block (PEP 3333): `headers()` is asked only after that, and
    what is raised before it still becomes an answer.
    """

    __slots__ = ("_begin", "_blocks", "_body", "_exchange", "_headers", "_left", "_on_failure")

    def __init__(
        self,
        exchange: Exchange,
        body: Iterable[bytes],
        begin: StartResponse,
        headers: Callable[[], list[tuple[str, str]]],
        on_failure: Callable[[Exchange, Exception], object],
    ) -> None:
        self._exchange = exchange
        self._body = body
        self._begin = begin
        self._headers: Callable[[], list[tuple[str, str]]] | None = headers
        self._on_failure = on_failure
        self._blocks = iter(body)
        self._left: int | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            block = next(self._blocks)
        except StopIteration:
            self._exchange.finish()
            raise
        except Exception as error:
            block = self._broken(error)
        if self._headers is not None:
            self._left, self._headers = _content_length(self._headers()), None
        self._exchange.bytes_sent += len(block)
        if self._left is not None:
            self._left -= len(block)
            if self._left <= 0:
                self._exchange.finish()
        return block

    def _broken(self, error: Exception) -> bytes:
        """The answer in place of a body that breaks off, if nothing of the response has left yet."""
        exchange = self._exchange
        if not isinstance(error, RequestError):  # a client that leaves or sends nonsense is no news
            self._on_failure(exchange, error)
        answer = _last_resort(exchange, error, self._begin)
        self._blocks = iter(())
        return answer[0]

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._exchange.finish()


def _content_length(headers: list[tuple[str, str]]) -> int | None:
    value = next((value for name, value in headers if name.lower() == "content-length"), "")
    return int(value) if value.isascii() and value.isdigit() else None


def _last_resort(exchange: Exchange, error: Exception, start_response: StartResponse) -> list[bytes]:
    """The answer when nothing in the chain made one: the fault's own status, else 500, in the common shape.

    Called while `error` is handled. Ends the exchange and raises `error` when the response's head has left already, so that
    the server cuts it.
    """
    fault = error if isinstance(error, GatewayError) else InternalFault(repr(error))
    exchange.error = exchange.error or fault
    body = fault.json(exchange.id)
    phrase = HTTPStatus(fault.status).phrase if fault.status in HTTPStatus._value2member_map_ else "Unknown"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    begun = exchange.status
    try:
        start_response(f"{fault.status} {phrase}", headers, sys.exc_info() if begun else None)
    except Exception:
        exchange.status = begun
        exchange.finish()
        raise
    return [body]
