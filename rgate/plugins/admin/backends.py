"""`/-/backends`: where requests can go at this moment, and why not elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .readiness import age_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rgate import Backend, Endpoint, Gateway, Instance

__all__ = ["backends", "shown_endpoint"]

NEAR_MISSES_SHOWN = 10


def backends(gateway: Gateway) -> dict[str, Any]:
    """Every backend with its endpoints, its unusable instances and some of those that it nearly has, and every discovery
    source. Requests in flight are those of this process, and so is what its server has open."""
    return {
        "server": gateway.readiness.load(),
        "backends": [_backend(gateway, backend) for backend in gateway.backends.values()],
        "sources": [
            {
                "name": source.name,
                "instances": len(source.instances),
                "age_seconds": age_seconds(source.listed_at),
                "error": source.error,
                "failed_seconds_ago": age_seconds(source.failed_at),
            }
            for source in gateway.table.snapshot.sources.values()
        ],
    }


def shown_endpoint(endpoint: Endpoint) -> dict[str, Any]:
    """What tells an endpoint from others, and how busy it is."""
    in_flight = endpoint.state.in_flight
    return {"name": endpoint.name, "id": endpoint.id, "address": str(endpoint.address), "in_flight": in_flight}


def _backend(gateway: Gateway, backend: Backend) -> dict[str, Any]:
    snapshot = gateway.table.snapshot
    in_use = {endpoint.key for endpoint in snapshot.endpoints[backend.name]}
    misses = snapshot.near_misses.get(backend.name, ())
    asides = {aside.endpoint.key: dict(aside.reasons) for aside in snapshot.excluded.get(backend.name, ())}
    return {
        "name": backend.name,
        "policy": backend.policy,
        "match_labels": [f"{name}={value}" for name, value in backend.match_labels],
        "max_in_flight": backend.max_in_flight,
        "in_flight": sum(endpoint.state.in_flight for endpoint in snapshot.found[backend.name]),
        "endpoints": [
            {
                **shown_endpoint(endpoint),
                "weight": endpoint.weight,
                "share": endpoint.state.weight_factor,
                "in_use": endpoint.key in in_use,
                "excluded": asides.get(endpoint.key, {}),
                "notes": _notes(snapshot.noted, endpoint.id),
            }
            for endpoint in snapshot.found[backend.name]
        ],
        "unusable": [
            {
                "name": instance.name,
                "id": instance.id,
                "reason": instance.reason or "no address",
                "notes": _notes(snapshot.noted, instance.id),
            }
            for instance in snapshot.unusable[backend.name]
        ],
        "near_misses": [
            {"name": miss.instance.name, "id": miss.instance.id, "reason": f"has {miss.detail}"}
            for miss in misses[:NEAR_MISSES_SHOWN]
        ],
        "near_misses_not_shown": max(0, len(misses) - NEAR_MISSES_SHOWN),
    }


def _notes(noted: Mapping[str, Instance], id: str) -> list[str]:
    return list(noted[id].notes) if id in noted else []
