"""Responses as bytes: head, framing, and what happens when the app fails (PEP 3333)."""

from __future__ import annotations

import io
import logging
import re
import threading
from collections.abc import Iterable
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from rgate.serving.head_encoder import HeadEncoder

from ..support.raw_client import RawClient, RawResponse
from ..support.serving import GET, GET_10, HEAD, Body, respond_with, responses, serving
from ..support.waiting import eventually, passed

Headers = list[tuple[str, str]]


def framing(response: RawResponse) -> tuple[str | None, str | None, str | None]:
    return response.value("Content-Length"), response.value("Transfer-Encoding"), response.value("Connection")


FRAMINGS: dict[str, tuple[Any, Headers, str, bytes, tuple[str | None, str | None, str | None], bytes, bool]] = {
    # body, headers, status, request → framing, body, stays open
    "one block": ([b"hello"], [], "200 OK", GET, ("5", None, None), b"hello", True),
    "one block and its length": ([b"hello"], [("content-length", "5")], "200 OK", GET, ("5", None, None), b"hello", True),
    "no block": ([], [], "200 OK", GET, ("0", None, None), b"", True),
    "one empty block": ([b""], [], "200 OK", GET, ("0", None, None), b"", True),
    "several blocks": ([b"he", b"", b"llo"], [], "200 OK", GET, (None, "chunked", None), b"hello", True),
    "blocks and their length": ([b"he", b"llo"], [("Content-Length", "5")], "200 OK", GET, ("5", None, None), b"hello", True),
    "iterable": (("a", ), [], "200 OK", GET, (None, "chunked", None), b"a", True),
    "empty iterable": ((), [], "200 OK", GET, ("0", None, None), b"", True),
    "large block": ([b"x" * 200_000], [], "200 OK", GET, ("200000", None, None), b"x" * 200_000, True),
    "HEAD with length": ([], [("Content-Length", "5")], "200 OK", HEAD, ("5", None, None), b"", True),
    "HEAD without length": ([], [], "200 OK", HEAD, (None, None, None), b"", True),
    "HEAD with a body": ([b"hello"], [("Content-Length", "5")], "200 OK", HEAD, ("5", None, None), b"", True),
    "HEAD with a body in blocks": ([b"he", b"llo"], [], "200 OK", HEAD, (None, None, None), b"", True),
    "204": ([], [], "204 No Content", GET, (None, None, None), b"", True),
    "204 with a length": ([], [("Content-Length", "0")], "204 No Content", GET, (None, None, None), b"", True),
    "204 with a body": ([b"hello"], [], "204 No Content", GET, (None, None, None), b"", True),
    "304 with a length": ([], [("Content-Length", "5")], "304 Not Modified", GET, ("5", None, None), b"", True),
    "304 without a length": ([], [], "304 Not Modified", GET, (None, None, None), b"", True),
    "304 with a body": ([b"hello"], [], "304 Not Modified", GET, (None, None, None), b"", True),
    "HTTP/1.0, one block": ([b"hello"], [], "200 OK", GET_10, ("5", None, "keep-alive"), b"hello", True),
    "HTTP/1.0, several blocks": ([b"he", b"llo"], [], "200 OK", GET_10, (None, None, "close"), b"hello", False),
    "HTTP/1.0, 304": ([], [], "304 Not Modified", GET_10, (None, None, "keep-alive"), b"", True),
    "app asks to close": ([b"hello"], [("Connection", "Close")], "200 OK", GET, ("5", None, "close"), b"hello", False),
    "app says keep-alive": ([b"hello"], [("Connection", "keep-alive")], "200 OK", GET, ("5", None, None), b"hello", True),
    "app says chunked": ([b"hello"], [("Transfer-Encoding", "chunked")], "200 OK", GET, ("5", None, None), b"hello", True),
    "too much": ([b"hello!"], [("Content-Length", "5")], "200 OK", GET, ("5", None, None), b"hello", False),
    "too many blocks": ([b"hel", b"lo!", b"?"], [("Content-Length", "5")], "200 OK", GET, ("5", None, None), b"hello", False),
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "headers", "status", "request_", "expected", "content", "stays"), FRAMINGS.values(), ids=FRAMINGS
)
def test_response_has_exactly_one_framing(
    body: Any, headers: Headers, status: str, request_: bytes, expected: tuple[str | None, ...], content: bytes, stays: bool
) -> None:
    blocks = [block if isinstance(block, bytes) else block.encode() for block in body]
    app = respond_with(blocks if isinstance(body, list) else tuple(blocks), *headers, status=status)
    # Twice: what is remembered of the first response must make no difference.
    found, open_ = responses(app, *[request_] * (2 if stays else 1))
    for response in found:
        assert (framing(response), response.body, response.complete) == (expected, content, True)
        assert response.line == f"HTTP/1.1 {status}"
    assert open_ is stays


def test_response_of_a_head_that_is_remembered_is_cut_to_each_body() -> None:
    bodies = iter([b"hello", b"hello", b"hell", b"hello!", b"hello"])
    headers = [("Content-Length", "5"), ("Date", "Sun, 06 Nov 1994 08:49:37 GMT")]

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", headers)
        return [next(bodies)]

    with serving(app) as server:
        with RawClient(server.url) as client:
            assert [client.get().body for _ in range(2)] == [b"hello", b"hello"]
            client.send(GET)
            short = client.response()
            assert (short.complete, short.body) == (False, b"hell")
        with RawClient(server.url) as client:
            assert client.get().body == b"hello"
            assert client.is_closed()
        with RawClient(server.url) as client:
            assert client.get("/", "Connection: close").value("Connection") == "close"


def test_response_headers_keep_order_count_and_bytes() -> None:
    headers = [("Set-Cookie", "a=1"), ("X-Name", "caf\xe9"), ("set-cookie", "b=2"), ("Server", "mine"), ("X", "")]
    (response, again), _ = responses(respond_with([b""], *headers), GET, GET)
    for one in (response, again):
        assert [pair for pair in one.headers if pair[0] not in ("Date", "Content-Length")] == headers


def test_response_hop_by_hop_headers_of_the_app_are_dropped() -> None:
    headers = [
        ("Keep-Alive", "5"),
        ("TE", "x"),
        ("Trailer", "X"),
        ("Content-Length", "0"),
        ("Proxy-Connection", "x"),
        ("Connection", "x-foo"),
    ]
    (response,), open_ = responses(respond_with([b""], *headers), GET)
    assert {name for name, _ in response.headers} == {"Date", "Content-Length"}
    assert open_


def test_response_date_is_added_once_unless_the_app_has_one() -> None:
    (response,), _ = responses(respond_with([b""]), GET)
    date = parsedate_to_datetime(str(response.value("Date")))
    assert abs((datetime.now(date.tzinfo) - date).total_seconds()) < 10
    (response,), _ = responses(respond_with([b""], ("date", "yesterday")), GET)
    assert response.values("Date") == ["yesterday"]
    assert response.values("Server") == []


def test_body_is_closed_after_its_end() -> None:
    body = Body(b"a", b"b")
    (response,), _ = responses(
        lambda e, s: respond_with(body)(e, s) if e["REQUEST_METHOD"] == "GET" else respond_with([])(e, s), GET
    )
    assert response.body == b"ab"
    assert body.closed.is_set()


def test_body_whose_close_fails_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    class Bad(Body):
        def close(self) -> None:
            raise ValueError("in close")

    with serving(respond_with(Bad(b"a", b"b"))) as server, RawClient(server.url) as client:
        assert client.get().body == b"ab"
        assert client.is_closed()
    assert "closing the response failed" in caplog.text


def test_blocks_go_out_as_they_come() -> None:
    go_on = threading.Event()

    def second() -> bytes:
        passed(go_on)
        return b"second"

    with serving(respond_with(Body(b"first", second))) as server, RawClient(server.url) as client:
        client.send(GET)
        assert client.until(b"first\r\n").endswith(b"\r\n5\r\nfirst\r\n")
        go_on.set()
        assert client.until(b"\r\n0\r\n\r\n") == b"6\r\nsecond\r\n0\r\n\r\n"


def test_write_of_start_response_sends_blocks() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [])
        write(b"one ")
        write(b"")
        write(b"two ")
        return [b"three"]

    (response,), open_ = responses(app, GET)
    assert (response.body, open_) == (b"one two three", True)


def test_write_alone_makes_a_whole_response() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "3")])(b"one")
        return []

    (response,), open_ = responses(app, GET)
    assert (response.body, open_) == (b"one", True)


def test_exc_info_before_the_head_replaces_the_response() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("X", "1")])
        try:
            raise ValueError
        except ValueError as error:
            start_response("503 Service Unavailable", [("Y", "2")], (ValueError, error, error.__traceback__))
        return [b"sorry"]

    (response,), _ = responses(app, GET)
    assert (response.status, response.body, response.value("X"), response.value("Y")) == (503, b"sorry", None, "2")


def test_exc_info_after_the_head_raises_and_breaks_off() -> None:
    raised: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [])
        write(b"begun")
        error = ValueError("late")
        try:
            start_response("503 Service Unavailable", [], (ValueError, error, None))
        except ValueError as caught:
            raised.append(caught)
            raise
        return []

    with serving(app) as server, RawClient(server.url) as client:
        assert not client.get().complete
    assert [str(error) for error in raised] == ["late"]


def test_file_wrapper_sends_a_file_and_closes_it() -> None:
    file = io.BytesIO(b"x" * 100_000)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "100000")])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file)
        return wrapped

    with serving(app) as server, RawClient(server.url) as client:
        assert client.get().body == b"x" * 100_000
        eventually(lambda: file.closed)


def test_flush_head_sends_the_head_before_any_block() -> None:
    go_on = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        client = environ["rgate.connection"]
        client.flush_head()  # too early: nothing happens
        start_response("200 OK", [("Content-Length", "2")])
        client.flush_head()
        client.flush_head()
        passed(go_on)
        return [b"ok"]

    with serving(app) as server, RawClient(server.url) as client:
        client.send(GET)
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
        go_on.set()
        assert client.read(2) == b"ok"
        assert client.is_silent()


def test_client_that_leaves_is_no_error_of_the_app(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "rgate.serving")
    body = Body(b"x" * 1_000, *[b"x" * 1_000_000] * 50)
    with serving(respond_with(body)) as server, RawClient(server.url) as client:
        client.send(GET)
        client.until(b"xxx")
        client.reset()
        passed(body.closed)
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]
    assert "the client is gone" in caplog.text


def test_slow_reader_gets_everything() -> None:
    blocks = [bytes([number]) * 100_000 for number in range(60)]
    with serving(respond_with(Body(*blocks), ("Content-Length", "6000000"))) as server, RawClient(server.url) as client:
        client.send(GET)
        client.until(b"\r\n\r\n")
        assert b"".join(client.read(1_000_000) for _ in range(6)) == b"".join(blocks)


def test_reader_that_stops_is_given_up_after_write_seconds() -> None:
    body = Body(*[b"x" * 1_000_000] * 100)
    with serving(respond_with(body), write_seconds=0.05) as server, RawClient(server.url) as client:
        client.send(GET)
        passed(body.closed)
        assert not client.response().complete


# HeadEncoder


def test_head_writer_memory_is_bounded() -> None:
    writer = HeadEncoder()
    for number in range(4_000):
        headers = (("Date", "x"), ("Content-Length", str(number)))
        for _ in range(2):
            writer.encode(f"200 {number}", headers)
            writer.cache("200 OK", headers, b"head", number)
        assert 0 < writer._lines.bytes <= HeadEncoder.MAX_LINES_BYTES
        assert 0 < writer._status_lines.bytes <= HeadEncoder.MAX_STATUS_LINES_BYTES
        assert 0 < writer.head_cache.bytes <= HeadEncoder.MAX_HEADS_BYTES


def test_head_writer_keeps_no_credentials_and_nothing_large() -> None:
    writer = HeadEncoder()
    large = "a" * 2_000
    headers = (("Set-Cookie", "a=1"), ("X", large), ("Date", "x"), ("Content-Length", "1"))
    for _ in range(2):
        writer.encode(f"200 {large}", headers)
        writer.cache("200 OK", headers, b"head", 1)
        writer.cache("200 OK", headers[2:], b"x" * 2_000, 1)
        writer.cache("200 OK", (("X-Auth-Token", "x"), *headers[2:]), b"x", 1)
        writer.cache("200 OK", (("Location", "/?code=x"), *headers[2:]), b"Location: /?code=x", 1)
    assert not writer.head_cache
    assert not [pair for pair in writer._lines if pair[0] in ("Set-Cookie", "X")]
    assert not writer._status_lines, "a hostile backend could fill the memory with long status lines"


def test_head_writer_date_changes_with_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = HeadEncoder()
    now = 784_111_777.9
    monkeypatch.setattr("rgate.serving.head_encoder.time", lambda: now)
    assert writer.date() == b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
    now += 0.2
    assert writer.date() == b"Date: Sun, 06 Nov 1994 08:49:38 GMT\r\n"
    assert re.fullmatch(rb"Date: \S+ .* GMT\r\n", writer.date())
