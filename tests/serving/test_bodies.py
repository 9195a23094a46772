"""Request bodies: strict, bounded, streamed where they are large, and never in the way of the next request."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from rgate import BodyTooLarge, ClientClosed, RequestError, RequestTimeout
from rgate.serving.connection import LINGER_BYTES, RECEIVE_BYTES
from rgate.serving.connection_state import State
from rgate.testing import make_gateway, running_gateway

from ..support.raw_client import RawClient
from ..support.serving import connection_of, echo, send_apart, serving
from ..support.waiting import eventually, passed

HEAD = b"POST /x HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
STREAMED = {"body_buffer_bytes": 0}
"""Nothing is collected: the app has the body from its first byte, as it has large ones otherwise."""


class Reading:
    """An app that reads its body as a test wants it, and keeps what came of it."""

    def __init__(self, read: Callable[[Any], bytes] = lambda stream: stream.read()) -> None:
        self.read = read
        self.bodies: list[bytes] = []
        self.errors: list[Exception] = []
        self.called = threading.Event()
        self.done = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.called.set()
        try:
            self.bodies.append(self.read(environ["wsgi.input"]))
        except Exception as error:
            self.errors.append(error)
            self.done.set()
            raise
        self.done.set()
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A limit that a memory bomb runs into before the machine does."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 512 * 1024 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def into_buffers(stream: Any) -> bytes:
    body, buffer = b"", bytearray(1_000)
    while size := stream.readinto(buffer):
        body += buffer[:size]
    return body


READS: dict[str, Callable[[Any], bytes]] = {
    "read()": lambda stream: stream.read(),
    "read(-1)": lambda stream: stream.read(-1),
    "read(None)": lambda stream: stream.read(None),
    "read(n)": lambda stream: b"".join(iter(lambda: stream.read(7), b"")),
    "read1()": lambda stream: b"".join(iter(stream.read1, b"")),
    "read1(n)": lambda stream: b"".join(iter(lambda: stream.read1(3), b"")),
    "readinto": lambda stream: into_buffers(stream),
}


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_body_can_be_read_in_every_way(read: Callable[[Any], bytes], framing: str) -> None:
    body = b"0123456789" * 20_000
    app = Reading(read)
    with serving(app) as server, RawClient(server.url) as client:
        if framing == "length":
            client.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body), body)
        else:
            client.send(CHUNKED, b"".join(b"%x\r\n%b\r\n" % (1_000, body[at : at + 1_000]) for at in range(0, len(body), 1_000)))
            client.send(b"0\r\n\r\n")
        assert client.response().body == b"ok"
        client.send(HEAD + b"Content-Length: 1\r\n\r\n!")
        assert client.response().body == b"ok"
    assert app.bodies == [body, b"!"]


def test_body_lines_can_be_read() -> None:
    lines: list[list[bytes]] = []

    def read(stream: Any) -> bytes:
        lines.append([stream.readline(), stream.readline(3), stream.readline(100), *stream.readlines(), stream.readline()])
        return b""

    with serving(Reading(read), **STREAMED) as server, RawClient(server.url) as client:
        send_apart(server, client, CHUNKED, b"5\r\none\nt\r\n", b"9\r\nwo\nthree\n\r\n", b"7\r\n\nfour\nf\r\n0\r\n\r\n")
        client.response()
    assert lines == [[b"one\n", b"two", b"\n", b"three\n", b"\n", b"four\n", b"f", b""]]


def test_body_streams_as_it_comes() -> None:
    first = threading.Event()
    seen: list[bytes] = []

    def read(stream: Any) -> bytes:
        seen.append(stream.read1(100))
        first.set()
        seen.append(stream.read1(100))
        return b""

    with serving(Reading(read), **STREAMED) as server, RawClient(server.url) as client:
        client.send(CHUNKED + b"2\r\nhe\r\n")
        passed(first)
        client.send(b"3\r\nllo\r\n0\r\n\r\n")
        client.response()
    assert seen == [b"he", b"llo"]


def test_body_small_that_is_pipelined_into_the_next_request_is_cut_right() -> None:
    with serving(echo) as server, RawClient(server.url) as client:
        send_apart(server, client, HEAD + b"Content-Length: 5\r\n\r\nhel", b"loGET /y HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.response().body == b"POST /x hello"
        assert client.response().body == b"GET /y "


BROKEN = {
    "bad size": b"g\r\n",
    "0x size": b"0x5\r\nhello\r\n0\r\n\r\n",
    "no CRLF after a chunk": b"5\r\nhelloX\r\n0\r\n\r\n",
    "bare LF": b"5\nhello\n0\n\n",
    "endless size line": b"0" * 10_000,
    "invalid trailer": b"0\r\nnothing\r\n\r\n",
}


@pytest.mark.parametrize("coded", BROKEN.values(), ids=BROKEN)
def test_body_broken_coding_is_an_error_and_ends_the_connection(coded: bytes) -> None:
    app = Reading()
    with serving(app, **STREAMED) as server, RawClient(server.url) as client:
        client.send(CHUNKED, coded + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.response().status in (200, 500), "refused by the server, or the app let the error out"
        assert client.is_closed()
    assert [type(error) for error in app.errors] in ([], [RequestError])
    assert app.bodies in ([], [b""]), "nothing of it is passed on"


@pytest.mark.parametrize("coded", BROKEN.values(), ids=BROKEN)
def test_body_broken_coding_is_400_and_no_app_is_asked(coded: bytes) -> None:
    with serving(make_gateway({})) as server, RawClient(server.url) as client:
        client.send(CHUNKED, coded + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
        response = client.response()
        assert (response.status, response.value("Connection")) == (400, "close")
        assert client.is_closed()


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("sent", [CHUNKED + b"40000000\r\nhello, world!!!!!", HEAD + b"Content-Length: 1073741824\r\n\r\nhello"])
def test_body_that_ends_early_is_an_error_and_costs_no_memory(sent: bytes) -> None:
    app = Reading()
    with serving(app, **STREAMED) as server, RawClient(server.url) as client:
        client.send(sent)
        passed(app.called)
        client.half_close()
        passed(app.done)
        assert client.response().status == 500
    assert [type(error) for error in app.errors] == [ClientClosed]


def test_body_cannot_be_read_any_further_after_an_error() -> None:
    def read(stream: Any) -> bytes:
        assert stream.read1() == b"a"
        for _ in range(2):
            with pytest.raises(RequestError):
                stream.read()
        return b""

    with serving(Reading(read), **STREAMED) as server, RawClient(server.url) as client:
        send_apart(server, client, CHUNKED + b"1\r\na\r\n", b"x\r\n")
        assert client.response().body == b"ok"
        assert client.is_closed()


def test_body_over_the_limit_is_refused_at_once() -> None:
    with serving(make_gateway({"server": {"max_body_bytes": 10}}), max_body_bytes=10) as server, RawClient(server.url) as client:
        client.send(HEAD + b"Content-Length: 11\r\n\r\n")
        response = client.response()
        assert response.status == 413
        assert b'"body_too_large"' in response.body
        assert client.is_closed()


def test_body_chunked_over_the_limit_is_refused_when_it_gets_there() -> None:
    app = Reading()
    with serving(app, max_body_bytes=10, **STREAMED) as server, RawClient(server.url) as client:
        send_apart(server, client, CHUNKED + b"a\r\n0123456789\r\n1\r\n", b"x\r\n0\r\n\r\n")
        client.response()
        assert client.is_closed()
    assert [type(error) for error in app.errors] == [BodyTooLarge]


def test_body_chunked_over_the_limit_is_413_while_it_is_collected() -> None:
    with serving(make_gateway({}), max_body_bytes=10) as server, RawClient(server.url) as client:
        send_apart(server, client, CHUNKED + b"a\r\n0123456789\r\n1\r\n", b"x\r\n")
        assert client.response().status == 413
        assert client.is_closed()


def test_body_that_stalls_is_an_error_after_body_seconds() -> None:
    app = Reading()
    with serving(app, body_seconds=0.05, **STREAMED) as server, RawClient(server.url) as client:
        client.send(CHUNKED + b"5\r\nhe")
        passed(app.done)
        assert client.response().status == 500
    assert [type(error) for error in app.errors] == [RequestTimeout]


def test_body_small_that_stalls_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.serving.server.BEAT_SECONDS", 0.02)
    with serving(make_gateway({}), body_seconds=0.05) as server, RawClient(server.url) as client:
        client.send(HEAD + b"Content-Length: 5\r\n\r\nhe")
        response = client.response()
        assert (response.status, response.value("Connection")) == (408, "close")
        assert client.is_closed()


# Bodies that the app does not read


def ignoring(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


def test_body_at_hand_that_is_not_read_does_not_become_the_next_request() -> None:
    with serving(ignoring) as server, RawClient(server.url) as client:
        smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        client.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(smuggled) + smuggled)
        assert client.response().body == b"ok"
        assert client.get("/next").body == b"ok"
        client.send(b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        client.response()
        assert client.is_closed(), "there was one response too many"


UNREAD = {
    "chunked, cut in a size line": CHUNKED + b"5",
    "chunked, cut in a chunk": CHUNKED + b"5\r\nhe",
    "chunked, nothing yet": CHUNKED,
    "large, cut": HEAD + b"Content-Length: 1000000\r\n\r\nhello",
    "large, nothing yet": HEAD + b"Content-Length: 1000000\r\n\r\n",
    "expecting": HEAD + b"Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n",
}


@pytest.mark.parametrize("sent", UNREAD.values(), ids=UNREAD)
def test_body_that_is_not_read_closes_the_connection_at_once(sent: bytes) -> None:
    with serving(ignoring, **STREAMED) as server, RawClient(server.url) as client:
        client.send(sent)
        response = client.response()
        assert (response.body, response.value("Connection")) == (b"ok", "close")
        assert client.is_closed()


def test_body_large_that_is_not_read_lets_the_client_send_it_and_read_the_response() -> None:
    with serving(ignoring) as server, RawClient(server.url) as client:
        client.send(HEAD + b"Content-Length: 1000000\r\n\r\n", b"x" * 1_000_000)
        assert client.response().body == b"ok"
        assert client.is_closed() and not client.was_reset


def test_body_very_large_that_is_not_read_is_taken_up_to_a_limit_and_the_response_is_there() -> None:
    with serving(ignoring) as server, RawClient(server.url) as client:
        client.send(HEAD + b"Content-Length: 99999999999\r\n\r\n", b"x" * 65_536)
        connection = connection_of(server, client)
        with suppress(ConnectionError):
            for _ in range(1_000):  # 64 MB
                client.send(b"x" * 65_536)
        assert client.response().body == b"ok"
        assert connection._discarded_bytes <= LINGER_BYTES + RECEIVE_BYTES


def test_body_of_a_client_that_lingers_for_ever_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.serving.server.BEAT_SECONDS", 0.02)
    monkeypatch.setattr("rgate.serving.connection.LINGER_SECONDS", 0.05)
    with serving(ignoring) as server, RawClient(server.url) as client:
        client.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n")
        client.response()
        assert client.is_closed()
        eventually(lambda: not server.connections, "the connection is given up")


def test_body_of_a_client_that_sends_for_ever_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.serving.server.BEAT_SECONDS", 0.02)
    monkeypatch.setattr("rgate.serving.connection.LINGER_SECONDS", 0.1)
    with serving(ignoring) as server, RawClient(server.url) as client:
        client.send(HEAD + b"Content-Length: 99999999999\r\n\r\n", b"x" * 65_536)
        client.response()

        def send_on() -> bool:
            try:
                client.send(b"x" * 65_536)
            except ConnectionError:
                return True
            return False

        eventually(send_on, "the connection is given up")


# Expect: 100-continue

EXPECTING = HEAD + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
EXPECTING_LARGE = HEAD + b"Expect: 100-continue\r\nContent-Length: 100000\r\n\r\n"


def test_expect_of_a_large_body_is_answered_when_the_app_reads() -> None:
    app = Reading()
    reading = threading.Event()

    def held(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        app.called.set()
        passed(reading)
        return app(environ, start_response)

    with serving(held) as server, RawClient(server.url) as client:
        client.send(EXPECTING_LARGE)
        passed(app.called)
        assert client.is_silent()
        reading.set()
        assert client.response().status == 100
        client.send(b"x" * 100_000)
        assert client.response().body == b"ok"
    assert app.bodies == [b"x" * 100_000]


def test_expect_of_a_small_body_is_answered_at_once() -> None:
    with serving(echo) as server, RawClient(server.url) as client:
        client.send(EXPECTING)
        interim = client.response()
        assert interim.head == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"hello")
        response = client.response()
        assert (response.body, response.value("Connection")) == (b"POST /x hello", None)
        client.send(EXPECTING)
        assert client.response().status == 100


def test_expect_is_not_answered_when_the_body_has_come_already() -> None:
    with serving(echo) as server, RawClient(server.url) as client:
        client.send(EXPECTING + b"hello")
        assert client.response().body == b"POST /x hello"
        send_apart(server, client, EXPECTING + b"he", b"llo")
        assert client.response().body == b"POST /x hello"


def test_expect_is_not_answered_when_the_app_refuses() -> None:
    with serving(ignoring) as server, RawClient(server.url) as client:
        client.send(EXPECTING_LARGE)
        assert client.response().status == 200
        assert client.is_closed()


def test_expect_is_answered_for_a_chunked_body_too() -> None:
    with serving(echo) as server, RawClient(server.url) as client:
        client.send(HEAD + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert client.response().status == 100
        client.send(b"5\r\nhello\r\n0\r\n\r\n")
        assert client.response().body == b"POST /x hello"


def test_expect_of_a_client_that_has_left_is_the_clients_error() -> None:
    app = Reading()
    reading = threading.Event()

    def held(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        passed(reading)
        return app(environ, start_response)

    with serving(held) as server, RawClient(server.url) as client:
        client.send(EXPECTING_LARGE)
        eventually(lambda: any(c.state is State.BUSY for c in server.connections))
        client.reset()
        reading.set()
        passed(app.done)
    assert [type(error) for error in app.errors] == [ClientClosed]


@contextmanager
def refusing_gateway() -> Iterator[Any]:
    with running_gateway({"server": {"max_body_bytes": 1_000}}) as gateway:
        yield gateway


def test_expect_of_too_large_a_body_is_413_without_a_continue() -> None:
    with refusing_gateway() as gateway, serving(gateway, max_body_bytes=1_000) as server, RawClient(server.url) as client:
        client.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 1001\r\n\r\n")
        assert client.response().status == 413
        assert client.is_closed()
