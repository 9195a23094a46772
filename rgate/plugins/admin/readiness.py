"""`/-/live` and `/-/ready`: what load balancers, container engines and `rgate healthcheck` ask."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rgate import Gateway

__all__ = ["age_seconds", "not_ready_reasons", "notices"]


def not_ready_reasons(gateway: Gateway, stale_seconds: float | None) -> dict[str, str]:
    """Why this process should get no new requests, by who says so; empty when it is ready.

    Beside gateway.readiness it is discovery: a source that has never been listed, so that backends may be missing, or not
    for `stale_seconds`, so that what is known may be wrong.
    """
    found = dict(gateway.readiness.not_ready_reasons)
    for source in gateway.table.snapshot.sources.values():
        age = age_seconds(source.listed_at)
        if age is None:
            found[source.name] = f"no list yet: {source.error or 'listing'}"
        elif stale_seconds is not None and age > stale_seconds:
            found[source.name] = f"the last list is {age:.0f} s old: {source.error or 'listing takes long'}"
    return found


def notices(gateway: Gateway) -> dict[str, str]:
    """What an operator should know although the process may be ready, by who says so."""
    found = dict(gateway.readiness.notices)
    for source in gateway.table.snapshot.sources.values():
        age = age_seconds(source.listed_at)
        if source.error is not None and age is not None:
            found[source.name] = f"{source.error} (keeping the list of {age:.0f} s ago, trying again)"
    return found


def age_seconds(moment: float | None) -> Any:
    """How long a monotonic moment is ago; None when there is none."""
    return None if moment is None else round(max(0.0, monotonic() - moment), 1)
