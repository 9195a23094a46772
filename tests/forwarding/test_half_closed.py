"""Clients that end their sending side, and wait for the answer; and those that seem to."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from rgate import Exchange
from rgate.plugins.access_log import _GET, Record, sent
from rgate.plugins.stats.aggregator import CLIENT_CLOSED, Aggregator
from rgate.serving.server import Server
from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.forwarding import Forwarding, forwarding
from ..support.raw_client import RawClient
from ..support.serving import serving
from ..support.tls_client import SHOP, MemoryClient
from ..support.waiting import eventually, passed

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


class Slow:
    """A backend's script that answers `parts`, each when told to."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts
        self.may = threading.Semaphore(0)
        self.ended = threading.Event()

    def __call__(self, connection: ScriptedConnection) -> None:
        while connection.read_request() is not None:
            for part in self.parts:
                assert self.may.acquire(timeout=10)
                connection.send(part)
        self.ended.set()


@contextmanager
def overdue(live: Forwarding) -> Iterator[None]:
    """Inside, the server has been told of a client's end, and has acted on that."""
    server: Server = live.server
    eventually(lambda: any(connection.client_half_closed for connection in server.connections), "the end is seen")
    eventually(lambda: not server._half_closed, "the client is tested")
    yield


OK = http_response(b"ok")


def quick(connection: ScriptedConnection) -> None:
    while connection.read_request() is not None:
        connection.send(OK)


def silent(connection: ScriptedConnection) -> None:
    connection.read_request()
    connection.wait_closed()


CHUNKED = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"5\r\nworld\r\n", b"0\r\n\r\n")
LENGTH = (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", b"world")


@pytest.mark.parametrize("request_", [GET, HEAD % 5 + b"hello", HEAD % 200_000 + b"x" * 200_000], ids=["GET", "POST", "upload"])
def test_half_closed_client_has_its_answer_at_once(request_: bytes) -> None:
    with ScriptedBackend(quick) as backend, forwarding(backend) as live:
        for _ in range(20):
            with RawClient(live.url) as client:
                client.send(request_)
                client.half_close()
                first = client.sock.recv(65_536)
                assert first.startswith(b"HTTP/1.1 200 OK\r\n"), "in one piece, when it is quick"
                assert (first + client.rest()).endswith(b"\r\n\r\nok")


@pytest.mark.parametrize(
    ("parts", "body"), [([OK], b"ok"), (CHUNKED, b"helloworld"), (LENGTH, b"helloworld")], ids=["whole", "chunked", "length"]
)
def test_half_closed_client_has_an_answer_that_is_slow(parts: list[bytes], body: bytes) -> None:
    script = Slow(*parts)
    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(GET)
        backend.wait_for_requests(1)
        client.half_close()
        with overdue(live):
            script.may.release(len(parts))
            response = client.response()
        assert (response.status, response.body, response.complete) == (200, body, True)
        assert client.is_closed()


def test_client_that_half_closes_within_a_chunked_response_has_all_of_it() -> None:
    script = Slow(*CHUNKED)
    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(GET)
        script.may.release()
        assert client.until(b"hello\r\n").endswith(b"hello\r\n")
        client.half_close()
        with overdue(live):
            script.may.release(2)
            assert client.rest() == b"05\r\nworld\r\n0\r\n\r\n", "a leading zero is what it was tested with"


def test_requests_sent_at_once_before_the_end_are_all_answered() -> None:
    script = Slow(OK)
    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(GET * 3)
        client.half_close()
        for _ in range(3):
            with overdue(live):
                script.may.release()
                assert client.response().body == b"ok"
        assert client.is_closed()


def test_gateways_own_answer_to_a_half_closed_client_is_whole() -> None:
    script = Slow(b"nonsense\r\n\r\n")
    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(GET)
        backend.wait_for_requests(1)
        client.half_close()
        with overdue(live):
            script.may.release()
            response = client.response()
        assert (response.status, json.loads(response.body)["reason"]) == (502, "bad_response")


def test_body_that_comes_after_its_head_and_before_the_end_is_answered() -> None:
    with ScriptedBackend(quick) as backend, forwarding(backend) as live:
        for size in (5, 200_000):
            with RawClient(live.url) as client:
                client.send(HEAD % size)
                eventually(lambda: live.server.connections)
                client.send(b"x" * size)
                client.half_close()
                assert client.response().status == 200


def test_half_closed_tls_client_has_an_answer_that_is_slow() -> None:
    script = Slow(OK)
    tls = {"certificate": SHOP.certificate, "key": SHOP.key}
    with ScriptedBackend(script) as backend, forwarding(backend, tls=tls) as live, RawClient(live.url) as raw:
        client = MemoryClient()
        client.shake_hands_over(raw.sock)
        client.tls.write(GET)
        with suppress(ssl.SSLWantReadError):
            client.tls.unwrap()
        raw.sock.sendall(client.to_send())
        raw.sock.shutdown(socket.SHUT_WR)
        backend.wait_for_requests(1)
        with overdue(live):
            script.may.release()
            answer = b""
            while not answer.endswith(b"ok"):
                answer += client.read_over(raw.sock)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


def test_tls_client_that_leaves_ends_the_backends_work() -> None:
    tls = {"certificate": SHOP.certificate, "key": SHOP.key}
    with ScriptedBackend(silent) as backend, forwarding(backend, tls=tls) as live, RawClient(live.url) as raw:
        client = MemoryClient()
        client.shake_hands_over(raw.sock)
        client.tls.write(GET)
        raw.sock.sendall(client.to_send())
        backend.wait_for_requests(1)
        raw.close()
        eventually(lambda: live.in_flight == 0)
        eventually(lambda: not live.server.connections)


# What becomes of it in the log and the counts


class Seen:
    """What access log and statistics have of the requests."""

    def __init__(self, live: Forwarding, app: Callable[..., object]) -> None:
        self.records: list[dict[str, object]] = []
        self.aggregator = Aggregator()
        live.server.app = self  # type: ignore[assignment]
        self._app = app

    def __call__(self, environ: dict[str, object], start_response: object) -> object:
        body = self._app(environ, start_response)
        self._sent = sent(environ)
        exchange: Exchange = environ["rgate.exchange"]  # type: ignore[assignment]
        if exchange.finished:
            self._note(exchange)
        else:
            exchange.on_finish(self._note)
        return body

    def _note(self, exchange: Exchange) -> None:
        fields = ("status", "reason", "bytes", "duration_ms")
        values = {name: _GET[name](Record(0.0, exchange, self._sent)) for name in fields}
        self.records.append(json.loads(json.dumps(values)))
        self.aggregator.record(exchange)

    @property
    def counted(self) -> list[int]:
        self.aggregator.aggregate()
        return [counted.key.status for counted in self.aggregator.batch()]


@pytest.mark.parametrize("leave", [RawClient.close, RawClient.reset], ids=["close", "reset"])
def test_client_that_leaves_before_the_response_is_499(leave: Callable[[RawClient], None]) -> None:
    with ScriptedBackend(silent) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        seen = Seen(live, live.server.app)
        client.send(GET)
        backend.wait_for_requests(1)
        leave(client)
        (record,) = eventually(lambda: seen.records)
        assert (record["status"], record["reason"]) == (499, "client_closed")
        assert seen.counted == [CLIENT_CLOSED]


def test_download_that_the_client_breaks_off_has_its_status_and_the_reason() -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        with suppress(OSError):
            for _ in range(1_000):
                connection.send(b"x" * 100_000)

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        seen = Seen(live, live.server.app)
        client.send(GET)
        client.until(b"xxx")
        client.close()
        (record,) = eventually(lambda: seen.records)
        assert (record["status"], record["reason"]) == (200, "client_closed")
        assert seen.counted == [CLIENT_CLOSED]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHos",
        HEAD % 100 + b"hello",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    ],
    ids=["head", "small body", "chunked"],
)
def test_request_that_ends_within_itself_is_told_400_and_logged_as_client_closed(sent: bytes) -> None:
    with ScriptedBackend(silent) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        seen = Seen(live, live.server.app)
        client.send(sent)
        client.half_close()
        response = client.response()
        assert (response.status, json.loads(response.body)["reason"]) == (400, "client_closed")
        (record,) = eventually(lambda: seen.records)
        assert (record["status"], record["reason"]) == (400, "client_closed")
        assert seen.counted == [CLIENT_CLOSED]
    assert not [request for request in backend.requests if request.body.endswith(b"0\r\n\r\n")]


def test_client_that_leaves_is_not_the_endpoints_fault() -> None:
    with ScriptedBackend(silent) as backend, forwarding(backend) as live:
        for number in range(8):
            with RawClient(live.url) as client:
                client.send(GET)
                backend.wait_for_requests(number + 1)
        eventually(lambda: live.in_flight == 0)
        assert not live.gateway.table.snapshot.excluded


def test_interim_response_after_a_test_is_whole() -> None:
    """What has been begun early is what every head begins with, that of an interim response, too."""
    asked = threading.Event()

    def app(environ: dict[str, object], start_response: Callable[..., object]) -> list[bytes]:
        connection: Any = environ["rgate.connection"]
        connection.response.test_client()
        connection.response.send_continue()
        connection.response.test_client()
        asked.set()
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    with serving(app) as server, RawClient(server.url) as client:  # type: ignore[arg-type]
        client.send(GET)
        passed(asked)
        assert client.response().line == "HTTP/1.1 100 Continue"
        assert client.response().body == b"ok"
