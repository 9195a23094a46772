"""`/-/backends`: where requests can go at this moment, and why not elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .readiness import age_seconds

if TYPE_CHECKING:
    from rgate import Endpoint, Gateway, Instance

__all__ = ["backends"]


def backends(gateway: Gateway) -> dict[str, Any]:
    """Every backend with its endpoints and its unusable instances, and every discovery source. Requests in flight are those
    of this process."""
    snapshot = gateway.table.snapshot
    return {
        "backends": [
            {
                "name": backend.name,
                "policy": backend.policy,
                "match_labels": [f"{name}={value}" for name, value in backend.match_labels],
                "endpoints": [_endpoint(endpoint) for endpoint in snapshot.endpoints[backend.name]],
                "unusable": [_unusable(instance) for instance in snapshot.unusable[backend.name]],
            }
            for backend in gateway.backends.values()
        ],
        "sources": [
            {
                "name": source.name,
                "instances": len(source.instances),
                "age_seconds": age_seconds(source.listed),
                "error": source.error,
                "failed_seconds_ago": age_seconds(source.failed),
            }
            for source in snapshot.sources.values()
        ],
    }


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "name": endpoint.name,
        "id": endpoint.id,
        "address": str(endpoint.address),
        "in_flight": endpoint.load.in_flight,
    }


def _unusable(instance: Instance) -> dict[str, Any]:
    return {"name": instance.name, "id": instance.id, "reason": instance.reason or "no address"}
