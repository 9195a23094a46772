"""What an operator asks a running gateway, as JSON under `/-/`.

    /-/live      200 while the process answers
    /-/ready     200 when it should get requests, else 503; with every reason and notice
    /-/routes    the routes, and the chain of each
    /-/backends  endpoints, what cannot be used and why, requests in flight, the age of what discovery knows
    /-/plugins   what is installed, active, and where in the chain
    /-/config    the config in force, without secrets
    /-/drain     which endpoints get no new requests because an operator says so; POST changes that (see drain.py)

They are answered to machines that are allowed, which is this one unless the options say otherwise; everybody else gets
what they would get without this plugin. With several worker processes any of them answers; `process` says which.
Options: see AdminOptions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rgate import AllowedClients, ConfigSection, Gateway, LocalRoute, LocalRoutes, hookimpl

from . import pages
from .answer import Answer, acting, showing
from .backends import backends
from .drain import Drain
from .options import AdminOptions
from .readiness import notices, unready

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["PAGES", "AdminOptions"]

PAGES: Mapping[str, Callable[[Gateway], dict[str, Any]]] = {
    "/-/routes": pages.routes,
    "/-/backends": backends,
    "/-/plugins": pages.plugins,
    "/-/config": pages.config,
}
"""What a page shows."""


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("admin", AdminOptions)


@hookimpl
def rgate_local_routes(gateway: Gateway) -> LocalRoutes:
    options = gateway.options("admin") or AdminOptions()
    allowed = AllowedClients(options.allow)
    admits = (lambda environ: True) if options.probes == "public" else allowed

    def page(show: Callable[[Gateway], dict[str, Any]]) -> Callable[[WSGIEnvironment], Answer]:
        return lambda environ: (200, {"process": os.getpid(), **show(gateway)})

    def live(environ: WSGIEnvironment) -> Answer:
        return 200, {"live": True, "process": os.getpid()} if allowed(environ) else {"live": True}

    def ready(environ: WSGIEnvironment) -> Answer:
        reasons = unready(gateway, options.stale_seconds)
        shown: dict[str, Any] = {"ready": not reasons}
        if allowed(environ):
            shown |= {"process": os.getpid(), "reasons": reasons, "notices": notices(gateway)}
        return 503 if reasons else 200, shown

    drain = Drain(gateway)
    return {
        "/-/live": LocalRoute(showing(live), admits),
        "/-/ready": LocalRoute(showing(ready), admits),
        "/-/drain": LocalRoute(acting(drain.act, lambda environ: drain.show()), allowed),
        **{path: LocalRoute(showing(page(show)), allowed) for path, show in PAGES.items()},
    }
