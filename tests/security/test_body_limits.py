"""How large a request body may be: for the server, and for a route. More is 413, and never reaches the backend as a whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from rgate import BodyTooLarge
from rgate.forwarding.body_limit import BodyLimit
from rgate.testing import ScriptedBackend, ScriptedConnection, client, http_response, make_environ, make_exchange

from ..support.forwarding import Forwarding, forwarding
from ..support.raw_client import RawClient
from ..support.waiting import eventually, passed

LIMIT = 1_000


@pytest.fixture(scope="module")
def backend() -> Iterator[ScriptedBackend]:
    with ScriptedBackend(http_response(b"ok")) as running:
        yield running


@pytest.fixture(scope="module")
def live(backend: ScriptedBackend) -> Iterator[Forwarding]:
    with forwarding(backend, route={"max_body_bytes": LIMIT}) as running:
        yield running


def chunked(size: int, chunk: int = 100) -> bytes:
    return (
        b"".join(b"%x\r\n%b\r\n" % (min(chunk, left), b"x" * min(chunk, left)) for left in range(size, 0, -chunk)) + b"0\r\n\r\n"
    )


@pytest.mark.parametrize(
    "body", [b"Content-Length: 1000\r\n\r\n" + b"x" * LIMIT, b"Transfer-Encoding: chunked\r\n\r\n" + chunked(LIMIT)]
)
def test_body_at_the_limit_of_its_route_passes(live: Forwarding, backend: ScriptedBackend, body: bytes) -> None:
    count = len(backend.requests)
    with RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\n" + body)
        assert client.response().body == b"ok"
        assert client.get("/").body == b"ok", "the connection is still good"
    assert len(backend.requests) == count + 2


@pytest.mark.parametrize("announced", [LIMIT + 1, 10**6, 10**15])
@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"], ids=["", "expect"])
def test_body_announced_over_the_limit_is_413_before_any_of_it_has_come(
    live: Forwarding, backend: ScriptedBackend, announced: int, expect: str
) -> None:
    count = len(backend.requests)
    with RawClient(live.url) as client:
        client.send(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {announced}\r\n{expect}\r\n".encode())
        response = client.response()
        assert (response.status, b'"body_too_large"' in response.body) == (413, True)
        assert response.value("Connection") == "close"
        assert client.is_closed()
    assert len(backend.requests) == count, "the backend has heard of it"


def test_body_over_the_limit_of_a_client_that_sends_all_the_same_is_413_that_it_can_read(live: Forwarding) -> None:
    with RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n")
        client.send(b"x" * 3_000_000)
        assert client.response().status == 413


def test_body_at_hand_over_the_limit_is_not_the_next_request(live: Forwarding, backend: ScriptedBackend) -> None:
    count = len(backend.requests)
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    with RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1155\r\n\r\n" + smuggled * 33)
        assert client.response().status == 413
        assert client.get("/after").body == b"ok"
    assert [request.line for request in backend.requests[count:]] == ["GET /after HTTP/1.1"]


def test_body_chunked_over_the_limit_is_413_and_never_complete_at_the_backend() -> None:
    got: list[bytes] = []
    over = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        try:
            while block := connection.read_some():
                got.append(block)
        except ConnectionResetError:
            over.set()

    streamed = {"body_buffer_bytes": 100}
    with ScriptedBackend(script) as backend, forwarding(backend, route={"max_body_bytes": LIMIT}, **streamed) as live:
        with RawClient(live.url) as client:
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", chunked(LIMIT)[:-5])
            eventually(lambda: backend.connections, "the body streams")
            client.send(b"1\r\nx\r\n0\r\n\r\n")
            response = client.response()
            assert (response.status, response.value("Connection")) == (413, "close")
        passed(over, "the connection to the backend ends")
    assert b"0\r\n\r\n" not in b"".join(got), "a body that was cut looks complete to the backend"


def test_body_chunked_over_the_limit_that_is_small_is_413_and_not_heard_of(live: Forwarding, backend: ScriptedBackend) -> None:
    count = len(backend.requests)
    with RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", chunked(LIMIT + 1))
        assert client.response().status == 413
        assert client.get("/after").body == b"ok"
    assert len(backend.requests) == count + 1


def test_body_limit_of_the_server_holds_for_every_route(backend: ScriptedBackend) -> None:
    with forwarding(backend, max_body_bytes=10) as live, RawClient(live.url) as client:
        client.send(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n")
        assert client.response().status == 413


def test_body_limit_under_another_wsgi_server_holds_for_chunked_too() -> None:
    reads: list[bytes] = []

    def app(environ, start_response):  # type: ignore[no-untyped-def]
        reads.append(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return [b"ok"]

    limited = BodyLimit(app, 5)
    for body, allowed in ((b"hello", True), (b"hello!", False)):
        environ = make_environ("/", method="POST", data=body)
        del environ["CONTENT_LENGTH"]
        environ["HTTP_TRANSFER_ENCODING"] = "chunked"
        if allowed:
            assert list(limited(environ, lambda *_: lambda _: None)) == [b"ok"]
            assert reads == [body]
        else:
            with pytest.raises(BodyTooLarge):
                limited(environ, lambda *_: lambda _: None)
    assert client(limited, make_exchange()).post("/", data=b"hello").data == b"ok"
    with pytest.raises(BodyTooLarge):
        client(limited, make_exchange()).post("/", data=b"hello!")
