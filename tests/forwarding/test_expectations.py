"""Expect: 100-continue (RFC 9110 §10.1.1): the backend decides whether a large body is sent at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from rgate import Middleware, hookimpl
from rgate.forwarding import upload as forwarding_body
from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.forwarding import forwarding
from ..support.raw_client import RawClient
from ..support.waiting import eventually, passed

SIZE = 100_000
BODY = b"x" * SIZE
EXPECTS = b"PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % SIZE
EXPECTS_CHUNKED = b"PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED_BODY = b"186a0\r\n" + BODY + b"\r\n0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.fixture
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, the time limit is not what lets the body go."""
    monkeypatch.setattr(forwarding_body, "CONTINUE_SECONDS", 3600.0)


def asking(connection: ScriptedConnection) -> None:
    """Asks for the body, and answers with its size."""
    head = connection.read_head()
    assert b"\r\nExpect: 100-continue\r\n" in head
    connection.send(CONTINUE)
    size = SIZE if b"Content-Length" in head else len(CHUNKED_BODY)
    connection.send(http_response(b"%d" % len(connection.read(size))))


@pytest.mark.usefixtures("no_limit")
@pytest.mark.parametrize(("head", "body"), [(EXPECTS, BODY), (EXPECTS_CHUNKED, CHUNKED_BODY)], ids=["length", "chunked"])
def test_expected_body_is_asked_for_when_the_backend_asks(head: bytes, body: bytes) -> None:
    with ScriptedBackend(asking) as backend, forwarding(backend, body_buffer_bytes=0) as live, RawClient(live.url) as client:
        client.send(head)
        assert client.response().head == CONTINUE
        client.send(body)
        response = client.response()
        assert (response.status, response.value("Connection")) == (200, None)


ANSWERS = {
    "401": http_response(b"who?", "401 Unauthorized", [("WWW-Authenticate", "Basic")]),
    "417": http_response(b"who?", "417 Expectation Failed"),
    "200": http_response(b"who?"),
    "200 chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwho?\r\n0\r\n\r\n",
}


@pytest.mark.usefixtures("no_limit")
@pytest.mark.parametrize("late", [False, True], ids=["whole", "in two parts"])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_expected_body_is_not_sent_when_the_backend_answers_without_it(answer: bytes, late: bool) -> None:
    more = threading.Event()
    received: list[bytes] = []

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        cut = answer.index(b"\r\n\r\n") + 4 if late else len(answer)
        connection.send(answer[:cut])
        if late:
            passed(more)
        connection.send(answer[cut:])
        received.append(b"" if connection.wait_closed() else b"a body")

    with ScriptedBackend(script) as backend, forwarding(backend, body_buffer_bytes=0) as live, RawClient(live.url) as client:
        client.send(EXPECTS)
        more.set()
        response = client.response()
        assert (response.body, response.value("Connection")) == (b"who?", "close")
        assert client.is_closed(), "it cannot be known whether the body follows (RFC 9112 §9.3)"
        eventually(lambda: received == [b""], "the backend's connection is closed, without a byte of the body")
        assert live.upstream_connections == 0


@pytest.mark.usefixtures("no_limit")
def test_expected_body_that_comes_after_a_final_answer_is_read_to_no_effect() -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        connection.send(http_response(b"no", "413 Content Too Large"))
        connection.wait_closed()

    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    with ScriptedBackend(script) as backend, forwarding(backend, body_buffer_bytes=0) as live, RawClient(live.url) as client:
        client.send(EXPECTS)
        assert client.response().status == 413
        client.send(smuggled + b"x" * (SIZE - len(smuggled)) + smuggled)
        client.half_close()
        assert client.is_closed()
        assert len(backend.connections) == 1


@pytest.mark.usefixtures("no_limit")
def test_expected_body_waits_for_100_and_no_other_interim_response() -> None:
    hinted, asked = threading.Event(), threading.Event()
    sizes: list[int] = []

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        passed(hinted)
        connection.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.sock.recv(1)
        connection.sock.settimeout(10)
        connection.send(CONTINUE)
        sizes.append(len(connection.read(SIZE)))
        connection.send(http_response(b"ok"))
        passed(asked)

    with ScriptedBackend(script) as backend, forwarding(backend, body_buffer_bytes=0) as live, RawClient(live.url) as client:
        client.send(EXPECTS)
        assert client.response().status == 103, "who expects an interim response takes another, too"
        hinted.set()
        assert client.response().status == 100
        client.send(BODY)
        assert client.response().body == b"ok"
        assert sizes == [SIZE]
        asked.set()


@pytest.mark.parametrize("late_continue", [False, True])
def test_expected_body_is_asked_for_when_the_backend_says_nothing(monkeypatch: pytest.MonkeyPatch, late_continue: bool) -> None:
    monkeypatch.setattr(forwarding_body, "CONTINUE_SECONDS", 0.05)

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        block = connection.read(10)
        if late_continue:
            connection.send(CONTINUE)
        connection.send(http_response(b"%d" % len(block + connection.read(SIZE - 10))))
        connection.wait_closed()

    with ScriptedBackend(script) as backend, forwarding(backend, body_buffer_bytes=0) as live, RawClient(live.url) as client:
        client.send(EXPECTS)
        assert client.response().status == 100
        client.send(BODY)
        assert client.response().body == b"%d" % SIZE


@pytest.mark.usefixtures("no_limit")
def test_expected_body_that_comes_unasked_goes_on_unasked() -> None:
    """A client waits as long as it likes; curl for a second."""
    seen = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        seen.set()
        connection.send(http_response(b"%d" % len(connection.read(SIZE))))
        connection.wait_closed()

    with ScriptedBackend(script) as backend, forwarding(backend, body_buffer_bytes=0) as live, RawClient(live.url) as client:
        client.send(EXPECTS)
        passed(seen)
        client.send(BODY)
        response = client.response()
        assert (response if response.status == 200 else client.response()).body == b"%d" % SIZE


@pytest.mark.usefixtures("no_limit")
def test_expected_body_that_comes_with_its_head_is_no_longer_expected() -> None:
    def script(connection: ScriptedConnection) -> None:
        head = connection.read_head()
        connection.read(SIZE)
        connection.send(http_response(b"yes" if b"Expect" in head else b"no"))
        connection.wait_closed()

    with ScriptedBackend(script) as backend, forwarding(backend, body_buffer_bytes=0) as live, RawClient(live.url) as client:
        client.send(EXPECTS + BODY[:10])
        client.send(BODY[10:])
        assert client.response().body == b"no"


@pytest.mark.usefixtures("no_limit")
@pytest.mark.parametrize("leave", [RawClient.reset, RawClient.close])
def test_client_that_leaves_while_its_body_is_held_frees_the_backend(leave: Callable[[RawClient], None]) -> None:
    seen, closed = threading.Event(), threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        seen.set()
        if connection.wait_closed():
            closed.set()

    with ScriptedBackend(script) as backend, forwarding(backend, body_buffer_bytes=0) as live, RawClient(live.url) as client:
        client.send(EXPECTS)
        passed(seen)
        leave(client)
        passed(closed)
        eventually(lambda: live.in_flight == 0)


@pytest.mark.usefixtures("no_limit")
def test_backend_that_closes_while_the_body_is_held_is_502() -> None:
    script: Callable[[ScriptedConnection], object] = ScriptedConnection.read_head
    with ScriptedBackend(script) as backend, forwarding(backend, body_buffer_bytes=0) as live, RawClient(live.url) as client:
        client.send(EXPECTS)
        assert client.response().status == 502


class Reading:
    """A plugin that reads the body before the forwarder does."""

    @hookimpl
    def rgate_middlewares(self) -> Middleware:
        def wrap(app: Any, options: object) -> Any:
            def reading(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
                body = environ["wsgi.input"].read()
                start_response("200 OK", [("Content-Length", "6")])
                return [b"%d" % len(body)]

            return reading

        return Middleware("reading", wrap)


def test_expected_body_that_a_plugin_reads_is_asked_for() -> None:
    with (
        ScriptedBackend() as backend,
        forwarding(backend, plugins={"reading": Reading()}, body_buffer_bytes=0) as live,
        RawClient(live.url) as client,
    ):
        client.send(EXPECTS)
        assert client.response().status == 100
        client.send(BODY)
        assert client.response().body == b"%d" % SIZE
        assert not backend.connections
