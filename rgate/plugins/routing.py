"""routing: finds the route of a request.

The longest matching `path_prefix` wins, on segment boundaries: `/api` matches `/api` and `/api/x`, not `/apix`. Among routes with
the same prefix, those with more conditions (host, methods, headers) are tried before those with fewer, then in config order. A
request that matches no route gets the config's `default_response`.

A backend may read a path differently than it is routed: `%2F` as a slash, `;v=1` as nothing, `//name` as a host. If another route
would have matched one of these readings, the plugins and limits of that route would be bypassed, so the request is refused (400,
`ambiguous_path`). If only runs of `/` make the path ambiguous, the request goes on with these merged, as nginx sends it. If every
reading leads to the same route, as it almost always does, the path is forwarded byte for byte. Target.readings() lists the
readings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rgate import AmbiguousPath, Exchange, Gateway, Middleware, NoRoute, Route, Target, environ_key, hookimpl

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


_AMBIGUOUS = re.compile("[%;]")  # in a prefix in canonical form, where the operator wrote them on purpose


@hookimpl
def rgate_middlewares(gateway: Gateway) -> Middleware:
    """The middleware that sets exchange.route."""
    default = gateway.config.default_response
    table = RouteTable(gateway.routes)

    def wrap(app: WSGIApplication, options: Any) -> WSGIApplication:
        def routing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            exchange: Exchange = environ["rgate.exchange"]
            if exchange.route is None:  # else a middleware outside of this one has set it
                target: Target = environ["rgate.target"]
                route = table.find(target.normalized_path, environ)
                if route is None:
                    raise NoRoute(default.body, default.status_code, default.content_type)
                if target.ambiguous and not table.is_only_route(route, target, environ):
                    _merge_slashes(table, route, target, environ)
                exchange.route = route
            return app(environ, start_response)

        return routing

    return Middleware("routing", wrap, modifies_request=False, essential=True)


def _merge_slashes(table: RouteTable, route: Route, target: Target, environ: WSGIEnvironment) -> None:
    """Merge runs of "/" in the request's path. Raises AmbiguousPath if it is still ambiguous after that."""
    merged = target.merged()
    if merged.raw == target.raw or (merged.ambiguous and not table.is_only_route(route, merged, environ)):
        raise AmbiguousPath(target.raw)
    environ["rgate.target"] = merged
    environ["SCRIPT_NAME"] = ""
    environ["PATH_INFO"] = merged.path
    environ["RAW_URI"] = environ["REQUEST_URI"] = merged.raw


class RouteTable:
    """Routes by prefix. A lookup takes one dict access per path segment, however many routes there are."""

    def __init__(self, routes: Iterable[Route]) -> None:
        by_prefix: dict[str, list[Route]] = {}
        for route in routes:
            by_prefix.setdefault(route.path_prefix, []).append(route)
        self._by_prefix = {prefix: tuple(sorted(found, key=_specificity, reverse=True)) for prefix, found in by_prefix.items()}
        self._longest = max(map(len, by_prefix), default=0)
        self._ambiguous = frozenset(prefix for prefix in by_prefix if _AMBIGUOUS.search(prefix))

    def find(self, path: str, environ: WSGIEnvironment) -> Route | None:
        """The route for a path in canonical form; None without a match."""
        if len(path) > self._longest:
            # Longer prefixes do not exist, so a path of thousands of segments costs no more than the longest prefix.
            path = path[: self._longest + 1]
            path = path[: path.rfind("/")]
        while True:
            for route in self._by_prefix.get(path, ()):
                if _matches(route, environ):
                    return route
            if not path:
                return None
            path = path[: max(path.rfind("/"), 0)]

    def is_only_route(self, route: Route, target: Target, environ: WSGIEnvironment) -> bool:
        """Whether every reading of an ambiguous path leads to `route`, which was found for its canonical form."""
        if len(self._by_prefix) == 1 and not self._longest:
            return True  # no route depends on the path
        readings = target.readings(self._longest, route.path_prefix if route.path_prefix in self._ambiguous else "")
        return readings is not None and all(self.find(reading, environ) is route for reading in readings)


def _specificity(route: Route) -> tuple[bool, int, bool]:
    return bool(route.hosts), len(route.headers), bool(route.methods)


def _matches(route: Route, environ: WSGIEnvironment) -> bool:
    if route.methods and environ["REQUEST_METHOD"] not in route.methods:
        return False
    if route.hosts and _host(environ) not in route.hosts:
        return False
    return not route.headers or all(environ.get(environ_key(name)) == value for name, value in route.headers.items())


def _host(environ: WSGIEnvironment) -> str:
    """The host in lower case, without port and without the dot of the root domain."""
    host: str = environ.get("HTTP_HOST", "").lower()
    bare = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") and ":" in host else host
    return bare.removesuffix(".")
