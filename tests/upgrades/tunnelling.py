"""A gateway that tunnels, a backend that switches protocols, and a client that asks for it, all on raw sockets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rgate.testing import ScriptedBackend, ScriptedConnection

from ..support.forwarding import Forwarding, forwarding
from ..support.raw_client import RawClient, RawResponse
from ..support.waiting import eventually

# Both from RFC 6455 §1.3.
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

SWITCHED = (
    f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
).encode()
ASKING = ("Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13")


def request(*headers: str, line: str = "GET /chat HTTP/1.1") -> bytes:
    """A request head."""
    return "".join(f"{text}\r\n" for text in (line, "Host: example.org", *headers, "")).encode()


HANDSHAKE = request(*ASKING)


def switching(then: Callable[[ScriptedConnection], object], after: bytes = b"") -> Callable[[ScriptedConnection], None]:
    """A backend that answers every handshake with 101, and `after` in the same packet, and does `then` on the connection."""

    def script(connection: ScriptedConnection) -> None:
        if connection.read_request() is not None:
            connection.send(SWITCHED + after)
            then(connection)

    return script


def echo(connection: ScriptedConnection) -> None:
    """Echo all bytes until the end."""
    while block := connection.read_some():
        connection.send(block)


class Holding:
    """A backend that leaves its connections to the test after the 101, and keeps them open until close() is called."""

    def __init__(self) -> None:
        self.connections: list[ScriptedConnection] = []
        self._let_go = threading.Event()

    def __call__(self, connection: ScriptedConnection) -> None:
        self.connections.append(connection)
        self._let_go.wait(20)

    @property
    def connection(self) -> ScriptedConnection:
        """The only connection, once there is one."""
        return eventually(lambda: self.connections and self.connections[-1], "the backend has switched")  # type: ignore[return-value]

    def let_go(self) -> None:
        """Close them all."""
        self._let_go.set()


@contextmanager
def tunnelling(backend: ScriptedBackend | str, **options: Any) -> Iterator[Forwarding]:
    """A gateway in front of `backend`. At the end there must be nothing left of any tunnel."""
    with forwarding(backend, **options) as live:
        yield live
    assert not live.server.tunnels, "tunnels were left"
    assert not live.server.connections, "connections were left"
    assert not in_flight(live), "the endpoint is still busy"


def in_flight(live: Forwarding) -> int:
    """How many exchanges the endpoints are working on, tunnels among them."""
    endpoints = live.gateway.table.snapshot.endpoints.values()
    return sum(endpoint.state.in_flight for several in endpoints for endpoint in several)


@contextmanager
def open_tunnel(live: Forwarding, *headers: str) -> Iterator[RawClient]:
    """A client whose connection has become a tunnel."""
    with RawClient(live.url) as client:
        switch(client, *headers)
        yield client


def switch(client: RawClient, *headers: str) -> RawResponse:
    """Send a WebSocket handshake; returns the 101."""
    client.send(request(*ASKING, *headers))
    response = client.response()
    assert response.status == 101, response
    return response


def gone(live: Forwarding) -> None:
    """Wait for all tunnels to be over. They have a second."""
    eventually(lambda: not live.server.tunnels and not in_flight(live), "the tunnel ends", within_seconds=1.0)
