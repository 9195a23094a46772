"""Clients that are slow in every way, a thousand of each kind, leave all others unharmed (what slowhttptest -H, -B, -X does)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import pytest

from rgate.serving.connection import PIPELINED_AT_ONCE
from rgate.serving.server import Server

from ..support.raw_client import RawClient
from ..support.serving import connection_of, serving
from ..support.waiting import eventually, passed

THOUSAND = 1_000
LARGE = b"x" * 16_000_000  # more than the buffers of both sockets take


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Reads its body to the end, and answers /large and /pieces with a large one, /medium with one that is less than a block."""
    stream = environ["wsgi.input"]
    while stream.read(65_536):
        pass
    path = environ["PATH_INFO"]
    body = {"/large": LARGE, "/pieces": LARGE, "/medium": LARGE[:60_000]}.get(path, b"ok")
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return iter((body,)) if path == "/pieces" else [body]


@contextmanager
def slow(server: Server, count: int, request: bytes, staying: int | None = None) -> Iterator[list[socket.socket]]:
    """So many connections that send this and then nothing more, and read nothing; `staying` of them are never cut."""
    parts = urlsplit(server.url)
    with ExitStack() as stack:
        sockets = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            sock.connect((parts.hostname, parts.port))
            if request:
                sock.sendall(request)
            sockets.append(sock)
        eventually(lambda: len(server.connections) >= (count if staying is None else staying), "all are accepted", 30)
        yield sockets


SENT_BY_THREAD = "slow readers of what a thread sends"

KINDS: dict[str, bytes] = {
    "idle": b"",
    "slow heads": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n",
    "slow small bodies": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nhello",
    "slow large bodies": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\nhello",
    "slow chunked bodies": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    SENT_BY_THREAD: b"GET /pieces HTTP/1.1\r\nHost: x\r\n\r\n",
    "slow readers": b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n",
    "slow readers of many responses": b"GET /medium HTTP/1.1\r\nHost: x\r\n\r\n" * 50,
}


@pytest.mark.parametrize("request_", KINDS.values(), ids=KINDS)
def test_slow_clients_by_the_thousand_leave_others_unharmed(request_: bytes) -> None:
    settings = {"threads": 4, "drain_seconds": 0.1, "max_slow_clients_per_client": None}  # all of them come from one address
    with serving(app, **settings) as server, slow(server, THOUSAND, request_):
        for _ in range(3):
            began = monotonic()
            with RawClient(server.url) as client:
                assert client.get("/").body == b"ok"
                client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
                assert client.response().body == b"ok"
            assert monotonic() - began < 5, "others have to wait"


def test_many_requests_sent_at_once_do_not_hold_up_others() -> None:
    """Some of one connection, then the others' turn: else whoever sends the most at once would be served first."""
    order: list[str] = []
    began, sent = threading.Event(), threading.Event()

    def noting(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        order.append(environ["PATH_INFO"])
        began.set()
        passed(sent)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    with serving(noting, threads=1, max_in_flight=1) as server, RawClient(server.url) as many, RawClient(server.url) as one:
        many.send(b"GET /many HTTP/1.1\r\nHost: x\r\n\r\n" * 3_000)
        passed(began)
        connection_of(server, one)
        one.send(b"GET /one HTTP/1.1\r\nHost: x\r\n\r\n")
        sent.set()
        assert one.response().body == b"ok"
        for _ in range(3_000):
            assert many.response().body == b"ok"
        assert many.is_silent()
        assert many.get("/after").body == b"ok"
    assert order.index("/one") <= 3 * PIPELINED_AT_ONCE, "it came after all the others"
    assert order.count("/many") == 3_000


def test_many_requests_sent_at_once_and_then_the_end_are_all_answered() -> None:
    with serving(app) as server, RawClient(server.url) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        client.half_close()
        assert client.rest().count(b"HTTP/1.1 200 OK") == 100
        eventually(lambda: not server.connections, "the connection is closed")


@pytest.mark.parametrize("kind", ["slow large bodies", SENT_BY_THREAD])
def test_slow_clients_over_their_number_are_cut_the_slowest_first(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("rgate.serving.slow_clients.GRACE_SECONDS", 0.3)
    limits = {"threads": 1, "max_in_flight": 1, "max_slow_clients": 3}
    with serving(app, drain_seconds=0.1, **limits) as server, slow(server, 9, KINDS[kind], staying=3):
        with RawClient(server.url) as client:
            assert client.get("/").body == b"ok", "nobody is served while slow clients hold every thread"
        assert server.threads <= 2 * 1 + 1 + 3


def test_slow_clients_are_not_cut_while_there_are_threads() -> None:
    limits = {"threads": 1, "max_in_flight": 1, "max_slow_clients": 8}
    with (
        serving(app, drain_seconds=0.1, **limits) as server,
        slow(server, 8, KINDS[SENT_BY_THREAD]) as sockets,
    ):
        with RawClient(server.url) as client:
            assert client.get("/").body == b"ok"
        for sock in sockets:
            sock.settimeout(10)
            size = 0
            while size < len(LARGE):
                block = sock.recv(262_144)
                assert block, f"cut after {size} bytes"
                size += len(block)


def test_slow_clients_of_one_address_have_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.serving.slow_clients.GRACE_SECONDS", 0.3)
    limits = {"threads": 1, "max_in_flight": 1, "max_slow_clients": 100, "max_slow_clients_per_client": 3}
    with serving(app, drain_seconds=0.1, **limits) as server, slow(server, 9, KINDS["slow readers"], staying=3):
        with RawClient(server.url) as client:
            assert client.get("/").body == b"ok", "nobody is served while slow clients hold every thread"
        assert server.threads <= 2 * 1 + 1 + 3


def test_slow_clients_of_a_trusted_proxy_have_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.serving.slow_clients.GRACE_SECONDS", 0.0)
    limits = {"threads": 1, "max_in_flight": 1, "max_slow_clients": 100, "max_slow_clients_per_client": 3}
    trusted = {"trusted_proxies": ["127.0.0.1"]}
    with serving(app, drain_seconds=0.1, **limits, **trusted) as server, slow(server, 9, KINDS["slow readers"]):
        with RawClient(server.url) as client:
            assert client.get("/").body == b"ok"
        assert len(server.connections) >= 9


def test_slow_clients_that_move_the_least_are_cut_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then is no progress: whoever sends one is cut before whoever sends some kilobytes."""
    monkeypatch.setattr("rgate.serving.slow_clients.GRACE_SECONDS", 0.5)
    limits = {"threads": 1, "max_in_flight": 1, "max_slow_clients": 4, "max_spooled_body_bytes": 0}
    size = 8_000_000
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"x" * 70_000
    with serving(app, drain_seconds=0.1, **limits) as server, ExitStack() as stack:
        honest = [stack.enter_context(RawClient(server.url)) for _ in range(2)]
        trickling = [stack.enter_context(RawClient(server.url)) for _ in range(12)]
        for client in (*honest, *trickling):
            client.send(head)
        sent = dict.fromkeys(honest, 70_000)
        pause = threading.Event()

        def is_cut() -> bool:
            pause.wait(0.01)
            for client in honest:
                if sent[client] < size - 8_000:
                    client.send(b"x" * 8_000)
                    sent[client] += 8_000
            for client in list(trickling):
                try:
                    client.send(b"x")
                except ConnectionError:
                    trickling.remove(client)
            return len(trickling) <= 6

        eventually(is_cut, "those that trickle are cut")
        for client in honest:
            client.send(b"x" * (size - sent[client]))
            assert client.response().body == b"ok"


def test_slow_clients_are_cut_when_there_are_no_more_threads_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a limit of processes or of address space has it, long before max_slow_clients is reached."""
    monkeypatch.setattr("rgate.serving.slow_clients.GRACE_SECONDS", 0.3)
    start = threading.Thread.start

    def start_few(thread: threading.Thread) -> None:
        if server.threads > 6:
            raise RuntimeError("can't start new thread")
        start(thread)

    limits = {"threads": 1, "max_in_flight": 1, "max_slow_clients": 1_000}
    with serving(app, drain_seconds=0.1, **limits) as server:
        monkeypatch.setattr("rgate.serving.thread_pool._PoolThread.start", start_few)
        with slow(server, 12, KINDS["slow readers"], staying=3), RawClient(server.url) as client:
            assert client.get("/").body == b"ok", "nobody is served while slow clients hold every thread"
            assert server.threads <= 6
