"""What an operator asks a running gateway, as JSON under `/-/`.

    /-/live      200 while the process answers
    /-/ready     200 when it should get requests, else 503; with every reason and notice
    /-/routes    the routes, and the chain of each
    /-/backends  endpoints, what cannot be used and why, requests in flight, the age of what discovery knows
    /-/plugins   what is installed, active, and where in the chain
    /-/config    the config in force, without secrets
    /-/memory    what this process remembers of requests and responses, in bytes
    /-/drain     which endpoints get no new requests because an operator says so; POST changes that (see drain.py)
    /-/reload    POST has the config read again, in every worker process, and tells how that went (see reload.py)

They are answered at the admin socket, a unix socket that the commands find by themselves, or at the `address` that the options
say; so are `/stats` and the local routes of other plugins. On the gateway's port everybody gets the first two, with yes or no,
and only those whom `allow` names get all of them; to anybody else there is nothing at these paths. With several worker
processes any of them answers; `process` says which. Options: see AdminOptions.
"""

from __future__ import annotations

import logging
from functools import partial

from rgate import AdminServer, ConfigSection, Gateway, IPAllowlist, LocalRoute, LocalRoutes, hookimpl

from .options import AdminOptions
from .site import PAGES, PROBES, everybody, probes, site

__all__ = ["PAGES", "PROBES", "AdminOptions"]

NOTICE = "admin"  # the key of gateway.readiness.notices
_log = logging.getLogger("rgate.plugins.admin")


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("admin", AdminOptions)


@hookimpl
def rgate_local_routes(gateway: Gateway) -> LocalRoutes:
    options = gateway.options("admin") or AdminOptions()
    allowed = IPAllowlist(options.allow_at_port, options.hosts)
    allows = everybody if options.probes == "public" else allowed
    if not options.allow_at_port:
        return probes(gateway, options.stale_seconds, allowed, allows)
    return {**site(gateway, options.stale_seconds, allowed), **probes(gateway, options.stale_seconds, allowed, allows)}


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
        tell = partial(_tell, gateway.readiness.notices, gateway.reports)
        server = gateway.resource(
            "admin.socket",
            (tuple(paths), mode),
            lambda: AdminServer("plugins.admin", mode=mode, paths=paths, on_trouble=tell),
        )
    else:
        return None
    allowed = everybody if options.allow is None or options.is_unix else IPAllowlist(options.allow, options.hosts)
    local = {
        path: LocalRoute((route.admin_app or route.app) if isinstance(route, LocalRoute) else route, allowed)
        for path, route in gateway.local_routes.items()
    }
    server.offer(gateway, {**local, **site(gateway, options.stale_seconds, allowed)})
    return server


def _tell(notices: dict[str, str], tells: bool, why: str) -> None:
    """Have the operator know why there is no admin socket; "" when there is one."""
    if not why:
        notices.pop(NOTICE, None)
        return
    notices[NOTICE] = message = (
        f"no admin socket, so `rgate reload`, `drain` and `stats` cannot ask this gateway: {why}; "
        "make one of these directories writable, or set plugins.admin.address"
    )
    if tells:
        _log.warning("%s", message)
