"""The order of the chain, as data, and its composition. It is composed when a config is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import PluginError, RgateError
from .middleware import Middleware

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["ROUTING", "STANDARD_ORDER", "chain_problem", "compose", "order", "validate_app"]

STANDARD_ORDER = (  # outermost first
    "stats",  # sees what the client sees, including the gateway's own errors
    "access_log",  # likewise; one line per request
    "normalize",  # the last to change a response, including the answers to faults
    "faults",  # everything inside may raise GatewayError
    "routing",  # inside this the route is known, and the chain is the route's own
    "bulkhead",  # refuses a request while too many others wait for its backend
    "retry",  # calls the inside again, with the failed endpoint removed from the candidates
    "selection",  # chooses one candidate: exchange.endpoint
)  # then the forwarder, which is not a plugin

ROUTING = "routing"


def order(middlewares: Iterable[Middleware], wanted: Sequence[str] | None = None) -> tuple[Middleware, ...]:
    """Sort the middlewares, outermost first.

    The built-ins are in STANDARD_ORDER. Any other is directly outside the one that it names as `before`, or directly
    inside the one that it names as `after`; with neither, directly inside `routing`. Several at one position are sorted
    by name. `wanted`, the operator's own list, overrides all of this and must name each middleware once. Raises PluginError.
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
    positions = {name: _position(m) for name, m in sorted(by_name.items()) if name not in STANDARD_ORDER}
    for anchor in STANDARD_ORDER:
        chain += [name for name, position in positions.items() if position == ("before", anchor)]
        if anchor in by_name:
            chain.append(anchor)
        chain += [name for name, position in positions.items() if position == ("after", anchor)]
    return tuple(by_name[name] for name in chain)


def _position(middleware: Middleware) -> tuple[str, str]:
    if middleware.before and middleware.after:
        raise PluginError(f"middleware {middleware.name!r} has both before and after; it can have only one of them")
    side, anchor = ("before", middleware.before) if middleware.before else ("after", middleware.after or ROUTING)
    if anchor not in STANDARD_ORDER:
        raise PluginError(f"middleware {middleware.name!r} has {side}={anchor!r}; the names are {', '.join(STANDARD_ORDER)}")
    return side, anchor


def chain_problem(chain: Sequence[str], others: Collection[str] = ()) -> str:
    """Why a chain (names, outermost first) could not answer any request, and what to do about it; "" if it can.

    `others` are the names in it that are not built-ins.
    """
    if ROUTING not in chain:
        return f"no plugin finds the route of a request: {_REPLACE.format(ROUTING)}"
    if "selection" not in chain and not others:
        return f"no plugin chooses an endpoint: {_REPLACE.format('selection')}"
    for outer, inner, why in _ORDER_CONSTRAINTS:
        if outer in chain and inner in chain and chain.index(inner) < chain.index(outer):
            return f"{outer!r} must come before {inner!r}: {why}"
    return ""


_REPLACE = "remove {0!r} from disable, or install a plugin of that name and name it under plugins"
_ORDER_CONSTRAINTS = (
    ("faults", ROUTING, "it answers when no route matches"),
    (ROUTING, "retry", "only a route has endpoints"),
    (ROUTING, "selection", "only a route has endpoints"),
    (ROUTING, "websocket", "only a route has options for it"),
    ("retry", "selection", "another endpoint must be chosen for a second attempt"),
)
"""Outer, inner, and the reason: constraints on every order, including one that the operator has written."""


def compose(app: WSGIApplication, middlewares: Sequence[Middleware], options: Callable[[str], Any]) -> WSGIApplication:
    """Wrap `app` in `middlewares` (outermost first). Raises PluginError if a wrap() fails or does not return a valid app."""
    for middleware in reversed(middlewares):
        try:
            app = validate_app(middleware.name, middleware.wrap(app, options(middleware.name)))
        except RgateError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(f"plugin {middleware.name!r}: wrap() raised {type(error).__name__}: {error}") from error
    return app


def validate_app(name: str, app: WSGIApplication) -> WSGIApplication:
    """Return `app`, the result of a plugin's wrap(), unless it is not a WSGI app. Raises PluginError."""
    call = app if inspect.isroutine(app) else getattr(app, "__call__", None)  # noqa: B004 - the method itself
    if call is None:
        raise PluginError(f"plugin {name!r}: wrap() returned {app!r}, which is not a WSGI app")
    if inspect.isgeneratorfunction(call):
        # It would run only when iterated, outside of every try around the call, and would never close the inner body.
        raise PluginError(f"plugin {name!r}: the app is a generator function; return an iterable instead")
    return app
