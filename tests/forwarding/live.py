"""A whole gateway on a real socket, in front of backends on real sockets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rgate import Gateway
from rgate.serving.server import Server
from rgate.testing import ScriptedBackend, running_gateway

from ..serving.live import serving


class Forwarding:
    """A running gateway and its server."""

    def __init__(self, gateway: Gateway, server: Server) -> None:
        self.gateway = gateway
        self.server = server
        self.url = server.url

    @property
    def upstream_connections(self) -> int:
        """How many connections to backends are at rest."""
        return sum(len(upstream.pool.resting) for upstream in self.gateway.upstreams._known.values())

    @property
    def in_flight(self) -> int:
        """How many requests the endpoints are working on."""
        endpoints = self.gateway.table.snapshot.endpoints.values()
        return sum(endpoint.state.in_flight for several in endpoints for endpoint in several)


@contextmanager
def forwarding(
    *backends: ScriptedBackend | str,
    route: Mapping[str, Any] | None = None,
    plugins: Mapping[str, object] | None = None,
    policy: str = "power_of_two_choices",
    options: Mapping[str, Any] | None = None,
    **server: Any,
) -> Iterator[Forwarding]:
    """A gateway that forwards "/" (or what `route` says) to backends, each a ScriptedBackend or a URL.

    `plugins` are active by these names, `options` is what the config says of plugins.
    """
    urls = [backend if isinstance(backend, str) else backend.url for backend in backends]
    config = {
        "backends": [{"name": "backend", "endpoints": urls, "match_labels": ["found=nowhere"], "policy": policy}],
        "routes": [{"path_prefix": "/", "backend": "backend", **(route or {})}],
        "plugins": options or {},
    }
    with running_gateway(config, {}, plugins or {}) as gateway, serving(gateway, **server) as served:
        yield Forwarding(gateway, served)
