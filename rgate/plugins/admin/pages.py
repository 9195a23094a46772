"""`/-/routes`, `/-/plugins` and `/-/config`: how the gateway is composed. `/-/memory`: what it remembers."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rgate import Gateway

__all__ = ["config", "memory", "plugins", "routes"]


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
    """Every plugin that is installed, active or not, and its place in the chain of every route that it is in (from 1)."""
    places: dict[str, dict[str, int]] = {}
    for route, chain in gateway.chains.items():
        for place, name in enumerate(chain, 1):
            places.setdefault(name, {})[route] = place
    return {"plugins": [{**asdict(record), "places": places.get(record.name, {})} for record in gateway.registry.records()]}


def config(gateway: Gateway) -> dict[str, Any]:
    """The config in force, defaults included, without secrets."""
    return {"config": gateway.config.redacted()}


def memory(gateway: Gateway) -> dict[str, Any]:
    """What the process remembers of requests and responses so as to read them faster: how much, and how much it may be."""
    used = gateway.memory()
    total = {"bytes": sum(one.bytes for one in used), "max_bytes": sum(one.max_bytes for one in used)}
    return {"memory": [one._asdict() for one in used], "total": total}
