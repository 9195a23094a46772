"""What a plugin adds to the chain: a middleware around it, a local route beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

__all__ = ["LocalRoute", "LocalRoutes", "Middleware"]

LocalRoutes: TypeAlias = "dict[str, WSGIApplication | LocalRoute]"


@dataclass(frozen=True, slots=True)
class Middleware:
    """A WSGI middleware and its place in the chain.

    `wrap(app, options)` returns a WSGI app around `app`; `options` is the validated model instance of the plugin's
    section (the route's own inside `routing`), or None when the plugin has none. It is called when a config is loaded:
    for a middleware outside `routing` twice (the chain, and the chain for requests that the server refused), inside
    once per route; what it keeps between requests belongs to the plugin, not to the app. `name` must be the plugin's
    name; a plugin has at most one middleware.

    `before` or `after` names a middleware of `rgate.STANDARD_ORDER`: before is outside of it, after is inside. With
    neither the place is directly inside `routing`.

    `modifies_request=False` promises that the middleware never changes the request (HTTP_* keys, method, target) in
    environ, which spares the forwarder looking.

    `essential=True` says that no request may ever pass without it, as is so for whatever protects something: then the
    operator cannot write `on_error: skip` or `disable_after`.
    """

    name: str
    wrap: Callable[[WSGIApplication, Any], WSGIApplication]
    before: str | None = None
    after: str | None = None
    modifies_request: bool = True
    essential: bool = False


def _admits_nobody(environ: WSGIEnvironment) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """A local route that is not for everybody. `LocalRoute(app)` is for operators: at the admin socket, and nowhere else.

    `app` answers the requests that `allows(environ)` is true for (rgate.AllowedClients is made for that). Any other goes on
    through the chain as if there were no such local route, so it neither learns of it nor loses a route of its own.

    At the admin socket everybody who can connect is admitted. There `admin_app` answers, where it is given, in place of `app`:
    for what is too much for the gateway's port, on which a client elsewhere may look like one on this machine.
    """

    app: WSGIApplication
    allows: Callable[[WSGIEnvironment], bool] = _admits_nobody
    admin_app: WSGIApplication | None = None
