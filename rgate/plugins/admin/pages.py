"""The contents of the pages that only show something: `/-/ready`, `/-/routes`, `/-/backends`, `/-/plugins`, `/-/config` and
`/-/memory`. Each function reads the gateway's state and returns plain values."""

from __future__ import annotations

from dataclasses import asdict
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rgate import Backend, Endpoint, Gateway, Instance

__all__ = ["backends", "config", "memory", "not_ready_reasons", "plugins", "routes", "shown_endpoint", "warnings"]

NEAR_MISSES_SHOWN: Final = 10


def not_ready_reasons(gateway: Gateway, stale_seconds: float | None) -> dict[str, str]:
    """The reasons why this process should get no new requests, by their origin; empty when it is ready.

    They are those of gateway.readiness, and those of discovery sources: one that was never listed, so that backends may be
    missing, or was not listed for `stale_seconds`, so that its endpoints may be outdated.
    """
    found = dict(gateway.readiness.not_ready_reasons)
    for source in gateway.table.snapshot.sources.values():
        age = _age_seconds(source.listed_at)
        if age is None:
            found[source.name] = f"no list yet: {source.error or 'listing'}"
        elif stale_seconds is not None and age > stale_seconds:
            found[source.name] = f"the last list is {age:.0f} s old: {source.error or 'listing takes long'}"
    return found


def warnings(gateway: Gateway) -> dict[str, str]:
    """Problems that the operator should know of, by their origin; the process may be ready in spite of them."""
    found = dict(gateway.readiness.warnings)
    for source in gateway.table.snapshot.sources.values():
        age = _age_seconds(source.listed_at)
        if source.error is not None and age is not None:
            found[source.name] = f"{source.error} (keeping the list of {age:.0f} s ago, trying again)"
    return found


def routes(gateway: Gateway) -> dict[str, Any]:
    """Every route in config order, with the middleware that its requests pass, outermost first."""
    return {
        "routes": [
            {
                "name": route.name,
                "path_prefix": route.path_prefix or "/",
                "hosts": route.hosts,
                "methods": route.methods,
                "headers": list(route.headers),
                "strip_prefix": route.strip_prefix,
                "max_body_bytes": route.max_body_bytes,
                "timeouts": asdict(route.timeouts),
                "backend": route.backend.name,
                "chain": [*gateway.chains[route.name], "forwarder"],
            }
            for route in gateway.routes
        ]
    }


def plugins(gateway: Gateway) -> dict[str, Any]:
    """Every installed plugin, active or not, and its place (from 1) in the chain of each route that it is part of."""
    places: dict[str, dict[str, int]] = {}
    for route, chain in gateway.chains.items():
        for place, name in enumerate(chain, 1):
            places.setdefault(name, {})[route] = place
    return {"plugins": [{**asdict(record), "places": places.get(record.name, {})} for record in gateway.registry.records()]}


def config(gateway: Gateway) -> dict[str, Any]:
    """The active config with its defaults, without secrets."""
    return {"config": gateway.config.redacted()}


def memory(gateway: Gateway) -> dict[str, Any]:
    """The size and the limit of each cache in which the process keeps parts of requests and responses to parse them faster."""
    used = gateway.memory()
    total = {"bytes": sum(one.bytes for one in used), "max_bytes": sum(one.max_bytes for one in used)}
    return {"memory": [one._asdict() for one in used], "total": total}


def backends(gateway: Gateway) -> dict[str, Any]:
    """Every backend with its endpoints, its unusable instances and its near misses, and every discovery source. Requests in
    flight and the server's connections are those of this process."""
    return {
        "server": gateway.readiness.server.open_counts(),
        "backends": [_backend(gateway, backend) for backend in gateway.backends.values()],
        "sources": [
            {
                "name": source.name,
                "instances": len(source.instances),
                "age_seconds": _age_seconds(source.listed_at),
                "error": source.error,
                "failed_seconds_ago": _age_seconds(source.failed_at),
            }
            for source in gateway.table.snapshot.sources.values()
        ],
    }


def shown_endpoint(endpoint: Endpoint) -> dict[str, Any]:
    """The identity of an endpoint, and its requests in flight."""
    in_flight = endpoint.state.in_flight
    return {"name": endpoint.name, "id": endpoint.id, "address": str(endpoint.address), "in_flight": in_flight}


def _max_in_flight(gateway: Gateway, backend: Backend) -> int | None:
    bulkhead, config = gateway.options("bulkhead", backend=backend), gateway.config
    return None if bulkhead is None else bulkhead.max_in_flight or config.backend_share(config.server.max_in_flight)


def _backend(gateway: Gateway, backend: Backend) -> dict[str, Any]:
    snapshot = gateway.table.snapshot
    selection = gateway.options("selection", backend=backend)
    in_use = {endpoint.key for endpoint in snapshot.endpoints[backend.name]}
    misses = snapshot.near_misses.get(backend.name, ())
    excluded = {each.endpoint.key: dict(each.reasons) for each in snapshot.excluded.get(backend.name, ())}
    return {
        "name": backend.name,
        "policy": selection.policy if selection is not None else None,
        "match_labels": [f"{name}={value}" for name, value in backend.match_labels],
        "max_in_flight": _max_in_flight(gateway, backend),
        "in_flight": sum(endpoint.state.in_flight for endpoint in snapshot.found[backend.name]),
        "endpoints": [
            {
                **shown_endpoint(endpoint),
                "weight": endpoint.weight,
                "share": endpoint.state.weight_factor,
                "in_use": endpoint.key in in_use,
                "excluded": excluded.get(endpoint.key, {}),
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


def _age_seconds(moment: float | None) -> Any:
    """The seconds since a monotonic moment; None if there is no moment."""
    return None if moment is None else round(max(0.0, monotonic() - moment), 1)
