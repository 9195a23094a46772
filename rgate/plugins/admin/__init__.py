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

They are answered to machines that are allowed, which is this one unless the options say otherwise; everybody else gets
what they would get without this plugin. Or they have an address of their own, with threads of its own. With several worker
processes any of them answers; `process` says which. Options: see AdminOptions.
"""

from __future__ import annotations

from rgate import AllowedClients, ConfigSection, Gateway, LocalRoute, LocalRoutes, SideServer, hookimpl

from .options import LOOPBACK, AdminOptions
from .site import PAGES, PROBES, everybody, probes, site

__all__ = ["PAGES", "PROBES", "AdminOptions"]


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("admin", AdminOptions)


@hookimpl
def rgate_local_routes(gateway: Gateway) -> LocalRoutes:
    options = gateway.options("admin") or AdminOptions()
    allowed = AllowedClients(LOOPBACK if options.allow is None else options.allow)
    public = options.probes == "public"
    if options.listen is None:
        return site(gateway, options.stale_seconds, allowed, public_probes=public)
    return probes(gateway, options.stale_seconds, allowed, everybody if public else allowed)


@hookimpl
def rgate_lifespan(gateway: Gateway) -> SideServer | None:
    options = gateway.options("admin") or AdminOptions()
    if options.listen is None:
        return None
    host, port = options.listen
    mode = int(options.mode, 8)
    key = (options.listen, mode)
    server = gateway.keep("admin.address", key, lambda: SideServer("plugins.admin.address", host, port, mode))
    allowed = everybody if options.allow is None else AllowedClients(options.allow)
    apps = {path: route.app if isinstance(route, LocalRoute) else route for path, route in gateway.local_routes.items()}
    local = {path: LocalRoute(app, allowed) for path, app in apps.items()}
    server.offer(gateway, {**local, **site(gateway, options.stale_seconds, allowed)})
    return server
