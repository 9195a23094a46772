"""A whole gateway on a real socket in front of one backend, all of it from one config."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rgate import Gateway
from rgate.serving.server import Server
from rgate.testing import ScriptedBackend, running_gateway

from ..raw_client import PATIENCE_SECONDS


class Live:
    """A running gateway and its server."""

    def __init__(self, gateway: Gateway, server: Server) -> None:
        self.gateway = gateway
        self.server = server
        self.url = server.url


@contextmanager
def gateway_before(
    backend: ScriptedBackend | str,
    *,
    route: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    plugins: Mapping[str, object] | None = None,
    **server: Any,
) -> Iterator[Live]:
    """A gateway that forwards "/" (or what `route` says) to `backend`. `options` are those of plugins, `plugins` brings some."""
    config = {
        "server": {"port": 0, "threads": 2, "drain_seconds": 5, **server},
        "backends": [{"name": "backend", "endpoints": [backend if isinstance(backend, str) else backend.url]}],
        "routes": [{"path_prefix": "/", "backend": "backend", **(route or {})}],
        "plugins": dict(options or {}),
    }
    with running_gateway(config, {}, plugins or {}) as gateway:
        served = Server(gateway, gateway.config.server)
        thread = threading.Thread(target=served.run, name="test-gateway")
        thread.start()
        try:
            yield Live(gateway, served)
        finally:
            served.stop()
            thread.join(PATIENCE_SECONDS)
            served.server_close()
            assert not thread.is_alive(), "the server did not stop"
