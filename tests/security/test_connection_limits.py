"""How many connections, from whom, and for how many requests."""

from __future__ import annotations

import errno
import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from rgate.config.models import ServerConfig
from rgate.http1.client_address import TrustedProxies
from rgate.serving.connection import Connection
from rgate.serving.connection_limits import MAX_REJECTING, RESERVED_FDS, ConnectionLimits
from rgate.serving.connection_state import INCOMPLETE, State
from rgate.testing import ScriptedBackend, http_response

from ..support.forwarding import Forwarding, forwarding
from ..support.raw_client import RawClient
from ..support.serving import connection_of, send_apart
from ..support.tls_client import TLS, SecureClient
from ..support.waiting import eventually

V1 = b"PROXY TCP4 203.0.113.%d 192.0.2.1 5678 443\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def rested(live: Forwarding, client: RawClient) -> Connection:
    """The server's end of a connection, once it is idle: its client may have the response a moment before."""
    connection = connection_of(live.server, client)
    eventually(lambda: connection.state is State.IDLE, "the connection is idle")
    return connection


def wait_for_ticks(live: Forwarding) -> None:
    """Idle connections are looked at once in each tick."""
    before = live.server.ticks
    eventually(lambda: live.server.ticks > before + 1, "the server ticks")


@pytest.fixture(scope="module")
def backend() -> Iterator[ScriptedBackend]:
    with ScriptedBackend(http_response(b"ok")) as running:
        yield running


def busy(live: Forwarding, stack: ExitStack) -> RawClient:
    """A connection that has begun a request, and so is not idle."""
    client = stack.enter_context(RawClient(live.url))
    client.send(b"GET / HTTP/1.1\r\n")
    eventually(lambda: connection_of(live.server, client).state is not State.IDLE, "the server sees the request begin")
    return client


def test_connections_over_the_limit_are_answered_503_and_closed(
    backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rgate.serving.connection_limits.UNFINISHED_SECONDS", 1_000)
    with forwarding(backend, max_connections=3) as live, ExitStack() as stack:
        clients = [busy(live, stack) for _ in range(3)]
        for _ in range(3):
            with RawClient(live.url) as over:
                over.send(GET)
                response = over.response()
                assert (response.status, b'"overloaded"' in response.body) == (503, True)
                assert (response.value("Connection"), response.value("Retry-After")) == ("close", "1")
                assert over.is_closed()
        for client in clients:
            client.send(b"Host: x\r\n\r\n")
            assert client.response().body == b"ok", "those that were there before are unharmed"
        clients[0].close()
        eventually(lambda: len(live.server.connections) < 3, "the others have gone")
        with RawClient(live.url) as next_one:
            assert next_one.get("/").body == b"ok"


def test_connections_that_are_idle_go_for_new_ones_the_oldest_first(
    backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with forwarding(backend, max_connections=3) as live, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(live.url)) for _ in range(3)]
        for client in clients:
            assert client.get("/").body == b"ok"
        monkeypatch.setattr("rgate.serving.connection_limits.IDLE_BATCH", 1)
        for ago, client in zip((20, 30, 10), clients, strict=True):
            rested(live, client).idle_since -= ago
        for longest in (1, 0, 2):
            wait_for_ticks(live)
            newer = stack.enter_context(RawClient(live.url))
            assert newer.get("/").body == b"ok"
            rested(live, newer)
            assert clients[longest].is_closed(), "not the one that was idle the longest"


UNFINISHED = {
    "head": b"GET / HTTP/1.1\r\nHost: x\r\nX: ",
    "small body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\nx",
    "chunked body": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nx",
}


@pytest.mark.parametrize("sent", UNFINISHED.values(), ids=UNFINISHED)
def test_connections_with_unfinished_requests_go_for_new_ones_the_oldest_first(
    backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr("rgate.serving.connection_limits.UNFINISHED_BATCH", 1)
    with forwarding(backend, max_connections=3) as live, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(live.url)) for _ in range(3)]
        for client in clients:
            send_apart(live.server, client, sent)
            unfinished = connection_of(live.server, client)
            eventually(lambda unfinished=unfinished: unfinished.state in INCOMPLETE, "the request has begun")
        for ago, client in zip((20, 30, 10), clients, strict=True):
            connection = connection_of(live.server, client)
            connection.deadline = live.server.now + 60 - ago  # it goes on to be later than now, so that it is not given up
        monkeypatch.setattr("rgate.serving.connection.Connection.behind_since", property(lambda it: it.deadline - 1_000))
        for longest in (1, 0, 2):
            wait_for_ticks(live)
            with RawClient(live.url) as newer:
                assert newer.get("/").body == b"ok"
                assert clients[longest].response().status == 408
            eventually(lambda: len(live.server.connections) < 3)
            more = stack.enter_context(RawClient(live.url))
            send_apart(live.server, more, sent)
            connection_of(live.server, more).deadline = live.server.now + 1_000


def test_connections_with_requests_that_have_just_begun_stay(backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.serving.connection_limits.UNFINISHED_SECONDS", 1_000)
    with forwarding(backend, max_connections=2) as live, ExitStack() as stack:
        for _ in range(2):
            busy(live, stack)
        with RawClient(live.url) as over:
            assert over.get("/").status == 503


def test_connections_that_there_is_no_file_for_are_made_room_for(
    backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rgate.serving.connection_limits.UNFINISHED_SECONDS", -1_000)
    with forwarding(backend) as live, ExitStack() as stack:
        waiting = busy(live, stack)
        real = socket.socket.accept
        failed = threading.Event()

        def accept(listener: socket.socket) -> object:
            if not failed.is_set():
                failed.set()
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real(listener)

        monkeypatch.setattr("socket.socket.accept", accept)
        with RawClient(live.url) as client:
            assert waiting.response().status == 408, "the one that is not finished goes"
            assert client.get("/").body == b"ok"


def test_connections_far_over_the_limit_are_closed_without_an_answer(
    backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rgate.serving.server.MAX_REJECTING", 0)
    with forwarding(backend, max_connections=1) as live, ExitStack() as stack:
        busy(live, stack)
        with RawClient(live.url) as over:
            assert over.is_closed()
    assert MAX_REJECTING > 0


def test_connections_of_one_client_over_its_limit_are_answered_503(backend: ScriptedBackend) -> None:
    with forwarding(backend, max_connections_per_client=2) as live, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(live.url)) for _ in range(2)]
        assert [client.get("/").status for client in clients] == [200, 200]
        with RawClient(live.url) as over:
            assert over.get("/").status == 503
        clients[0].close()
        eventually(lambda: not live.server.limits._counts.get("127.0.0.1", 0) > 1, "the count goes down")
        with RawClient(live.url) as next_one:
            assert next_one.get("/").status == 200
    assert live.server.limits._counts == {}, "an address without connections costs nothing"


def test_connections_of_a_trusted_proxy_are_not_counted(backend: ScriptedBackend) -> None:
    with forwarding(backend, max_connections_per_client=1, trusted_proxies=["127.0.0.1"]) as live, ExitStack() as stack:
        for _ in range(3):
            assert stack.enter_context(RawClient(live.url)).get("/").status == 200


def test_connections_announced_are_counted_for_their_client(backend: ScriptedBackend) -> None:
    with forwarding(backend, max_connections_per_client=1, proxy_protocol=True) as live, ExitStack() as stack:
        for number, status in ((1, 200), (2, 200), (1, 503), (3, 200)):
            client = stack.enter_context(RawClient(live.url))
            client.send(V1 % number + GET)
            assert client.response().status == status, f"203.0.113.{number}"


def test_requests_of_a_connection_over_their_limit_need_another_one(backend: ScriptedBackend) -> None:
    with forwarding(backend, max_requests_per_connection=3) as live, RawClient(live.url) as client:
        assert [client.get("/").value("Connection") for _ in range(3)] == [None, None, "close"]
        assert client.is_closed()


def test_requests_pipelined_over_their_limit_are_not_served(backend: ScriptedBackend) -> None:
    count = len(backend.requests)
    with forwarding(backend, max_requests_per_connection=2) as live, RawClient(live.url) as client:
        client.send(GET * 5)
        assert [client.response().value("Connection") for _ in range(2)] == [None, "close"]
        assert client.is_closed()
    assert len(backend.requests) == count + 2


def test_limit_of_connections_is_what_the_open_files_allow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.setrlimit", lambda what, limits: raised.append(limits))
    config = ServerConfig(max_connections=10_000, max_in_flight=100, max_slow_clients=100)
    for soft, hard, most, wanted in (
        (1_024, 1_048_576, 10_000, 20_200 + RESERVED_FDS),
        (1_024, resource.RLIM_INFINITY, 10_000, 20_200 + RESERVED_FDS),
        (1_024, 4_096, 4_096 - 200 - RESERVED_FDS, 4_096),
        (1_024, 1_024, 512, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 10_000, None),
    ):
        raised.clear()
        caplog.clear()
        monkeypatch.setattr("resource.getrlimit", lambda what, now=(soft, hard): now)
        assert ConnectionLimits(config, TrustedProxies()).max_connections == most, f"{soft} {hard}"
        assert raised == ([] if wanted is None else [(wanted, hard)])
        assert bool(caplog.records) == (most < 10_000)


def test_streams_and_tunnels_count_twice_where_open_files_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda what: (1_024, 1_024))
    admission = ConnectionLimits(ServerConfig(max_in_flight=100, max_slow_clients=100), TrustedProxies())
    assert admission.max_connections == 512
    connections: Any = [SimpleNamespace(idle=False, unfinished=False, late=False)] * 300
    assert admission.make_room(connections, 212, connections[0], 1, 0.0)
    assert not admission.make_room(connections, 213, connections[0], 2, 0.0)


def test_limit_of_open_files_that_cannot_be_raised_is_borne(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(what: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed")

    monkeypatch.setattr("resource.getrlimit", lambda what: (2_000, 100_000))
    monkeypatch.setattr("resource.setrlimit", refuse)
    assert (
        ConnectionLimits(ServerConfig(max_in_flight=10, max_slow_clients=0), TrustedProxies()).max_connections
        == 2_000 - 10 - RESERVED_FDS
    )


def test_connections_over_the_limit_that_would_speak_tls_are_closed(backend: ScriptedBackend) -> None:
    with forwarding(backend, max_connections=1, **TLS) as live, ExitStack() as stack:
        first = stack.enter_context(SecureClient(live.url))
        first.send(b"GET / HTTP/1.1\r\n")
        eventually(lambda: connection_of(live.server, first).state is not State.IDLE, "the server sees the request begin")
        with RawClient(live.url) as over:
            assert over.is_closed(), "without a handshake there is no answer"
        first.send(b"Host: x\r\n\r\n")
        assert first.response().body == b"ok"
