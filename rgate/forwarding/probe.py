"""A probe: one request, or only a connection, to an endpoint, outside all traffic and on a connection of its own."""

from __future__ import annotations

from collections.abc import Mapping

from ..config import Timeouts
from ..errors import UpstreamClosed
from ..http1.fields import encode_field
from .connection import StaleConnection
from .upstream import Upstream

__all__ = ["probe"]


def probe(upstream: Upstream, target: str, headers: Mapping[str, str], seconds: float) -> int:
    """Send GET `target` and return the status; without a target only connect and return 0. Raises GatewayError.

    `seconds` limits the connect, and then each single wait for the response. Called by threads of plugins (`health`, `docker`).
    """
    connection = upstream.pool.connect_new(Timeouts(connect_seconds=seconds, read_seconds=seconds))
    try:
        if not target:
            return 0
        address = upstream.address
        fields = {"Host": address.authority, "User-Agent": "rgate", "Connection": "close"}
        given = {name.title(): value for name, value in headers.items()}
        lines = b"".join(encode_field(name, value) for name, value in {**fields, **given}.items())
        connection.set_io_timeout(seconds)
        connection.send_bytes(f"GET {address.base_path}{target} HTTP/1.1\r\n".encode("latin-1") + lines + b"\r\n")
        head, _ = connection.read_head()
        return head.code
    except StaleConnection as error:
        raise UpstreamClosed(str(error)) from error
    finally:
        connection.close()
