"""Connections to backends: reused, expired, found stale, given up."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from rgate.config import UpstreamTLS
from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.forwarding import Forwarding, forwarding
from ..support.raw_client import RawClient
from ..support.waiting import eventually, passed

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED_POST = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
SMALL_POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"


def resting(live: Forwarding, count: int) -> None:
    eventually(lambda: live.upstream_connections == count, f"{count} connections rest")


def test_connection_is_used_again() -> None:
    with ScriptedBackend() as backend, forwarding(backend) as live, RawClient(live.url) as client, RawClient(live.url) as other:
        for _ in range(3):
            assert client.get().body == b"ok"
            assert other.get().body == b"ok"
        client.send(SMALL_POST)
        assert client.response().body == b"ok"
        client.send(CHUNKED_POST + b"5\r\nhello\r\n0\r\n\r\n")
        assert client.response().body == b"ok"
        assert len(backend.connections) == 1
        assert live.in_flight == 0


NOT_REUSED: dict[str, bytes] = {
    "says close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "says close, chunked": b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "more than announced": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
    "more than the last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\npoison",
    "body with 204": b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nno",
    "body with 304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nno",
}


@pytest.mark.parametrize("response", NOT_REUSED.values(), ids=NOT_REUSED)
def test_connection_is_not_used_again_after_such_a_response(response: bytes) -> None:
    def script(connection: ScriptedConnection) -> None:
        while connection.read_request() is not None:
            connection.send(response if connection.number == 0 else http_response(b"clean"))

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get().body in (b"ok", b"")
        assert client.get().body == b"clean"
        assert len(backend.connections) == 2


def test_connection_is_not_used_again_after_a_body_for_head() -> None:
    def script(connection: ScriptedConnection) -> None:
        while connection.read_request() is not None:
            connection.send(http_response(b"poison" if connection.number == 0 else b"clean"))

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get(method="HEAD").value("Content-Length") == "6"
        assert client.get().body == b"clean"


ANNOUNCED: dict[str, tuple[str, bytes]] = {
    "HEAD, length": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"),
    "HEAD, coding": ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "204, length": ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n"),
    "204, coding": ("GET", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "304, length": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n"),
}


@pytest.mark.parametrize(("method", "response"), ANNOUNCED.values(), ids=ANNOUNCED)
def test_connection_is_not_used_again_after_a_body_was_announced_where_there_is_none(method: str, response: bytes) -> None:
    """A backend that announces a body may send it a moment later: then it would be taken for the response to the next request."""
    asked = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        while connection.read_request() is not None:
            if connection.number:
                connection.send(http_response(b"clean"))
                continue
            connection.send(response)
            passed(asked)
            connection.send(http_response(b"poison"))

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.get(method=method)
        client.send(GET)
        response = client.response().body
        asked.set()
        assert response == b"clean"


@pytest.mark.parametrize(
    ("method", "response"),
    [("HEAD", http_response()), ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"),
     ("GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n")],
)  # fmt: skip
def test_connection_is_used_again_when_no_body_was_announced(method: str, response: bytes) -> None:
    with ScriptedBackend(response) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        for _ in range(3):
            client.get(method=method)
        assert len(backend.connections) == 1


# A large body may not have been read by a backend that answers, keeps the connection, and then closes it all the same.

LARGE_POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 80000\r\n\r\n" + b"x" * 80_000


def test_connection_that_has_carried_a_large_body_carries_no_post_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without_looking(monkeypatch)  # as if it were closed just after

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(http_response(b"%d" % connection.number))

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        for number in range(20):
            client.send(LARGE_POST)
            response = client.response()
            assert (response.status, response.body) == (200, b"%d" % number)


@pytest.mark.parametrize("size", [80_000, 300_000], ids=["collected", "streamed"])
def test_connection_that_has_carried_a_large_body_is_closed(size: int) -> None:
    with ScriptedBackend() as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
        assert client.response().body == b"ok"
        assert client.get().body == b"ok"
        client.send(SMALL_POST)
        assert client.response().body == b"ok"
        assert len(backend.connections) == 2


STREAMED = [
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n",
]


@pytest.mark.parametrize("head", STREAMED)
def test_connection_is_not_used_again_after_a_streamed_response_that_says_so(head: bytes) -> None:
    upstream_body = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        while connection.read_request() is not None:
            if connection.number:
                connection.send(http_response(b"clean"))
                continue
            connection.send(head)
            passed(upstream_body)
            connection.send(b"ok")

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        head = client.until(b"\r\n\r\n")
        upstream_body.set()
        assert client.read(2) == b"ok"
        client.send(SMALL_POST)
        assert client.response().body == b"clean"


def test_connection_is_not_used_again_after_a_streamed_response_that_is_too_long() -> None:
    upstream_body = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        while connection.read_request() is not None:
            if connection.number:
                connection.send(http_response(b"clean"))
                continue
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
            passed(upstream_body)
            connection.send(b"ok" + http_response(b"poison"))

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(GET)
        client.until(b"\r\n\r\n")
        upstream_body.set()
        assert client.read(2) == b"ok"
        assert client.get().body == b"clean"
        assert len(backend.connections) == 2


def test_connection_that_sends_unasked_while_it_rests_is_given_up() -> None:
    unasked, sent = threading.Event(), threading.Event()

    def script(connection: ScriptedConnection) -> None:
        while connection.read_request() is not None:
            connection.send(http_response(b"clean"))
            if connection.number == 0:
                passed(unasked)
                connection.send(http_response(b"poison"))
                sent.set()

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get().body == b"clean"
        resting(live, 1)
        unasked.set()
        passed(sent)
        eventually(lambda: next(iter(live.gateway.runtime.upstreams._upstreams.values())).pool.idle[0].has_input())
        assert client.get().body == b"clean"
        assert len(backend.connections) == 2


def test_connection_rests_no_longer_than_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedBackend() as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get().body == b"ok"
        resting(live, 1)
        monkeypatch.setattr("rgate.forwarding.upstream.MAX_IDLE_SECONDS", 0.0)
        assert client.get().body == b"ok"
        assert len(backend.connections) == 2
        eventually(lambda: backend.connections[0].sock.fileno() < 0, "the backend sees the end of the connection")


def test_connections_of_an_endpoint_that_is_gone_are_closed_and_it_may_come_back() -> None:
    with ScriptedBackend() as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get().body == b"ok"
        resting(live, 1)
        live.gateway.runtime.upstreams.prune(())
        eventually(lambda: backend.connections[0].sock.fileno() < 0, "the backend sees the end of the connection")
        (endpoint,) = live.gateway.table.snapshot.endpoints["backend"]
        endpoint.state.upstream = None  # as a new endpoint of that address has it
        for _ in range(3):
            assert client.get().body == b"ok"
        assert len(backend.connections) == 2, "connections are reused after the endpoint is back"


def test_connections_of_two_base_paths_are_those_of_one_address() -> None:
    with ScriptedBackend() as backend, forwarding(f"{backend.url}/a", f"{backend.url}/b") as live, RawClient(live.url) as client:
        for _ in range(10):
            assert client.get().body == b"ok"
        assert len(backend.connections) == 1
        first, _ = live.gateway.table.snapshot.endpoints["backend"]
        live.gateway.runtime.upstreams.prune({(first.address, UpstreamTLS())})
        for _ in range(10):
            assert client.get().body == b"ok"
        assert len(backend.connections) <= 2, "the pool is still that of the endpoint that stays"


# Stale connections


def closes_behind_its_answer(backend_closed: threading.Event, answered: int = 1) -> Callable[[ScriptedConnection], None]:
    """A script whose first connection is closed by the backend while it rests."""

    def script(connection: ScriptedConnection) -> None:
        for _ in range(answered if connection.number == 0 else 100):
            if connection.read_request() is None:
                return
            connection.send(http_response(b"%d" % connection.number))
        connection.close()
        backend_closed.set()

    return script


@pytest.mark.parametrize("request_", [GET, SMALL_POST, CHUNKED_POST + b"5\r\nhello\r\n0\r\n\r\n"])
def test_stale_connection_closed_while_it_rested_is_nobodys_problem(request_: bytes) -> None:
    closed = threading.Event()
    with ScriptedBackend(closes_behind_its_answer(closed)) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get().body == b"0"
        passed(closed)
        resting(live, 1)
        client.send(request_)
        assert client.response().body == b"1"
        assert len(backend.requests) == 2


def without_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the backend closed its connections just after they had been looked at."""
    monkeypatch.setattr("rgate.forwarding.connection.UpstreamConnection.has_input", lambda connection: False)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_stale_connection_found_late_is_replaced_for_what_can_be_repeated(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    without_looking(monkeypatch)
    closed = threading.Event()
    with ScriptedBackend(closes_behind_its_answer(closed)) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get().body == b"0"
        passed(closed)
        resting(live, 1)
        assert client.get(method=method).value("Content-Length") == "1"
        assert [request.line for request in backend.requests] == ["GET / HTTP/1.1", f"{method} / HTTP/1.1"]


@pytest.mark.parametrize(
    "request_",
    [
        SMALL_POST,
        CHUNKED_POST + b"5\r\nhello\r\n0\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000,
        b"PATCH / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_stale_connection_found_late_is_502_for_what_cannot_be_repeated(monkeypatch: pytest.MonkeyPatch, request_: bytes) -> None:
    without_looking(monkeypatch)
    closed = threading.Event()
    with ScriptedBackend(closes_behind_its_answer(closed)) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get().body == b"0"
        passed(closed)
        resting(live, 1)
        client.send(request_)
        response = client.response()
        assert (response.status, b'"closed"' in response.body) == (502, True)
        assert len(backend.requests) == 1, "it must not be sent twice"


TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 4\r\n\r\nlate"


@pytest.mark.parametrize(
    ("request_", "answer"), [(GET, (200, b"1")), (SMALL_POST, (502, b"closed")), (GET.replace(b"GET", b"PUT"), (200, b"1"))]
)
def test_stale_connection_that_ends_with_an_unasked_408_is_one_that_was_closed(
    request_: bytes, answer: tuple[int, bytes]
) -> None:
    """Some servers say so when they close a connection that has rested too long; it is not the answer to what comes then."""

    def script(connection: ScriptedConnection) -> None:
        for _ in range(1 if connection.number == 0 else 100):
            if connection.read_request() is None:
                return
            connection.send(http_response(b"%d" % connection.number))
        connection.read_head()
        connection.send(TOO_LATE)

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get().body == b"0"
        client.send(request_)
        response = client.response()
        assert (response.status, answer[1] in response.body) == (answer[0], True)


def test_stale_connection_is_none_when_its_408_is_an_answer() -> None:
    keeps = TOO_LATE.replace(b"Connection: close\r\n", b"")

    def script(connection: ScriptedConnection) -> None:
        for answer in (keeps, keeps, TOO_LATE) if connection.number == 0 else (TOO_LATE,):
            connection.read_request()
            connection.send(answer)

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        for _ in range(3):  # the last of them comes again on a connection that is new
            assert client.get().status == 408
        assert [len(backend.connections), len(backend.requests)] == [2, 4]


def test_stale_connection_is_replaced_once_only(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A request that makes a backend close its connections must not be sent for ever."""
    without_looking(monkeypatch)
    received: list[int] = []

    def script(connection: ScriptedConnection) -> None:
        for _ in range(2):
            if connection.read_request() is None:
                return
            received.append(connection.number)
            if len(received) > 1:
                return
            connection.send(http_response(b"ok"))

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get().body == b"ok"
        resting(live, 1)
        assert client.get().status == 502
        assert received == [0, 0, 1]
        eventually(lambda: "closed before a response" in caplog.text)
        assert "closed: closed" not in caplog.text, "the reason is said once"


def test_fresh_connection_closed_before_a_response_is_502_and_not_tried_again() -> None:
    with ScriptedBackend(lambda connection: connection.read_request()) as backend:
        with forwarding(backend) as live, RawClient(live.url) as client:
            response = client.get()
            assert (response.status, b'"closed"' in response.body) == (502, True)
        assert len(backend.requests) == 1
