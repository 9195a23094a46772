"""Accepted messages are parsed the same by llhttp, Node's parser: a backend sees the request that the gateway sees.

httptools (llhttp) is a reference here only; the gateway does not use it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgate.errors import BadResponse, RequestError
from rgate.http1.fields import FieldParser
from rgate.http1.request import RequestHead, RequestParser
from rgate.http1.response import ResponseParser


@dataclass
class Heard:
    """The messages that llhttp finds in a stream."""

    targets: list[bytes] = field(default_factory=list)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    status: bytes = b""
    body: bytes = b""
    complete: int = 0
    keep_alive: bool | None = None
    parser: Any = None

    def on_url(self, url: bytes) -> None:
        self.targets.append(url)

    def on_status(self, status: bytes) -> None:
        self.status += status

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.complete:
            self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_headers_complete(self) -> None:
        if self.parser is not None:
            self.keep_alive = self.parser.should_keep_alive()

    def on_message_complete(self) -> None:
        self.complete += 1


_lines = st.sampled_from(
    [
        b"Content-Length: 0", b"Content-Length: 5", b"content-length:7", b"Content-Length: 05", b"Content-Length: +5",
        b"Content-Length: 5, 5", b"Content-Length: ", b"Content-Length: 5 ", b"Content-Length : 5", b"Content-Length:\t5",
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: Chunked ", b"Transfer-Encoding: identity",
        b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding:\x0bchunked",
        b"Connection: close", b"Connection: keep-alive", b"Connection: close, x", b"Connection: X-Foo",
        b"Accept: text/html", b"X: caf\xe9", b"X:", b"X: a\tb", b"X: a:b", b" folded: x", b"X-Foo: 1", b"X\x00: 1", b"X: a\rb",
        b"X: a\nb", b"Cookie: a=1", b"A_B: c", b"!#$%&'*+-.^_`|~: x", b"Expect: 100-continue",
    ]
)  # fmt: skip
_request_lines = st.sampled_from(
    [
        b"GET / HTTP/1.1", b"POST /a%2Fb?q=1 HTTP/1.1", b"PUT //x HTTP/1.1", b"POST / HTTP/1.0", b"GET http://x/y HTTP/1.1",
        b"OPTIONS * HTTP/1.1", b"GET  / HTTP/1.1", b"GET /x y HTTP/1.1", b"GET / HTTP/1.1 ", b"GET / HTTP/2.0",
        b"DELETE /\x7f HTTP/1.1",
        b"PATCH /;x=(1) HTTP/1.1", b"HEAD /?? HTTP/1.1",
    ]
)  # fmt: skip
BODY = b"5\r\nhello\r\n0\r\n\r\n"


def as_sent(request: RequestHead) -> tuple[bytes, bytes]:
    """The body that the request has, and the bytes that stand for it."""
    if request.chunked:
        return b"hello", BODY
    body = b"x" * (request.content_length or 0)
    return body, body


@settings(max_examples=200)
@given(_request_lines, st.lists(_lines, max_size=5))
def test_request_that_is_accepted_is_the_same_for_llhttp(line: bytes, headers: list[bytes]) -> None:
    head = b"\r\n".join([line, b"Host: example.com", *headers])
    try:
        request = RequestParser().parse(head)
    except RequestError:
        return  # refusing is always allowed
    heard = Heard()
    heard.parser = parser = httptools.HttpRequestParser(heard)
    body, coded = as_sent(request)
    parser.feed_data(head + b"\r\n\r\n" + coded)
    assert heard.complete == 1, "llhttp sees another end of the message"
    assert heard.body == body
    assert parser.get_method().decode() == request.method
    assert parser.get_http_version() == f"1.{request.http_minor}"
    assert heard.keep_alive or not request.keep_alive, "the gateway would wait for a request that never comes"
    (target,) = heard.targets
    assert target.decode().removeprefix("http://x") == request.target.raw
    reader = FieldParser()
    ours = [reader.parse(line).pair for line in head.split(b"\r\n")[1:]]
    assert [(name.decode("latin-1"), value.strip(b" \t").decode("latin-1")) for name, value in heard.headers] == ours


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@given(st.lists(st.binary(min_size=1, max_size=30).map(lambda b: b.replace(b"\r", b"").replace(b"\n", b"")), max_size=4))
def test_header_lines_that_are_accepted_are_the_same_for_llhttp(method: str, lines: list[bytes]) -> None:
    head = b"\r\n".join([f"{method} / HTTP/1.1".encode(), b"Host: x", *lines])
    try:
        request = RequestParser().parse(head)
    except RequestError:
        return
    heard = Heard()
    httptools.HttpRequestParser(heard).feed_data(head + b"\r\n\r\n")
    ours = {field.name: field.value for field in request.fields}
    theirs = {name.decode("latin-1").lower(): value.strip(b" \t").decode("latin-1") for name, value in heard.headers}
    assert ours.items() <= theirs.items()


_status_lines = st.sampled_from(
    [
        b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 404 Not Found", b"HTTP/1.1 200 ", b"HTTP/1.1 500 caf\xe9",
        b"HTTP/1.1 99 x", b"HTTP/1.1  200 OK", b"HTTP/2.0 200 OK",
    ]
)  # fmt: skip


@settings(max_examples=200)
@given(_status_lines, st.lists(_lines, max_size=5))
def test_response_that_is_accepted_is_the_same_for_llhttp(line: bytes, headers: list[bytes]) -> None:
    head = b"\r\n".join([line, *headers])
    try:
        response = ResponseParser().parse(head)
    except BadResponse:
        return  # refusing is always allowed
    heard = Heard()
    heard.parser = parser = httptools.HttpResponseParser(heard)
    body = b"hello" if response.chunked else b"x" * (response.length or 0)
    # Some heads that llhttp refuses are repaired; what counts is what is passed on.
    passed = [f"{name}: {value}".encode("latin-1") for name, value in response.headers]
    passed += [b"Transfer-Encoding: chunked"] if response.chunked else []
    passed += [line for line in headers if line.lower().startswith(b"connection:")]
    parser.feed_data(b"\r\n".join([line, *passed]) + b"\r\n\r\n" + (BODY if response.chunked else body))
    delimited = response.chunked or response.length is not None
    assert heard.complete == int(delimited)
    assert heard.body == body
    assert parser.get_status_code() == response.code
    if delimited and b"HTTP/1.0" not in line:
        assert heard.keep_alive or not response.keep_alive
