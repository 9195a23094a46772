"""The settings of a server that a reload changes, as one object that is swapped as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from ..http1.client_address import TrustedProxies
from ..http1.request import RequestParser
from .events import EPOLL

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from ..config.models import ServerConfig
    from ..tls.server_context import ServerTLS

__all__ = ["ServerSettings"]


@dataclass(frozen=True, eq=False, slots=True)
class ServerSettings:
    """The settings that requests are served with. A request keeps the settings that were current when its first byte arrived.

    generation         counts the reloads; the larger one is the newer
    tls                what new connections speak TLS with; None: plain HTTP
    lowest_body_limit  the app may reject a body longer than this by its Content-Length; infinity: it never does
    seconds_per_body_byte  how long the client may take for each byte of a body (min_body_bytes_per_second); infinity: any time
    """

    app: WSGIApplication
    config: ServerConfig
    tls: ServerTLS | None = None
    generation: int = 0
    trusted_proxies: TrustedProxies = field(init=False)
    request_parser: RequestParser = field(init=False)
    lowest_body_limit: float = field(init=False)
    seconds_per_body_byte: float = field(init=False)

    def __post_init__(self) -> None:
        config = self.config
        parser = RequestParser(config.max_target_bytes, config.max_headers, config.max_body_bytes)
        parser.upgrades = EPOLL  # tunnels need it
        parser.interim_responses = config.interim_responses
        lowest: float | None = getattr(self.app, "lowest_body_limit", None)
        rate = config.min_body_bytes_per_second
        derived = {
            "trusted_proxies": TrustedProxies(config.trusted_proxies),
            "request_parser": parser,
            "lowest_body_limit": inf if lowest is None else lowest,
            "seconds_per_body_byte": 1 / rate if rate else inf,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
