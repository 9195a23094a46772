"""`/-/backends`: where requests can go at this moment, and why not elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .readiness import age_seconds

if TYPE_CHECKING:
    from rgate import Backend, Endpoint, Gateway, Instance

__all__ = ["backends", "shown_endpoint"]


def backends(gateway: Gateway) -> dict[str, Any]:
    """Every backend with its endpoints and its unusable instances, and every discovery source. Requests in flight are those
    of this process."""
    return {
        "backends": [_backend(gateway, backend) for backend in gateway.backends.values()],
        "sources": [
            {
                "name": source.name,
                "instances": len(source.instances),
                "age_seconds": age_seconds(source.listed),
                "error": source.error,
                "failed_seconds_ago": age_seconds(source.failed),
            }
            for source in gateway.table.snapshot.sources.values()
        ],
    }


def shown_endpoint(endpoint: Endpoint) -> dict[str, Any]:
    """What tells an endpoint from others, and how busy it is."""
    in_flight = endpoint.load.in_flight
    return {"name": endpoint.name, "id": endpoint.id, "address": str(endpoint.address), "in_flight": in_flight}


def _backend(gateway: Gateway, backend: Backend) -> dict[str, Any]:
    snapshot = gateway.table.snapshot
    in_use = {endpoint.key for endpoint in snapshot.endpoints[backend.name]}
    asides = {aside.endpoint.key: dict(aside.reasons) for aside in snapshot.set_aside.get(backend.name, ())}
    return {
        "name": backend.name,
        "policy": backend.policy,
        "match_labels": [f"{name}={value}" for name, value in backend.match_labels],
        "max_in_flight": backend.max_in_flight,
        "in_flight": sum(endpoint.load.in_flight for endpoint in snapshot.found[backend.name]),
        "endpoints": [
            {
                **shown_endpoint(endpoint),
                "weight": endpoint.weight,
                "share": endpoint.load.share,
                "in_use": endpoint.key in in_use,
                "set_aside": asides.get(endpoint.key, {}),
            }
            for endpoint in snapshot.found[backend.name]
        ],
        "unusable": [_unusable(instance) for instance in snapshot.unusable[backend.name]],
    }


def _unusable(instance: Instance) -> dict[str, Any]:
    return {"name": instance.name, "id": instance.id, "reason": instance.reason or "no address"}
