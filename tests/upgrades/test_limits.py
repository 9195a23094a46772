"""Tunnels: their number, their limits of time, how they end at a stop, and what plugins learn of them."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rgate import Exchange, Gateway, Middleware, Tunnel, hookimpl
from rgate.serving import tunnels
from rgate.serving.tunnels import TunnelRelay
from rgate.testing import ScriptedBackend, closed_port_url, http_response

from ..support.raw_client import RawClient, RawResponse
from ..support.waiting import eventually
from .tunnelling import HANDSHAKE, Holding, echo, gone, in_flight, open_tunnel, switch, switching, tunnelling


def ask(client: RawClient) -> RawResponse:
    client.send(HANDSHAKE)
    return client.response()


def test_tunnel_over_the_cap_is_503_until_another_ends() -> None:
    options = {"websocket": {"max_tunnels": 2}}
    with ScriptedBackend(switching(echo)) as backend, tunnelling(backend, options=options) as live:
        with open_tunnel(live) as first, open_tunnel(live), RawClient(live.url) as third:
            response = ask(third)
            assert (response.status, response.value("Retry-After")) == (503, "1")
            assert json.loads(response.body)["reason"] == "overloaded"
            eventually(lambda: len(live.server.tunnels) == 2, "both are relayed")
            first.close()
            eventually(lambda: len(live.server.tunnels) == 1, "the first one is over")
            assert switch(third).status == 101
        gone(live)
        assert len(backend.requests) == 3


def test_cap_of_a_route_bounds_that_route() -> None:
    config: dict[str, Any] = {
        "options": {"websocket": {"max_tunnels": 2}},
        "route": {"plugins": {"websocket": {"max_tunnels": 1}}},
    }
    with ScriptedBackend(switching(echo)) as backend, tunnelling(backend, **config) as live:
        with open_tunnel(live), RawClient(live.url) as second:
            assert ask(second).status == 503
        gone(live)


def test_global_cap_bounds_a_route_with_a_higher_one() -> None:
    config: dict[str, Any] = {
        "options": {"websocket": {"max_tunnels": 1}},
        "route": {"plugins": {"websocket": {"max_tunnels": 5}}},
    }
    with ScriptedBackend(switching(echo)) as backend, tunnelling(backend, **config) as live:
        with open_tunnel(live), RawClient(live.url) as second:
            assert ask(second).status == 503
        gone(live)


def test_cap_of_zero_does_not_affect_other_requests() -> None:
    options = {"websocket": {"max_tunnels": 0}}
    with ScriptedBackend() as backend, tunnelling(backend, options=options) as live, RawClient(live.url) as client:
        assert ask(client).status == 503
        assert client.get("/").status == 200


def test_cap_counts_no_upgrade_that_failed() -> None:
    answers = {
        403: http_response(b"no", "403 Forbidden"),
        502: b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
    }
    for status, answer in answers.items():
        with ScriptedBackend(answer) as backend, tunnelling(backend, options={"websocket": {"max_tunnels": 1}}) as live:
            for _ in range(3):
                with RawClient(live.url) as client:
                    assert ask(client).status == status
    with (
        closed_port_url() as url,
        tunnelling(url, options={"websocket": {"max_tunnels": 1}}) as live,
        RawClient(live.url) as client,
    ):
        for _ in range(3):
            response = ask(client)
            assert json.loads(response.body)["reason"] == "refused"


@pytest.fixture
def checked_often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tunnels, "CHECK_SECONDS", 0.02)
    yield


@pytest.mark.parametrize(
    "limit", [{"idle_seconds": 0.05}, {"max_duration_seconds": 0.05}, {"idle_seconds": 0.05, "max_duration_seconds": 30}]
)
def test_tunnel_past_a_limit_is_closed_on_both_sides(limit: dict[str, float], checked_often: None) -> None:
    ended: list[bytes] = []
    held = switching(lambda connection: ended.append(connection.read(1)))
    with ScriptedBackend(held) as backend, tunnelling(backend, options={"websocket": limit}) as live, open_tunnel(live) as client:
        assert client.is_closed()
        eventually(lambda: ended == [b""], "the backend's connection is closed")
        gone(live)


def open_between(tunnel: Tunnel) -> TunnelRelay:
    client, backend = socket.socket(), socket.socket()
    opened = TunnelRelay(tunnel, client, backend, b"", backend.close)
    opened.close_client = client.close
    opened.opened_at = opened.active_at = 1_000.0
    return opened


@pytest.mark.parametrize(
    ("idle_seconds", "max_duration_seconds", "active", "now", "ends_by"),
    [
        (10, None, 1_000, 1_009.9, ""),
        (10, None, 1_000, 1_010.1, "idle_seconds"),
        (10, None, 9_000, 9_009.9, ""),
        (10, 60, 1_055, 1_059.9, ""),
        (10, 60, 1_059, 1_060.1, "max_duration_seconds"),
    ],
)
def test_limits_count_from_the_last_byte_and_from_the_start(
    idle_seconds: float, max_duration_seconds: float | None, active: float, now: float, ends_by: str
) -> None:
    opened = open_between(Tunnel("websocket", idle_seconds, max_duration_seconds))
    opened.active_at = active
    assert opened.expiry_reason(now) == ends_by
    opened.end("stop")


def test_end_of_a_tunnel_calls_every_callback_even_if_one_fails(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Tunnel] = []
    opened = open_between(Tunnel("websocket", 10, on_close=told.append))

    def fail() -> None:
        raise RuntimeError("no")

    opened.close_client = fail
    opened.end("idle_seconds")
    assert [tunnel.closed_by for tunnel in told] == ["idle_seconds"]
    assert "ending a tunnel failed" in caplog.text
    opened.client.sock.close()


def test_stop_lets_tunnels_run_for_the_drain_time_and_closes_them_then() -> None:
    ended: list[bytes] = []
    held = switching(lambda connection: ended.append(connection.read(5)))
    with ScriptedBackend(held) as backend, tunnelling(backend, drain_seconds=2) as live, open_tunnel(live) as client:
        eventually(lambda: live.server.tunnels, "the tunnel is relayed, after the client has the 101")
        live.server.stop()
        eventually(lambda: live.server.draining)
        assert len(live.server.tunnels) == 1, "it may run for drain_seconds"
        client.send(b"he")
        assert client.is_closed()
        eventually(lambda: ended == [b"he"], "the backend's connection is closed")


def test_stop_waits_no_longer_than_the_last_tunnel() -> None:
    with ScriptedBackend(switching(echo)) as backend, tunnelling(backend, drain_seconds=60) as live:
        with open_tunnel(live) as client:
            live.server.stop()
            eventually(lambda: live.server.draining)
            client.send(b"hello")
            assert client.read(5) == b"hello"
        gone(live)


def test_tunnel_added_after_the_stop_is_rejected() -> None:
    all_tunnels = tunnels.Tunnels()
    all_tunnels.stop()
    told: list[Tunnel] = []
    all_tunnels.add(open_between(Tunnel("websocket", 10, on_close=told.append)))
    assert [tunnel.closed_by for tunnel in told] == ["stop"]


def test_tunnel_whose_sockets_are_not_connected_ends_once() -> None:
    told: list[Tunnel] = []
    all_tunnels = tunnels.Tunnels()
    opened = open_between(Tunnel("websocket", 10, on_close=told.append))  # neither end is connected
    all_tunnels.add(opened)
    eventually(lambda: told and not all_tunnels, "it is over")
    all_tunnels.stop()
    assert [tunnel.closed_by for tunnel in told] == ["client"]


class Watching:
    """A plugin that keeps the exchanges, and their state when they finish."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    @hookimpl
    def rgate_middlewares(self, gateway: Gateway) -> Middleware:
        def wrap(app: Any, options: Any) -> Any:
            def watch(environ: Any, start_response: Any) -> Any:
                Exchange.of(environ).on_finish(self.exchanges.append)
                return app(environ, start_response)

            return watch

        return Middleware("watching", wrap, modifies_request=False)


def test_exchange_ends_at_the_switch_and_its_endpoint_is_busy_until_the_tunnel_ends() -> None:
    watching = Watching()
    plugins = {"watching": watching}
    with ScriptedBackend(switching(echo)) as backend, tunnelling(backend, plugins=plugins) as live:
        with open_tunnel(live) as client:
            exchange = watching.exchanges[0]
            assert (exchange.status, exchange.bytes_sent, exchange.attempts, exchange.error) == (101, 0, 1, None)
            assert exchange.finished and in_flight(live) == 1
            client.send(b"hello")
            assert client.read(5) == b"hello"
        gone(live)
        tunnel = exchange.tunnel
        assert tunnel is not None
        assert (tunnel.bytes_received, tunnel.bytes_sent, tunnel.closed_by) == (5, 5, "client")
        assert tunnel.seconds > 0


def test_statistics_have_the_exchange_while_the_tunnel_is_open(tmp_path: Path) -> None:
    options = {"stats": {"database": f"sqlite:///{tmp_path}/stats.db"}}
    with ScriptedBackend(switching(echo)) as backend, tunnelling(backend, options=options) as live:
        with open_tunnel(live), RawClient(live.url, host="localhost") as client:
            report = json.loads(client.get("/stats?by=status").body)
            assert report["requests_count"] == {"success": 1, "error": 0}
            assert [group["status"] for group in report["groups"]] == [101]
        gone(live)


def test_end_of_a_tunnel_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "rgate.plugins.websocket")
    with ScriptedBackend(switching(echo, b"welcome")) as backend, tunnelling(backend) as live:
        with open_tunnel(live) as client:
            client.send(b"hello")
            assert client.read(12) == b"welcomehello"
        gone(live)
        line = eventually(lambda: [r.getMessage() for r in caplog.records if r.name == "rgate.plugins.websocket"])
    assert len(line) == 1 and "ended by client after 0." in line[0] and "5 bytes received and 12 sent" in line[0], line


def test_access_log_has_one_line_for_the_switch(capsys: pytest.CaptureFixture[str]) -> None:
    options = {"access_log": {"format": "json"}}
    with ScriptedBackend(switching(echo)) as backend, tunnelling(backend, options=options) as live:
        with open_tunnel(live):
            pass
        gone(live)
    (line,) = capsys.readouterr().out.splitlines()
    entry = json.loads(line)
    assert (entry["status"], entry["target"], entry["bytes"], entry["reason"]) == (101, "/chat", 0, None)


def test_thread_that_has_opened_a_tunnel_is_free_for_the_next() -> None:
    """An open tunnel holds no thread, so one thread is enough for any number."""
    holding = Holding()
    few = {"threads": 1, "max_in_flight": 1, "max_slow_clients": 1}
    with ScriptedBackend(switching(holding)) as backend, tunnelling(backend, **few) as live:
        clients = [RawClient(live.url) for _ in range(20)]
        for client in clients:
            switch(client)
        assert live.server.threads <= 3
        for client in clients:
            client.close()
        holding.let_go()
