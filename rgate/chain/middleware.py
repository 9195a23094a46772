"""Middleware and LocalRoute: what a plugin adds to the chain, and beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeAlias

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment
    from typing_extensions import TypeVar

    Options = TypeVar("Options", default=Any)  # so that a bare `Middleware` is Middleware[Any], under mypy --strict too
else:
    from typing import TypeVar

    Options = TypeVar("Options")

__all__ = ["LocalRoute", "LocalRoutes", "Middleware"]

LocalRoutes: TypeAlias = "dict[str, WSGIApplication | LocalRoute]"


@dataclass(frozen=True, slots=True)
class Middleware(Generic[Options]):
    """A WSGI middleware and its position in the chain.

    `wrap(app, options)` returns a WSGI app around `app`. `options` is the validated instance of the model in the plugin's
    ConfigSection (the route's own inside `routing`), or None if the plugin has no section. wrap() is called when a config is
    loaded: inside `routing` once per route, outside of it twice (for the chain, and for the chain of the requests that the
    server has rejected). So what a middleware keeps between requests belongs in the plugin, not in the app.

    `name` must be the plugin's name; a plugin has at most one middleware.

    `before` or `after` names a middleware of `rgate.STANDARD_ORDER`: before is outside of it, after is inside. With neither,
    the position is directly inside `routing`.

    `modifies_request=False` promises that the middleware never changes the request in environ (HTTP_* keys, method, target),
    so that the forwarder does not have to compare it.

    `essential=True` means that no request may pass without it, as for every plugin that protects something: the operator
    cannot configure `on_error: skip` or `disable_after`.
    """

    name: str
    wrap: Callable[[WSGIApplication, Options], WSGIApplication]
    before: str | None = None
    after: str | None = None
    modifies_request: bool = True
    essential: bool = False


def _allow_none(environ: WSGIEnvironment) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """A local route that does not answer every client. `LocalRoute(app)` is for operators: it answers at the admin socket only.

    `app` answers the requests for which `allows(environ)` is true (see rgate.IPAllowlist). Any other request continues in
    the chain as if there were no such local route, so that a client neither learns of it nor loses a route of the same path.

    At the admin socket every request is answered, by `admin_app` if that is given, otherwise by `app`. `admin_app` may show
    what is not for the gateway's port, where a client elsewhere may look like one on this machine.
    """

    app: WSGIApplication
    allows: Callable[[WSGIEnvironment], bool] = _allow_none
    admin_app: WSGIApplication | None = None
