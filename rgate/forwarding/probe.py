"""One question to an endpoint, outside of all traffic and on a connection of its own."""

from __future__ import annotations

from collections.abc import Mapping

from ..config import Timeouts
from ..errors import UpstreamClosed
from ..http1.fields import forward_line
from .upstream import StaleConnection, Upstream

__all__ = ["probe"]


def probe(upstream: Upstream, target: str, headers: Mapping[str, str], seconds: float) -> int:
    """The status that GET `target` is answered with; 0 without a target, when there is a connection. Raises GatewayError."""
    connection = upstream.pool.fresh(Timeouts(connect_seconds=seconds, read_seconds=seconds))
    try:
        if not target:
            return 0
        address = upstream.address
        fields = {"Host": address.authority, "User-Agent": "rgate", "Connection": "close"}
        given = {name.title(): value for name, value in headers.items()}
        lines = b"".join(forward_line(name, value) for name, value in {**fields, **given}.items())
        connection.allow(seconds)
        connection.send_bytes(f"GET {address.base_path}{target} HTTP/1.1\r\n".encode("latin-1") + lines + b"\r\n")
        head, _ = connection.read_head()
        return head.code
    except StaleConnection as error:
        raise UpstreamClosed(str(error)) from error
    finally:
        connection.close()
