"""A gateway in this process, on a real socket, in front of backends on real sockets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rgate import Gateway
from rgate.serving.server import Server
from rgate.testing import ScriptedBackend, running_gateway

from .serving import serving


class Forwarding:
    """A running gateway and its server."""

    def __init__(self, gateway: Gateway, server: Server) -> None:
        self.gateway = gateway
        self.server = server
        self.url = server.url

    @property
    def upstream_connections(self) -> int:
        """How many connections to backends are at rest."""
        return self.gateway.runtime.upstreams.idle_connections

    @property
    def in_flight(self) -> int:
        """The number of exchanges at the endpoints, tunnels included."""
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
    """A gateway that forwards "/" to backends, each a ScriptedBackend or a URL.

    `route` is merged into the config of the route, `server` is the section of that name, `options` the section `plugins`.
    `plugins` are plugin objects by name, active beside the built-in ones.
    """
    urls = [backend if isinstance(backend, str) else backend.url for backend in backends]
    settings = {"port": 0, "threads": 2, "drain_seconds": 5.0, **server}
    config = {
        "server": settings,
        "backends": [{"name": "backend", "endpoints": urls, "match_labels": ["found=nowhere"], "policy": policy}],
        "routes": [{"path_prefix": "/", "backend": "backend", **(route or {})}],
        "plugins": dict(options or {}),
    }
    with running_gateway(config, {}, plugins or {}) as gateway, serving(gateway, **settings) as served:
        yield Forwarding(gateway, served)
