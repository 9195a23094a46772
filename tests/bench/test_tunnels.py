"""The WebSocket clients that account for every tunnel, against an echo and against backends that behave badly."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.endpoints import Processes, instance
from bench.tunnels import Tunnel, TunnelClients
from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.waiting import eventually

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
LASTING = {"WebSocket": float("inf")}


def opened(connection: ScriptedConnection) -> None:
    """Open a tunnel, and take what is said first."""
    connection.read_head()
    connection.send(SWITCHING)
    connection.read_some()


def resetting(connection: ScriptedConnection) -> None:
    opened(connection)
    connection.reset()


def mixing_up(connection: ScriptedConnection) -> None:
    opened(connection)
    connection.send(b"\x81\x0bother words")
    connection.wait_closed()


def breaking_off(connection: ScriptedConnection) -> None:
    opened(connection)
    connection.send(b"\x81\x0b0 Web")


def first(port: int) -> Tunnel:
    with TunnelClients(port, "/x", LASTING, each=1) as clients:
        return eventually(lambda: clients.tunnels)[0]


def test_tunnel_that_its_client_ends_is_good_and_tells_how_much_came_back() -> None:
    echo = Processes(count=1)
    echo.start()
    try:
        port = int(echo.config["backends"][0]["endpoints"][0].rpartition(":")[2])
        with TunnelClients(port, "/x", {**LASTING, "WebSocket, short": 0.2}, each=1) as clients:
            eventually(lambda: len(clients.tunnels) >= 2)
        *short, lasting = sorted(clients.tunnels, key=lambda tunnel: tunnel.kind, reverse=True)
    finally:
        echo.stop()
    assert {(tunnel.kind, str(tunnel)) for tunnel in short} == {("WebSocket, short", "ok")}
    assert (lasting.kind, str(lasting), lasting.good) == ("WebSocket", "ok", True)
    assert lasting.who == instance(0)
    assert lasting.echoes > short[0].echoes > 0


@pytest.mark.parametrize(
    "script, answer",
    [
        (http_response(b'{"reason": "refused"}', status="503 Service Unavailable"), "503 refused"),
        (http_response(b'{"path": "/x"}'), "200 no_tunnel"),
        (lambda connection: connection.read_head(), "lost closed"),
        (opened, "101 closed"),
        (breaking_off, "101 closed"),
        (resetting, "101 reset"),
        (mixing_up, "101 not_mine"),
    ],
    ids=["fault", "no tunnel", "lost", "end", "half", "reset", "other words"],
)
def test_tunnel_that_ends_otherwise_is_told_with_the_reason(
    script: bytes | Callable[[ScriptedConnection], object], answer: str
) -> None:
    with ScriptedBackend(script) as backend:
        told = first(backend.port)
    assert (str(told), told.good, told.echoes) == (answer, False, 0)
