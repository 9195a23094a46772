"""WebSocket handshakes: which requests count as one, and how all others are served (RFC 6455 §4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from rgate import Gateway, Middleware, hookimpl
from rgate.testing import RawRequest, ScriptedBackend, ScriptedConnection, client, http_response

from ..support.raw_client import RawClient
from ..support.waiting import eventually
from .tunnelling import (
    ACCEPT,
    ASKING,
    HANDSHAKE,
    KEY,
    SWITCHED,
    Holding,
    echo,
    gone,
    in_flight,
    open_tunnel,
    request,
    switch,
    switching,
    tunnelling,
)

CONNECTION, UPGRADE, SECRET, VERSION = ASKING
OK = http_response(b"ok")


def assert_ordinary(asked: RawRequest) -> None:
    """Check that the request has reached the backend without an upgrade."""
    for name in ("Upgrade", "HTTP2-Settings", "Connection"):
        assert not asked.values(name), f"{name} was passed on: {asked.head!r}"


def test_handshake_is_rewritten_for_the_backend() -> None:
    with ScriptedBackend(switching(echo)) as backend, tunnelling(backend) as live, RawClient(live.url) as client:
        client.send(
            request("Upgrade: WebSocket", "connection: keep-alive, Upgrade", SECRET, VERSION, "Origin: http://a", "Cookie: a=1")
        )
        response = client.response()
        asked = backend.requests[0]
    assert asked.line == "GET /chat HTTP/1.1"
    for name, value in {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": KEY, "Origin": "http://a"}.items():
        assert asked.values(name) == [value]
    assert asked.values("X-Forwarded-For") == ["127.0.0.1"]
    assert (response.line, response.body) == ("HTTP/1.1 101 Switching Protocols", b"")
    for name, value in {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": ACCEPT}.items():
        assert response.value(name) == value
    assert not response.values("Content-Length") and not response.values("Transfer-Encoding")


def test_handshake_among_several_protocols_asks_for_websocket_only() -> None:
    with ScriptedBackend(switching(echo)) as backend, tunnelling(backend) as live, RawClient(live.url) as client:
        client.send(
            request("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMA", SECRET, VERSION, UPGRADE)
        )
        assert client.response().status == 101
        asked = backend.requests[0]
    assert asked.values("Upgrade") == ["websocket"] and asked.values("Connection") == ["Upgrade"]
    assert not asked.values("HTTP2-Settings")


NO_HANDSHAKES = {
    "h2c": request("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"),
    "h2c without its settings": request("Connection: Upgrade", "Upgrade: h2c"),
    "h2c with what WebSocket wants": request("Connection: Upgrade", "Upgrade: h2c", SECRET, VERSION),
    "settings alone": request("HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"),
    "TLS": request("Connection: Upgrade", "Upgrade: TLS/1.2, HTTP/1.1"),
    "another protocol": request("Connection: Upgrade", "Upgrade: websocket/13", SECRET, VERSION),
    "no Connection": request(UPGRADE, SECRET, VERSION),
    "Connection names something else": request("Connection: keep-alive", UPGRADE, SECRET, VERSION),
    "no Upgrade": request(CONNECTION, SECRET, VERSION),
    "no key": request(CONNECTION, UPGRADE, VERSION),
    "empty key": request(CONNECTION, UPGRADE, "Sec-WebSocket-Key:", VERSION),
    "two keys": request(*ASKING, SECRET),
    "key named by Connection": request("Connection: Upgrade, Sec-WebSocket-Key", UPGRADE, SECRET, VERSION),
    "no version": request(CONNECTION, UPGRADE, SECRET),
    "two versions": request(*ASKING, "Sec-WebSocket-Version: 8"),
    "POST": request(*ASKING, "Content-Length: 0", line="POST /chat HTTP/1.1"),
    "HEAD": request(*ASKING, line="HEAD /chat HTTP/1.1"),
    "body": request(*ASKING, "Content-Length: 5") + b"hello",
    "chunked body": request(*ASKING, "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.0": request(*ASKING, line="GET /chat HTTP/1.0"),
}


@pytest.mark.parametrize("head", NO_HANDSHAKES.values(), ids=NO_HANDSHAKES)
def test_request_that_is_not_a_handshake_is_forwarded_without_upgrade(head: bytes) -> None:
    with ScriptedBackend(OK) as backend, tunnelling(backend) as live, RawClient(live.url) as client:
        client.send(head)
        assert client.response("HEAD" if head.startswith(b"HEAD") else "GET").status == 200
        assert_ordinary(backend.requests[0])


OFF: dict[str, dict[str, Any]] = {
    "route": {"route": {"plugins": {"websocket": False}}},
    "everywhere": {"options": {"disable": ["websocket"]}},
}


@pytest.mark.parametrize("options", OFF.values(), ids=OFF)
def test_handshake_is_an_ordinary_request_where_the_plugin_is_off(options: dict[str, Any]) -> None:
    with ScriptedBackend(OK) as backend, tunnelling(backend, **options) as live, RawClient(live.url) as client:
        client.send(HANDSHAKE)
        assert client.response().body == b"ok"
        assert_ordinary(backend.requests[0])


def test_handshake_under_another_wsgi_server_is_an_ordinary_request() -> None:
    with ScriptedBackend(OK) as backend, tunnelling(backend) as live:
        headers = dict(line.split(": ") for line in ASKING)
        assert client(live.gateway).get("/chat", headers=headers).data == b"ok"
        assert_ordinary(backend.requests[0])


REFUSALS = {
    "200": http_response(b"hello"),
    "400": http_response(b"no", "400 Bad Request"),
    "403": http_response(b"not you", "403 Forbidden", [("X-Why", "because")]),
    "426": http_response(b"", "426 Upgrade Required", [("Connection", "Upgrade"), ("Upgrade", "websocket")]),
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_refused_handshake_leaves_both_connections_in_http(refusal: bytes) -> None:
    with ScriptedBackend(refusal) as backend, tunnelling(backend) as live, RawClient(live.url) as client:
        for _ in range(2):
            client.send(HANDSHAKE)
            response = client.response()
            assert response.status == int(refusal[9:12]) and response.complete
            assert not response.values("Upgrade")
        assert client.get("/other").status == response.status
        requests = backend.wait_for_requests(3)
        assert len(backend.connections) == 1, "the connection to the backend was given up"
    assert_ordinary(requests[2])


def test_request_behind_a_refused_handshake_is_read_as_a_request() -> None:
    hidden = b"GET /admin HTTP/1.1\r\nHost: example.org\r\nX-Forwarded-For: 10.0.0.1\r\nUpgrade: h2c\r\n\r\n"
    with ScriptedBackend(OK) as backend, tunnelling(backend) as live, RawClient(live.url) as client:
        client.send(HANDSHAKE + hidden)
        assert [client.response().status, client.response().status] == [200, 200]
        asked = backend.wait_for_requests(2)[1]
        assert asked.values("Via"), "it has slipped past the gateway"
        assert_ordinary(asked)


def test_frames_behind_a_refused_handshake_are_not_a_request() -> None:
    with ScriptedBackend(OK) as backend, tunnelling(backend) as live, RawClient(live.url) as client:
        client.send(HANDSHAKE + b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58")
        assert client.response().status == 200
        assert client.response().status == 400
        assert client.is_closed()
        assert len(backend.requests) == 1


FALSE_SWITCHES = {
    "no Upgrade": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
    "h2c": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "two": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n\r\n",
}


@pytest.mark.parametrize("answer", FALSE_SWITCHES.values(), ids=FALSE_SWITCHES)
def test_backend_that_switches_to_something_else_is_a_bad_gateway(answer: bytes) -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(answer + OK)
        assert connection.wait_closed(), "the connection is still in use"

    with ScriptedBackend(script) as backend, tunnelling(backend) as live, RawClient(live.url) as client:
        client.send(HANDSHAKE)
        response = client.response()
        assert (response.status, b'"bad_response"' in response.body) == (502, True)
        client.send(HANDSHAKE)
        assert client.response().status == 502, "the client's connection should stay in HTTP"


@pytest.mark.parametrize("head", [request(), NO_HANDSHAKES["h2c"], NO_HANDSHAKES["no key"], NO_HANDSHAKES["POST"]])
def test_backend_that_switches_unasked_is_a_bad_gateway(head: bytes) -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(SWITCHED + OK)
        assert connection.wait_closed(), "the connection is still in use"

    with ScriptedBackend(script) as backend, tunnelling(backend) as live, RawClient(live.url) as client:
        client.send(head)
        response = client.response()
        assert (response.status, response.values("Upgrade")) == (502, [])


def test_handshake_after_interim_responses_succeeds() -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + SWITCHED)
        echo(connection)

    with ScriptedBackend(script) as backend, tunnelling(backend) as live, open_tunnel(live) as client:
        client.send(b"hello")
        assert client.read(5) == b"hello"


def test_framing_fields_of_a_101_are_removed() -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(SWITCHED[:-2] + b"Content-Length: 3\r\nDate: Tue, 24 Nov 2026 10:00:00 GMT\r\n\r\nabc")
        echo(connection)

    with ScriptedBackend(script) as backend, tunnelling(backend) as live, RawClient(live.url) as client:
        response = switch(client)
        assert not response.values("Content-Length") and response.values("Date") == ["Tue, 24 Nov 2026 10:00:00 GMT"]
        assert client.read(3) == b"abc"


def test_handshake_is_found_at_every_split_and_nothing_after_it_is_lost() -> None:
    early = b"\x81\x85early"
    whole = HANDSHAKE + early
    received: list[bytes] = []
    answer = SWITCHED + b"and more"

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        number = connection.number % len(answer)
        connection.send(answer[:number])
        connection.send(answer[number:])
        received.append(connection.read(len(early)))

    with ScriptedBackend(script) as backend, tunnelling(backend) as live:
        for at in range(1, len(whole)):
            with RawClient(live.url) as client:
                client.send(whole[:at], whole[at:])
                assert client.response().status == 101
                assert client.rest() == b"and more", f"split at {at}"
        with RawClient(live.url) as client:
            client.send(*(whole[at : at + 1] for at in range(len(whole))))
            assert client.response().status == 101
            assert client.rest() == b"and more", "byte by byte"
    assert received == [early] * len(whole)


class Inside:
    """A plugin with one middleware in the route's chain."""

    def __init__(self, wrap: Any) -> None:
        self._wrap = wrap

    @hookimpl
    def rgate_middlewares(self, gateway: Gateway) -> Middleware:
        return Middleware("inside", lambda app, options: lambda e, s: self._wrap(app, e, s))


def with_a_header(app: Any, environ: Any, start_response: Any) -> Iterable[bytes]:
    def start(status: str, headers: Any, exc_info: Any = None) -> Any:
        return start_response(status, [*headers, ("X-Mine", "1"), ("Upgrade", "h2c"), ("Connection", "close")], exc_info)

    body: Iterable[bytes] = app(environ, start)
    return body


def with_a_body(app: Any, environ: Any, start_response: Any) -> Iterable[bytes]:
    return iter([*app(environ, start_response), b"a body that a 101 cannot have"])


def failing(app: Any, environ: Any, start_response: Any) -> Iterable[bytes]:
    app(environ, lambda *_: None)
    raise RuntimeError("after the backend has switched")


def answering_otherwise(app: Any, environ: Any, start_response: Any) -> Iterable[bytes]:
    app(environ, lambda *_: None)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"no"]


def breaking_the_head(app: Any, environ: Any, start_response: Any) -> Iterable[bytes]:
    body: Iterable[bytes] = app(environ, lambda status, headers: start_response(status, [*headers, ("X", "a\r\nb")]))
    return body


@pytest.mark.parametrize("wrap", [with_a_header, with_a_body])
def test_switch_passes_through_middleware(wrap: Any) -> None:
    plugins = {"inside": Inside(wrap)}
    with ScriptedBackend(switching(echo)) as backend, tunnelling(backend, plugins=plugins) as live, RawClient(live.url) as client:
        response = switch(client)
        assert response.values("X-Mine") == (["1"] if wrap is with_a_header else [])
        assert (response.values("Upgrade"), response.values("Connection")) == (["websocket"], ["Upgrade"])
        client.send(b"hello")
        assert client.read(5) == b"hello"


@pytest.mark.parametrize("wrap", [failing, answering_otherwise, breaking_the_head])
@pytest.mark.filterwarnings("ignore")
def test_switch_that_does_not_reach_the_client_ends_both_connections(wrap: Any) -> None:
    ended: list[bool] = []
    held = switching(lambda connection: ended.append(connection.wait_closed()))
    options = {"plugins": {"inside": Inside(wrap)}, "options": {"websocket": {"max_tunnels": 1}}}
    with ScriptedBackend(held) as backend, tunnelling(backend, **options) as live:
        for _ in range(2):
            with RawClient(live.url) as client:
                client.send(HANDSHAKE + b"\x81\x85early")
                assert client.response().status == (200 if wrap is answering_otherwise else 500), "and its place is free again"
                assert client.is_closed(), "what comes now is neither HTTP nor a tunnel"
        eventually(lambda: ended == [True, True], "the backend's connections are closed")
        gone(live)


def test_handshakes_leave_no_trace_in_the_memory_of_heads() -> None:
    """Each has a key of its own: a thousand clients that come back at once would drive out what does come again."""
    with ScriptedBackend(switching(echo)) as backend, tunnelling(backend) as live, RawClient(live.url) as client:
        remembered = len(live.server.settings.request_parser.head_cache)
        switch(client)
        with RawClient(live.url) as another:
            switch(another)
        assert len(live.server.settings.request_parser.head_cache) == remembered


def test_client_that_leaves_before_the_switch_ends_the_attempt() -> None:
    holding = Holding()
    ended: list[bool] = []

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        holding.connections.append(connection)
        ended.append(connection.wait_closed())

    with ScriptedBackend(script) as backend, tunnelling(backend) as live, RawClient(live.url) as client:
        client.send(HANDSHAKE)
        assert holding.connection
        client.close()
        eventually(lambda: ended == [True], "the backend's connection is closed")
        eventually(lambda: not in_flight(live), "the attempt is over")
