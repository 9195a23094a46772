"""admin: the state of a running gateway, as JSON pages under `/-/`.

    plugins:
      admin:
        address: 127.0.0.1:9901    # default: a unix socket that the commands find by themselves

    /-/live      200 while the process answers
    /-/ready     200 while the process should get requests, else 503; with the reasons and warnings
    /-/routes    the routes, and the chain of each
    /-/backends  endpoints, why others cannot be used, requests in flight, the age of each discovery source's list
    /-/plugins   the installed plugins: which are active, and where each stands in the chain
    /-/config    the active config with its defaults, without secrets
    /-/memory    the size of this process's caches, in bytes
    /-/drain     the endpoints that an operator drained; POST changes them (see drain.py)
    /-/reload    POST reloads the config in every worker process and returns the outcome (see reload.py)

The pages, `/stats` and the local routes of other plugins are served at the admin socket: a unix socket, or the `address` in the
options. The gateway's own port shows `/-/live` and `/-/ready` to every client, as yes or no, and all pages to the clients that
`allow` names; for any other client these paths do not exist. With several worker processes any of them answers; `process` says
which. Options: see AdminOptions.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from rgate import AdminServer, ConfigSection, Gateway, IPAllowlist, LocalRoute, LocalRoutes, hookimpl, json_app

from . import pages
from .drain import Drain
from .options import AdminOptions
from .reload import Reload

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

__all__ = ["PAGES", "PROBES", "AdminOptions"]

Allows: TypeAlias = "Callable[[WSGIEnvironment], bool]"

PROBES: Final = ("/-/live", "/-/ready")
"""The pages for load balancers."""

PAGES: Mapping[str, Callable[[Gateway], dict[str, Any]]] = {
    "/-/routes": pages.routes,
    "/-/backends": pages.backends,
    "/-/plugins": pages.plugins,
    "/-/config": pages.config,
    "/-/memory": pages.memory,
}
"""The pages for operators that only show something."""

NOTICE = "admin"  # the key of gateway.readiness.warnings
_log = logging.getLogger("rgate.plugins.admin")
_app = partial(json_app, indent=2)


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("admin", AdminOptions)


@hookimpl
def rgate_local_routes(gateway: Gateway) -> LocalRoutes:
    options = gateway.options("admin") or AdminOptions()
    allowed = IPAllowlist(options.allow_at_port, options.hosts)
    allows = allow_all if options.probes == "public" else allowed
    if not options.allow_at_port:
        return probe_pages(gateway, options.stale_seconds, allowed, allows)
    return {**all_pages(gateway, options.stale_seconds, allowed), **probe_pages(gateway, options.stale_seconds, allowed, allows)}


@hookimpl
def rgate_lifespan(gateway: Gateway) -> AdminServer | None:
    options = gateway.options("admin") or AdminOptions()
    mode = int(options.mode, 8)
    if options.listen is not None:
        host, port = options.listen
        key: object = (options.listen, mode, options.hosts)
        server = gateway.resource(
            "admin.address", key, lambda: AdminServer("plugins.admin.address", host, port, mode, hosts=options.hosts)
        )
    elif options.address is None and (paths := gateway.socket_paths()):
        update = partial(_update_notice, gateway.readiness.warnings, gateway.reports)
        server = gateway.resource(
            "admin.socket",
            (tuple(paths), mode),
            lambda: AdminServer("plugins.admin", mode=mode, paths=paths, on_listen=update),
        )
    else:
        return None
    allowed = allow_all if options.allow is None or options.is_unix else IPAllowlist(options.allow, options.hosts)
    local = {
        path: LocalRoute((route.admin_app or route.app) if isinstance(route, LocalRoute) else route, allowed)
        for path, route in gateway.local_routes.items()
    }
    server.set_routes(gateway, {**local, **all_pages(gateway, options.stale_seconds, allowed)})
    return server


def allow_all(environ: WSGIEnvironment) -> bool:
    """Admits every request."""
    return True


def all_pages(gateway: Gateway, stale_seconds: float | None, allowed: Allows) -> LocalRoutes:
    """Every page, for the requests that `allowed(environ)` admits."""

    def page(show: Callable[[Gateway], dict[str, Any]]) -> WSGIApplication:
        return _app(lambda environ: (200, {"process": os.getpid(), **show(gateway)}))

    drain, reload = Drain(gateway), Reload(gateway)
    return {
        **probe_pages(gateway, stale_seconds, allowed, allowed),
        **{path: LocalRoute(page(show), allowed) for path, show in PAGES.items()},
        "/-/drain": LocalRoute(_app(drain.get, drain.post), allowed),
        "/-/reload": LocalRoute(_app(reload.get, reload.post), allowed),
    }


def probe_pages(gateway: Gateway, stale_seconds: float | None, allowed: Allows, allows: Allows) -> LocalRoutes:
    """The probes, for the requests that `allows` admits. Those that `allowed` does not admit get yes or no without reasons."""

    def live(environ: WSGIEnvironment) -> tuple[int, dict[str, Any]]:
        return 200, {"live": True, "process": os.getpid()} if allowed(environ) else {"live": True}

    def ready(environ: WSGIEnvironment) -> tuple[int, dict[str, Any]]:
        reasons = pages.not_ready_reasons(gateway, stale_seconds)
        shown: dict[str, Any] = {"ready": not reasons}
        if allowed(environ):
            shown |= {"process": os.getpid(), "reasons": reasons, "warnings": pages.warnings(gateway)}
        return 503 if reasons else 200, shown

    return {path: LocalRoute(_app(show), allows) for path, show in zip(PROBES, (live, ready), strict=True)}


def _update_notice(warnings: dict[str, str], logs: bool, problem: str) -> None:
    """Show the operator why there is no admin socket; `problem` is "" when there is one. `logs`: also write it to the log."""
    if not problem:
        warnings.pop(NOTICE, None)
        return
    warnings[NOTICE] = message = (
        f"no admin socket, so `rgate reload`, `drain` and `stats` cannot ask this gateway: {problem}; "
        "make one of these directories writable, or set plugins.admin.address"
    )
    if logs:
        _log.warning("%s", message)
