"""Settings that a reload changes hold for the connections that are open, too."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from rgate.config.models import ServerConfig
from rgate.serving.connection_limits import IDLE_BATCH
from rgate.serving.connection_state import State
from rgate.serving.server import Server

from ..support.raw_client import RawClient
from ..support.serving import connection_of, serving
from ..support.waiting import eventually

FORWARDED = b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.5\r\n\r\n"


def tell_address(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answers with the client's address; /large with 100 MB."""
    if environ["PATH_INFO"] == "/large":
        start_response("200 OK", [("Content-Length", "100000000")])
        return (b"x" * 1_000_000 for _ in range(100))
    address = environ["REMOTE_ADDR"].encode()
    start_response("200 OK", [("Content-Length", str(len(address)))])
    return [address]


def change(server: Server, **config: Any) -> None:
    server.reconfigure(tell_address, ServerConfig(**{"port": 0, "threads": 2, "drain_seconds": 5.0, **config}), None)


def address(client: RawClient) -> bytes:
    client.send(FORWARDED)
    return client.response().body


def test_trust_that_is_withdrawn_holds_for_open_connections() -> None:
    with serving(tell_address, trusted_proxies=("127.0.0.1",)) as server, RawClient(server.url) as client:
        assert address(client) == b"203.0.113.5"
        change(server)
        assert address(client) == b"127.0.0.1"


def test_trust_that_is_given_holds_for_open_connections() -> None:
    with serving(tell_address) as server, RawClient(server.url) as client:
        assert address(client) == b"127.0.0.1"
        change(server, trusted_proxies=("127.0.0.0/8",))
        assert address(client) == b"203.0.113.5"


def test_write_seconds_hold_for_open_connections_and_for_new_ones() -> None:
    with serving(tell_address, write_seconds=3_600) as server, RawClient(server.url) as client:
        assert client.get().status == 200
        change(server, write_seconds=0.05)
        with RawClient(server.url) as other:
            for each in (client, other):
                descriptor = connection_of(server, each).fileno
                each.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
                eventually(lambda descriptor=descriptor: descriptor() < 0, "a reader that does not read is given up")


def test_idle_drain_seconds_hold_when_the_server_stops() -> None:
    with serving(tell_address, idle_drain_seconds=3_600, drain_seconds=3_600) as server, RawClient(server.url) as client:
        assert client.get().status == 200
        change(server, idle_drain_seconds=0, drain_seconds=3_600)
        server.stop()
        assert client.is_closed()


def test_connection_that_has_been_idle_longest_goes_first_whatever_has_changed() -> None:
    with serving(tell_address, max_requests_per_connection=10) as server, ExitStack() as stack:
        used = stack.enter_context(RawClient(server.url))
        assert used.get().status == 200
        idle_since = connection_of(server, used).idle_since
        eventually(lambda: server.now > idle_since, "the server's clock goes on")
        for _ in range(IDLE_BATCH):
            later = stack.enter_context(RawClient(server.url))
            last = connection_of(server, later)
        change(server, max_requests_per_connection=9, max_connections=IDLE_BATCH + 1)
        newest = stack.enter_context(RawClient(server.url))
        assert newest.get().status == 200
        assert used.is_closed()
        assert last.state is State.IDLE and later.get().status == 200


def test_request_keeps_the_settings_of_its_first_byte() -> None:
    with serving(tell_address, trusted_proxies=("127.0.0.1",)) as server, RawClient(server.url) as client:
        client.send(FORWARDED[:20])
        connection = connection_of(server, client)
        eventually(lambda: connection.state is State.READING_HEAD, "the request has begun")
        config = ServerConfig(port=0, threads=2, drain_seconds=5.0)
        are_over = server.reconfigure(tell_address, config, None)
        assert not are_over(), "it began before"
        client.send(FORWARDED[20:])
        assert client.response().body == b"203.0.113.5", "its proxy is still trusted"
        eventually(are_over)
        assert address(client) == b"127.0.0.1", "the next request has the new settings"


def test_idle_connection_does_not_keep_settings_of_before() -> None:
    with serving(tell_address) as server, RawClient(server.url) as client:
        assert client.get().status == 200
        connection = connection_of(server, client)
        eventually(lambda: connection.state is State.IDLE)
        change(server)
        eventually(lambda: connection.settings is server.settings)
