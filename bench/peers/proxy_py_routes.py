"""Routes for proxy.py's reverse proxy; BENCH_BACKEND in the environment is the backend's port."""

from __future__ import annotations

import os

from proxy.common.types import RePattern
from proxy.http import Url
from proxy.http.parser import HttpParser
from proxy.http.server import ReverseProxyBasePlugin


class Routes(ReverseProxyBasePlugin):
    """One prefix, one backend, the path as it came."""

    def routes(self) -> list[str]:  # type: ignore[override, unused-ignore]
        return [r"/api/payment.*$"]

    def handle_route(self, request: HttpParser, pattern: RePattern) -> Url:
        assert request.path
        return Url.from_bytes(b"http://127.0.0.1:" + os.environb[b"BENCH_BACKEND"] + request.path)
