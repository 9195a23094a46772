"""The response that a client gets, compared with the backend's."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable

import pytest

from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.forwarding import forwarding
from ..support.raw_client import RawClient, RawResponse
from ..support.waiting import passed


def sends(*blocks: bytes | threading.Event, close: bool = False) -> Callable[[ScriptedConnection], None]:
    """A script that answers every request with the same blocks, each sent on its own; at an Event it waits."""

    def script(connection: ScriptedConnection) -> None:
        while connection.read_request() is not None:
            for block in blocks:
                if isinstance(block, bytes):
                    connection.send(block)
                else:
                    passed(block)
            if close:
                return

    return script


def answer(*blocks: bytes, request: str = "GET / HTTP/1.1", close: bool = False) -> RawResponse:
    """The response that a client gets when the backend sends `blocks`."""
    with ScriptedBackend(sends(*blocks, close=close)) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(f"{request}\r\nHost: x\r\n\r\n".encode())
        return client.response(request.partition(" ")[0])


def headers_of(response: RawResponse) -> list[tuple[str, str]]:
    """The headers, without the Date that the gateway adds when the backend has none."""
    return [pair for pair in response.headers if pair[0] != "Date"]


def test_response_headers_are_passed_on_to_the_byte() -> None:
    sent = [
        ("Date", "Sun, 06 Nov 1994 08:49:37 GMT"), ("server", "mine/1"), ("Set-Cookie", "a=1; Path=/"), ("X", "caf\xe9 \xff"),
        ("set-cookie", "b=2, c"), ("X_Under", "1"), ("Content-Encoding", "br"), ("Empty", ""), ("Via", "1.1 other"),
    ]  # fmt: skip
    response = answer(http_response(b"ok", "299 Caf\xe9 Cr\xe8me", sent))
    assert response.line == "HTTP/1.1 299 Caf\xe9 Cr\xe8me"
    assert [pair for pair in response.headers if pair[0] != "Content-Length"] == sent
    assert response.body == b"ok"


def test_response_headers_of_this_hop_are_not_passed_on() -> None:
    sent = [
        ("Connection", "X-Foo, keep-alive"), ("X-Foo", "1"), ("Keep-Alive", "timeout=5"), ("Proxy-Connection", "x"), ("TE", "x"),
        ("Trailer", "X"), ("Upgrade", "h2c"), ("X-Bar", "2"),
    ]  # fmt: skip
    assert headers_of(answer(http_response(b"ok", headers=sent))) == [("X-Bar", "2"), ("Content-Length", "2")]


def test_response_connection_cannot_take_away() -> None:
    sent = [("Connection", "set-cookie, content-length, content-type"), ("Set-Cookie", "a=1"), ("Content-Type", "text/plain")]
    response = answer(http_response(b"ok", headers=sent))
    assert [response.value(name) for name in ("Set-Cookie", "Content-Type", "Content-Length")] == ["a=1", "text/plain", "2"]


@pytest.mark.parametrize(
    "status", ["200 OK", "201 Created", "206 Partial Content", "301 Moved", "401 No", "404 Not Found", "500 Oops", "599 X"]
)
def test_response_status_is_passed_on(status: str) -> None:
    response = answer(http_response(b"body", status, [("Location", "http://elsewhere.example/"), ("WWW-Authenticate", "Basic")]))
    assert (response.line, response.body) == (f"HTTP/1.1 {status}", b"body")
    assert response.value("Location") == "http://elsewhere.example/", "a redirect is the client's to follow"


@pytest.mark.parametrize("line", [b"HTTP/1.1 200", b"HTTP/1.1 200 "])
def test_response_without_a_phrase_is_given_one(line: bytes) -> None:
    assert answer(line + b"\r\nContent-Length: 0\r\n\r\n").line == "HTTP/1.1 200 Unknown"


def test_response_body_is_not_decoded() -> None:
    body = gzip.compress(b"hello" * 100)
    response = answer(http_response(body, headers=[("Content-Encoding", "gzip")]))
    assert (response.body, response.value("Content-Encoding")) == (body, "gzip")


FRAMINGS: dict[str, tuple[list[bytes], bool, list[tuple[str, str]], bytes]] = {
    "length": ([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"], False, [("Content-Length", "5")], b"hello"),
    "length 0": ([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], False, [("Content-Length", "0")], b""),
    "length, in pieces": (
        [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"he", b"llo"], False, [("Content-Length", "5")], b"hello",
    ),
    "chunked": (
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;e\r\nhello\r\n", b"0\r\nX: 1\r\n\r\n"], False,
        [("Transfer-Encoding", "chunked")], b"hello",
    ),
    "chunked, at once": (
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"], False,
        [("Content-Length", "5")], b"hello",
    ),
    "chunked, empty": (
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"], False, [("Content-Length", "0")], b"",
    ),
    "end of the connection": (
        [b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo"], True, [("Transfer-Encoding", "chunked")], b"hello",
    ),
    "end of the connection, HTTP/1.0": (
        [b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nhello"], True, [("Transfer-Encoding", "chunked")], b"hello",
    ),
    "length and close": (
        [b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"], True, [("Content-Length", "5")], b"hello",
    ),
    "204": ([b"HTTP/1.1 204 No Content\r\n\r\n"], False, [], b""),
    "204 with a length": ([b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"], False, [], b""),
    "304 with a length": ([b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"], False, [("Content-Length", "5")], b""),
    "304": ([b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"], False, [("ETag", "x")], b""),
}  # fmt: skip


@pytest.mark.parametrize(("blocks", "close", "headers", "body"), FRAMINGS.values(), ids=FRAMINGS)
def test_response_body_is_passed_on_whole(blocks: list[bytes], close: bool, headers: list[tuple[str, str]], body: bytes) -> None:
    response = answer(*blocks, close=close)
    assert (headers_of(response), response.body, response.complete) == (headers, body, True)


@pytest.mark.parametrize(("blocks", "close", "headers", "body"), FRAMINGS.values(), ids=FRAMINGS)
def test_response_body_reaches_a_client_of_http_10(
    blocks: list[bytes], close: bool, headers: list[tuple[str, str]], body: bytes
) -> None:
    response = answer(*blocks, request="GET / HTTP/1.0", close=close)
    assert (response.value("Transfer-Encoding"), response.body, response.complete) == (None, body, True)
    assert response.value("Connection") == "close"


@pytest.mark.parametrize("request_", ["GET / HTTP/1.1", "GET / HTTP/1.0"])
def test_response_without_a_body_that_ends_with_the_connection_is_passed_on(request_: str) -> None:
    response = answer(b"HTTP/1.0 200 OK\r\n\r\n", request=request_, close=True)
    assert (response.body, response.complete) == (b"", True)


def test_response_chunked_that_looks_whole_too_early_is_passed_on_whole() -> None:
    more = threading.Event()
    script = sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n0\r\n\r\n", more, b"\r\n0\r\n\r\n")
    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.until(b"5\r\n0\r\n\r\n\r\n").endswith(b"\r\n\r\n5\r\n0\r\n\r\n\r\n")
        more.set()
        assert client.read(5) == b"0\r\n\r\n"


HEADS = {
    "length": (b"Content-Length: 5\r\n", [("Content-Length", "5")]),
    "coding": (b"Transfer-Encoding: chunked\r\n", []),
    "nothing": (b"", []),
}


@pytest.mark.parametrize(("lines", "headers"), HEADS.values(), ids=HEADS)
def test_response_to_head_has_its_headers_and_no_body(lines: bytes, headers: list[tuple[str, str]]) -> None:
    with ScriptedBackend(sends(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n")) as backend, forwarding(backend) as live:
        with RawClient(live.url) as client:
            for _ in range(2):
                assert headers_of(client.get(method="HEAD")) == headers
        assert [request.line for request in backend.requests] == ["HEAD / HTTP/1.1"] * 2
        # An announced body may arrive anyway, and would be taken for the response to the next request.
        assert len(backend.connections) == (2 if lines else 1)


# Interim responses


def test_response_interim_ones_are_kept_from_who_does_not_ask_for_them() -> None:
    blocks = [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"]
    assert answer(*blocks, http_response(b"ok")).body == b"ok"


def test_response_interim_while_the_upload_runs_does_not_stop_it() -> None:
    hinted = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        assert connection.read_head()
        connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        hinted.set()
        body = connection.read(len(b"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n"))
        connection.send(http_response(body))

    with (
        ScriptedBackend(script) as backend,
        forwarding(backend, body_buffer_bytes=0) as live,
        RawClient(live.url) as client,
    ):
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        passed(hinted)
        client.send(b"5\r\nworld\r\n0\r\n\r\n")
        assert client.response().body == b"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n"


BAD: dict[str, tuple[list[bytes], bool]] = {
    "no HTTP": ([b"SSH-2.0-OpenSSH\r\n\r\n"], False),
    "no HTTP, and closed": ([b"garbage"], True),
    "HTTP/0.9": ([b"<html>hello</html>"], True),
    "HTTP/2.0": ([b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"], False),
    "bad status": ([b"HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n"], False),
    "status 600": ([b"HTTP/1.1 600 X\r\nContent-Length: 0\r\n\r\n"], False),
    "bare LF": ([b"HTTP/1.1 200 OK\nContent-Length: 0\n\n"], True),
    "length beside coding": ([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"], False),
    "two lengths": ([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"], False),
    "bad length": ([b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"], False),
    "unknown coding": ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"], True),
    "bad header": ([b"HTTP/1.1 200 OK\r\nX y: z\r\nContent-Length: 0\r\n\r\n"], False),
    "NUL in a header": ([b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n"], False),
    "bad chunk at once": ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n0\r\n\r\n"], False),
    "head over 64 KiB": ([b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n"], False),
    "head without end": ([b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000], True),
    "too many headers": ([b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 501 + b"\r\n"], False),
    "101 unasked": ([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"], False),
    "interim without end": ([b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20], False),
}


@pytest.mark.parametrize(("blocks", "close"), BAD.values(), ids=BAD)
def test_response_that_is_none_is_502(blocks: list[bytes], close: bool) -> None:
    response = answer(*blocks, close=close)
    body = json.loads(response.body)
    assert (response.status, body["status_code"]) == (502, 502)
    assert body["reason"] in ("bad_response", "closed")
    assert body.keys() == {"status_code", "body", "reason", "request_id"}


BROKEN_AND_OPEN = {
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "bare LF within the head": b"HTTP/1.1 200 OK\r\nX: 1\nContent-Length: 2\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "empty line": b"\r\n",
    "empty line before a response": b"\r\n" + http_response(b"ok"),
    "bad status line": b"HTTP/1.1 OK\r\n",
    "bad header": b"HTTP/1.1 200 OK\r\nnothing\r\n",
}


@pytest.mark.parametrize("sent", BROKEN_AND_OPEN.values(), ids=BROKEN_AND_OPEN)
def test_response_that_is_broken_is_502_at_once_although_the_connection_stays_open(sent: bytes) -> None:
    done = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(sent)
        passed(done)

    route = {"timeouts": {"read_seconds": 3600}}
    with ScriptedBackend(script) as backend, forwarding(backend, route=route) as live, RawClient(live.url) as client:
        response = client.get()
        assert (response.status, json.loads(response.body)["reason"]) == (502, "bad_response")
        done.set()


def test_response_that_may_be_repaired_is_passed_on_repaired() -> None:
    response = answer(b"HTTP/1.1 200 OK\r\nX-A : 1\r\nX-B: 2\r\n  3\r\nContent-Length: 2\r\nContent-Length : 2\r\n\r\nok")
    assert headers_of(response) == [("X-A", "1"), ("X-B", "2 3"), ("Content-Length", "2")]
    assert response.body == b"ok"


def test_response_that_is_none_hurts_no_other_request() -> None:
    def script(connection: ScriptedConnection) -> None:
        while connection.read_request() is not None:
            connection.send(http_response(b"ok") if connection.number else b"garbage\r\n\r\n" + http_response(b"poison"))

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get().status == 502
        assert client.get().body == b"ok"
        assert len(backend.connections) == 2


def test_response_of_500_headers_and_one_of_16_kib_pass() -> None:
    lines = b"X: a\r\n" * 499
    assert len(answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + lines + b"\r\n").values("X")) == 499
    assert answer(http_response(b"", headers=[("X", "a" * 16_384)])).value("X") == "a" * 16_384


# Streaming


def test_response_blocks_go_on_as_they_come() -> None:
    second, third = threading.Event(), threading.Event()
    script = sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"one", second, b"two", third, b"end")
    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.until(b"\r\n\r\none")
        second.set()
        assert client.read(3) == b"two"
        third.set()
        assert client.read(3) == b"end"


def test_response_events_go_on_as_they_come() -> None:
    more = threading.Event()
    script = sends(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"9\r\ndata: 1\n\n\r\n", more, b"9\r\ndata: 2\n\n\r\n", b"0\r\n\r\n",
    )  # fmt: skip
    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.until(b"data: 1\n\n\r\n").endswith(b"\r\n\r\n9\r\ndata: 1\n\n\r\n")
        more.set()
        assert client.until(b"0\r\n\r\n") == b"9\r\ndata: 2\n\n\r\n0\r\n\r\n"


@pytest.mark.parametrize("framing", [b"Transfer-Encoding: chunked\r\n", b"Content-Length: 14\r\n", b"Connection: close\r\n"])
def test_response_head_goes_on_before_its_body_has_begun(framing: bytes) -> None:
    """An event stream may say nothing for long; its client wants to know that it is connected."""
    more = threading.Event()
    body = b"4\r\nbody\r\n0\r\n\r\n"
    script = sends(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n", more, body, close=True)
    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        head = client.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        more.set()
        client.unread = head + client.unread
        assert client.response().complete


def test_response_of_many_small_blocks_is_passed_on_whole() -> None:
    chunks = [b"%x\r\n%b\r\n" % (len(block), block) for block in (b"%d," % number for number in range(2_000))]
    script = sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n")
    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get().body == b"".join(b"%d," % number for number in range(2_000))


@pytest.mark.parametrize("step", [1, 7])
def test_response_byte_by_byte_is_the_same(step: int) -> None:
    whole = b"HTTP/1.1 200 OK\r\nX: 1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nT: 1\r\n\r\n"
    response = answer(*[whole[at : at + step] for at in range(0, len(whole), step)])
    assert (response.body, response.value("X")) == (b"hello", "1")
