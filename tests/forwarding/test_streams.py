"""Responses that wait for their backend or their client are relayed without a thread each, and are what they were."""

from __future__ import annotations

import gc
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from rgate import Exchange, Gateway, Middleware, hookimpl, map_body
from rgate.serving.connection import Connection
from rgate.serving.stream_relay import LARGE_BLOCK_BYTES, SMALL_BLOCK_BYTES
from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.forwarding import Forwarding, forwarding
from ..support.raw_client import RawClient, RawResponse
from ..support.serving import serving
from ..support.tls_client import TLS, SecureClient
from ..support.waiting import DEADLINE_SECONDS, eventually, passed
from .test_tls import CERTIFICATES, https, over_tls

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
EVENT_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FEW_THREADS = {"threads": 1, "max_in_flight": 1, "max_slow_clients": 0}
LARGE = random.Random(1).randbytes(1_000_000) * 8  # more than the buffers of all sockets take


def chunk(block: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(block), block)


def relays(live: Forwarding, count: int) -> None:
    """Wait until so many responses are relayed without a thread."""
    streams = live.server.streams
    assert streams is not None
    eventually(lambda: len(streams) == count, f"{count} streams are relayed")


@dataclass
class Events:
    """A backend that begins a stream for every request, and goes on when the test says so."""

    go_on: threading.Event = field(default_factory=threading.Event)

    def __call__(self, connection: ScriptedConnection) -> None:
        while (request := connection.read_request()) is not None:
            if " /quick " in request.line:
                connection.send(http_response(b"quick"))
                continue
            connection.send(EVENT_STREAM + chunk(b"one"))
            passed(self.go_on)
            connection.send(chunk(b"two") + b"0\r\n\r\n")


def test_streams_hold_no_threads_and_others_are_served() -> None:
    events = Events()
    with ScriptedBackend(events) as backend, forwarding(backend, **FEW_THREADS) as live, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(live.url)) for _ in range(50)]
        for client in clients:
            client.send(GET)
            assert client.until(b"one").startswith(b"HTTP/1.1 200 OK"), "refused, as if it were waiting"
        relays(live, 50)
        assert live.in_flight == 50, "for policies that look for the endpoint with the fewest"
        assert live.gateway.readiness.server.open_counts() == {
            "connections": 50,
            "streams": 50,
            "tunnels": 0,
            "threads": live.server.threads,
        }
        assert live.server.threads <= 3
        with RawClient(live.url) as other:
            assert other.get("/quick").body == b"quick"
        events.go_on.set()
        for client in clients:
            assert client.until(b"0\r\n\r\n").endswith(b"3\r\ntwo\r\n0\r\n\r\n")
            assert client.get("/quick").body == b"quick", "the connection goes on"
        relays(live, 0)
        eventually(lambda: live.in_flight == 0)


@dataclass
class Plan:
    """What a backend sends, and where it stalls: until the test has seen that the response is relayed without a thread."""

    framing: str
    blocks: list[bytes]
    stalls: set[int]
    ends_at: int  # how many blocks it sends before it breaks off; all of them: it does not
    direct: threading.Event = field(default_factory=threading.Event)
    may_go_on: threading.Event = field(default_factory=threading.Event)
    stalled: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def by_chance(cls, seed: int) -> Plan:
        chance = random.Random(seed)
        sizes = [chance.choice((1, 2, 100, 16_384, 65_536, 65_537, 300_000)) for _ in range(chance.randint(1, 8))]
        blocks = [chance.randbytes(size) for size in sizes]
        stalls = {at for at in range(len(blocks)) if chance.random() < 0.4}
        framing = chance.choice(("length", "chunked", "close"))
        breaks_off = framing != "close" and len(blocks) > 1 and chance.random() < 0.4
        return cls(framing, blocks, stalls, chance.randrange(1, len(blocks)) if breaks_off else len(blocks))

    @property
    def body(self) -> bytes:
        return b"".join(self.blocks[: self.ends_at])

    @property
    def whole(self) -> bool:
        return self.ends_at == len(self.blocks)

    def __call__(self, connection: ScriptedConnection) -> None:
        while (request := connection.read_request()) is not None:
            if " /after " in request.line:
                connection.send(http_response(b"after"))
                continue
            head = {"length": f"Content-Length: {sum(map(len, self.blocks))}", "chunked": "Transfer-Encoding: chunked"}
            connection.send(f"HTTP/1.1 200 OK\r\n{head.get(self.framing, 'X-A: 1')}\r\n\r\n".encode())
            for at, block in enumerate(self.blocks[: self.ends_at]):
                if at in self.stalls and not self.direct.is_set():
                    self.stalled.set()
                    passed(self.may_go_on)
                    self.may_go_on.clear()
                connection.send(chunk(block) if self.framing == "chunked" else block)
            if self.framing == "close" and isinstance(connection.sock, ssl.SSLSocket):
                connection.sock.unwrap()  # the end that TLS has for it
            if not self.whole or self.framing == "close":
                return
            if self.framing == "chunked":
                connection.send(b"0\r\n\r\n")


def response_to(client: RawClient, live: Forwarding, plan: Plan) -> RawResponse:
    """Read a response while another thread lets the backend go on, whenever it stalls and the response is relayed."""
    over = threading.Event()

    def let_go_on() -> None:
        streams = live.server.streams
        assert streams is not None
        for _ in plan.stalls:
            while not plan.stalled.wait(0.01):
                if over.is_set():
                    return
            plan.stalled.clear()
            eventually(lambda: len(streams) == 1 or over.is_set())
            plan.may_go_on.set()

    thread = threading.Thread(target=let_go_on)
    thread.start()
    try:
        return client.response()
    finally:
        over.set()
        thread.join(DEADLINE_SECONDS)


@pytest.mark.parametrize("backend_speaks_tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("client_speaks_tls", [False, True], ids=["plain client", "TLS client"])
@pytest.mark.parametrize("seed", range(8))
def test_relayed_response_is_what_a_direct_client_gets(
    seed: int, client_speaks_tls: bool, backend_speaks_tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan.by_chance(100 * backend_speaks_tls + 10 * client_speaks_tls + seed)
    plan.direct.set()
    with ScriptedBackend(plan) as backend, RawClient(backend.url) as client:
        client.send(GET)
        direct = client.response()
    assert (direct.body, direct.complete) == (plan.body, plan.whole)
    plan.direct.clear()
    with ExitStack() as stack:
        if backend_speaks_tls:
            monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "ca.pem"))
            backend = stack.enter_context(ScriptedBackend(over_tls(plan)))
            live = stack.enter_context(forwarding(https(backend), **(TLS if client_speaks_tls else {})))
        else:
            backend = stack.enter_context(ScriptedBackend(plan))
            live = stack.enter_context(forwarding(backend, **(TLS if client_speaks_tls else {})))
        client = stack.enter_context((SecureClient if client_speaks_tls else RawClient)(live.url))
        client.send(GET)
        relayed = response_to(client, live, plan)
        assert (relayed.body, relayed.complete) == (direct.body, direct.complete)
        if plan.whole:
            assert client.get("/after").body == b"after", "the connection goes on"
        else:
            assert client.is_closed()
        relays(live, 0)
        eventually(lambda: live.in_flight == 0)


def test_connection_of_a_stream_needs_no_collector_when_it_is_over() -> None:
    def left() -> int:
        return sum(isinstance(each, Connection) for each in gc.get_objects())

    events = Events()
    events.go_on.set()
    with ScriptedBackend(events) as backend, forwarding(backend) as live:
        gc.collect()
        before = left()
        gc.disable()
        try:
            for stalls in (True, False, True):
                with RawClient(live.url) as client:
                    if stalls:
                        events.go_on.clear()
                    client.send(GET)
                    if stalls:
                        relays(live, 1)
                        events.go_on.set()
                    assert client.response().body == b"onetwo"
            eventually(lambda: left() <= before, "all are gone")
        finally:
            gc.enable()


def test_client_of_http_1_0_gets_the_end_with_the_connection() -> None:
    events = Events()
    with ScriptedBackend(events) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        client.until(b"one")
        relays(live, 1)
        events.go_on.set()
        assert client.rest() == b"two"
        assert not client.was_reset


def test_requests_sent_behind_a_stream_are_answered_after_it() -> None:
    events = Events()
    with ScriptedBackend(events) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(GET + b"GET /quick HTTP/1.1\r\nHost: x\r\n\r\n")
        client.until(b"one\r\n")
        relays(live, 1)
        client.send(b"GET /quick?2 HTTP/1.1\r\nHost: x\r\n\r\nGET /quick HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.is_silent()
        events.go_on.set()
        assert client.until(b"0\r\n\r\n") == b"3\r\ntwo\r\n0\r\n\r\n"
        assert client.response().body == b"quick"
        assert client.response().body == b"one" + b"two"
        assert client.response().body == b"quick"
        assert client.is_closed()


class Finishing:
    """Notes what an exchange was when it was finished."""

    def __init__(self) -> None:
        self.finished: list[tuple[int, str | None]] = []

    @hookimpl
    def rgate_middlewares(self, gateway: Gateway) -> Middleware:
        def wrap(app: Any, options: object) -> Any:
            def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
                Exchange.of(environ).on_finish(lambda e: self.finished.append((e.bytes_sent, e.error and e.error.reason)))
                inner: Iterable[bytes] = app(environ, start_response)
                return inner

            return call

        return Middleware("finishing", wrap, before="faults", modifies_request=False)


@pytest.mark.parametrize("length", [None, 6])
def test_exchange_of_a_stream_is_finished_when_its_client_has_the_last_byte(length: int | None) -> None:
    go_on = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(EVENT_STREAM + chunk(b"one") if length is None else b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none")
        passed(go_on)
        connection.send(chunk(b"two") + b"0\r\n\r\n" if length is None else b"two")

    finishing = Finishing()
    with (
        ScriptedBackend(script) as backend,
        forwarding(backend, plugins={"finishing": finishing}) as live,
        RawClient(live.url) as client,
    ):
        client.send(GET)
        client.until(b"one")
        relays(live, 1)
        assert finishing.finished == []
        go_on.set()
        client.until(b"0\r\n\r\n" if length is None else b"two")
        assert finishing.finished == [(6, None)]


def slow_client(url: str) -> RawClient:
    """One whose own buffer takes next to nothing."""
    client = RawClient.__new__(RawClient)
    client.unread = b""
    client.host = "x"
    client.sock = socket.socket()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.sock.settimeout(DEADLINE_SECONDS)
    parts = urlsplit(url)
    client.sock.connect((parts.hostname, parts.port))
    return client


def test_clients_that_do_not_read_hold_no_threads_and_get_all_of_it_later() -> None:
    with ScriptedBackend(http_response(LARGE)) as backend, forwarding(backend, **FEW_THREADS) as live, ExitStack() as stack:
        clients = [stack.enter_context(slow_client(live.url)) for _ in range(10)]
        for client in clients:
            client.send(GET)
        relays(live, 10)
        with RawClient(live.url) as other:
            assert len(other.get().body) == len(LARGE)
        assert live.server.threads <= 3
        assert clients[0].response().body == LARGE
        assert clients[0].get().body == LARGE


def test_clients_that_do_not_read_small_responses_hold_no_threads_either() -> None:
    body = b"x" * 60_000

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    with serving(app, **FEW_THREADS) as server, ExitStack() as stack:
        assert server.streams is not None
        clients = [stack.enter_context(slow_client(server.url)) for _ in range(10)]
        for client in clients:
            client.send(GET * 50)
        eventually(lambda: len(server.streams or ()) == 10)
        with RawClient(server.url) as other:
            assert other.get().body == body
        assert server.threads <= 3
        for _ in range(50):
            assert clients[0].response().body == body
        assert clients[0].is_silent()


def test_upgrade_behind_a_response_that_the_client_does_not_read_becomes_a_tunnel() -> None:
    def script(connection: ScriptedConnection) -> None:
        while (request := connection.read_request()) is not None:
            if " /upgrade " not in request.line:
                connection.send(http_response(LARGE))
                continue
            connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            while block := connection.read_some():
                connection.send(block)

    upgrade = (
        b"GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with ScriptedBackend(script) as backend, forwarding(backend) as live, slow_client(live.url) as client:
        client.send(GET + upgrade)
        relays(live, 1)
        assert client.response().body == LARGE
        assert client.response().status == 101
        client.send(b"hello")
        assert client.read(5) == b"hello"


def test_client_that_takes_nothing_is_cut_after_write_seconds() -> None:
    finishing = Finishing()
    with (
        ScriptedBackend(http_response(LARGE)) as backend,
        forwarding(backend, plugins={"finishing": finishing}, write_seconds=0.2) as live,
        slow_client(live.url) as client,
    ):
        client.send(GET)
        eventually(lambda: finishing.finished, "it is given up")
        relays(live, 0)
        assert not client.response().complete
        assert live.in_flight == live.upstream_connections == 0


def test_client_that_takes_a_little_now_and_then_is_not_cut() -> None:
    with (
        ScriptedBackend(http_response(LARGE)) as backend,
        forwarding(backend, write_seconds=0.5) as live,
        slow_client(live.url) as client,
    ):
        client.send(GET)
        relays(live, 1)
        assert client.response().body == LARGE


@pytest.mark.parametrize("begin", [EVENT_STREAM + chunk(b"one"), b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\none"])
def test_backend_that_is_silent_for_response_seconds_has_broken_off(begin: bytes) -> None:
    over = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(begin)
        if connection.wait_closed():
            over.set()

    finishing = Finishing()
    route = {"timeouts": {"read_seconds": 0.2}}
    with (
        ScriptedBackend(script) as backend,
        forwarding(backend, route=route, plugins={"finishing": finishing}) as live,
        RawClient(live.url) as client,
    ):
        faults: list[object] = []
        (endpoint,) = live.gateway.table.snapshot.endpoints["backend"]
        endpoint.state.on_failure = lambda exchange, error: faults.append(type(error).__name__)
        client.send(GET)
        response = client.response()
        assert (response.body, response.complete) == (b"one", False)
        passed(over, "the backend's connection is closed")
        assert finishing.finished == [(3, "truncated")]
        assert faults == ["UpstreamTruncated"]


@pytest.mark.parametrize("leave", [RawClient.close, RawClient.reset], ids=["close", "reset"])
def test_client_that_leaves_a_stream_ends_the_backends_connection(leave: Callable[[RawClient], None]) -> None:
    over = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(EVENT_STREAM + chunk(b"one"))
        if connection.wait_closed():
            over.set()

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(GET)
        client.until(b"one")
        relays(live, 1)
        leave(client)
        passed(over)
        relays(live, 0)
        eventually(lambda: live.in_flight == 0)
        eventually(lambda: not live.server.connections)


def test_stream_may_end_while_the_server_drains() -> None:
    events = Events()
    with ScriptedBackend(events) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(GET)
        client.until(b"one")
        relays(live, 1)
        live.server.stop()
        eventually(lambda: live.server.draining)
        events.go_on.set()
        assert client.until(b"0\r\n\r\n").endswith(b"two\r\n0\r\n\r\n")
        assert client.is_closed()


def test_stream_is_cut_at_the_end_of_drain_seconds() -> None:
    finishing, events = Finishing(), Events()
    with ScriptedBackend(events) as backend, RawClient.__new__(RawClient) as client:
        client.unread = b""
        with forwarding(backend, plugins={"finishing": finishing}, drain_seconds=0.1) as live:
            client.__init__(live.url)  # type: ignore[misc]
            client.send(GET)
            client.until(b"one\r\n")
            relays(live, 1)
        assert not client.rest().endswith(b"0\r\n\r\n"), "it looks whole"
        assert len(finishing.finished) == 1
        events.go_on.set()


def test_stream_is_under_way_until_it_is_over() -> None:
    events = Events()
    with ScriptedBackend(events) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(GET)
        client.until(b"one")
        relays(live, 1)
        server = live.server
        are_over = server.reconfigure(server.app, server.config, server.tls)
        assert not are_over()
        events.go_on.set()
        client.until(b"0\r\n\r\n")
        eventually(are_over)


class Wrapping:
    """A plugin that looks at every block."""

    @hookimpl
    def rgate_middlewares(self, gateway: Gateway) -> Middleware:
        def wrap(app: Any, options: object) -> Any:
            return lambda environ, start_response: map_body(app(environ, start_response), bytes.upper)

        return Middleware("wrapping", wrap, modifies_request=False)


def test_wrapped_stream_keeps_its_thread_and_counts_as_in_flight() -> None:
    events = Events()
    with (
        ScriptedBackend(events) as backend,
        forwarding(backend, plugins={"wrapping": Wrapping()}, **FEW_THREADS) as live,
        ExitStack() as stack,
    ):
        first = stack.enter_context(RawClient(live.url))
        first.send(GET)
        assert first.until(b"ONE").endswith(b"ONE")
        eventually(lambda: live.server.threads > 1, "a second thread, as the first one waits")
        relays(live, 0)
        events.go_on.set()
        assert first.until(b"0\r\n\r\n").endswith(b"TWO\r\n0\r\n\r\n")


def test_blocks_are_small_while_much_waits_for_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.serving.stream_relay.HELD_BYTES", 1)
    with ScriptedBackend(http_response(LARGE)) as backend, forwarding(backend) as live, ExitStack() as stack:
        streams = live.server.streams
        assert streams is not None
        assert streams.block_bytes == LARGE_BLOCK_BYTES
        first = stack.enter_context(slow_client(live.url))
        first.send(GET)
        eventually(lambda: streams.block_bytes == SMALL_BLOCK_BYTES, "something waits for a client")
        clients = [stack.enter_context(slow_client(live.url)) for _ in range(10)]
        for client in clients:
            client.send(GET)
        relays(live, 11)
        before = streams._held_bytes
        for client in [*clients, first]:
            assert client.response().body == LARGE
        assert before <= LARGE_BLOCK_BYTES + 10 * 65_536 + 11 * 100, "what came with the head, or a block each"
        eventually(lambda: streams._held_bytes == 0)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    eventually(lambda: not [t for t in threading.enumerate() if t.name == "rgate-streams"], "the thread of the streams ends")
