"""Which path has what under `/-/`, and for whom."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from rgate import LocalRoute, LocalRoutes

from . import pages
from .answer import Answer, acting, showing
from .backends import backends
from .drain import Drain
from .readiness import not_ready_reasons, warnings
from .reload import Reload

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from rgate import Gateway

__all__ = ["PAGES", "PROBES", "Admits", "everybody", "probes", "site"]

Admits: TypeAlias = "Callable[[WSGIEnvironment], bool]"

PROBES: Final = ("/-/live", "/-/ready")
"""What load balancers ask."""

PAGES: Mapping[str, Callable[[Gateway], dict[str, Any]]] = {
    "/-/routes": pages.routes,
    "/-/backends": backends,
    "/-/plugins": pages.plugins,
    "/-/config": pages.config,
    "/-/memory": pages.memory,
}
"""What operators read."""


def everybody(environ: WSGIEnvironment) -> bool:
    """Admits every request."""
    return True


def site(gateway: Gateway, stale_seconds: float | None, allowed: Admits) -> LocalRoutes:
    """Every path, for those who are `allowed`."""

    def page(show: Callable[[Gateway], dict[str, Any]]) -> LocalRoute:
        return LocalRoute(showing(lambda environ: (200, {"process": os.getpid(), **show(gateway)})), allowed)

    drain, reload = Drain(gateway), Reload(gateway)
    return {
        **probes(gateway, stale_seconds, allowed, allowed),
        **{path: page(show) for path, show in PAGES.items()},
        "/-/drain": LocalRoute(acting(drain.act, lambda environ: drain.show()), allowed),
        "/-/reload": LocalRoute(acting(reload.act, lambda environ: reload.show()), allowed),
    }


def probes(gateway: Gateway, stale_seconds: float | None, allowed: Admits, allows: Admits) -> LocalRoutes:
    """The probes for those whom `allows` lets in. Who is not `allowed` learns no more than yes or no."""

    def live(environ: WSGIEnvironment) -> Answer:
        return 200, {"live": True, "process": os.getpid()} if allowed(environ) else {"live": True}

    def ready(environ: WSGIEnvironment) -> Answer:
        reasons = not_ready_reasons(gateway, stale_seconds)
        shown: dict[str, Any] = {"ready": not reasons}
        if allowed(environ):
            shown |= {"process": os.getpid(), "reasons": reasons, "warnings": warnings(gateway)}
        return 503 if reasons else 200, shown

    return {path: LocalRoute(showing(shown), allows) for path, shown in zip(PROBES, (live, ready), strict=True)}
