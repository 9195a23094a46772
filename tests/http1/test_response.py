"""Response heads: one reading or a refusal."""

from __future__ import annotations

import pytest

from rgate.errors import BadResponse
from rgate.http1.response import ResponseHead, ResponseParser


def read(*headers: bytes, line: bytes = b"HTTP/1.1 200 OK") -> ResponseHead:
    return ResponseParser().parse(b"\r\n".join([line, *headers]))


LINES = {
    b"HTTP/1.1 200 OK": (200, "200 OK"),
    b"HTTP/1.0 404 Not Found": (404, "404 Not Found"),
    b"HTTP/1.1 200 ": (200, "200 Unknown"),
    b"HTTP/1.1 200": (200, "200 Unknown"),
    b"HTTP/1.1 299 Caf\xe9 ": (299, "299 Caf\xe9"),
    b"HTTP/1.1 599 a\tb": (599, "599 a\tb"),
    b"HTTP/1.1 100 Continue": (100, "100 Continue"),
}


@pytest.mark.parametrize(("line", "status"), LINES.items())
def test_status_line_of_the_grammar_is_read(line: bytes, status: tuple[int, str]) -> None:
    head = read(line=line)
    assert (head.code, head.status) == status


REFUSED_LINES = [
    b"", b"200 OK", b"HTTP/1.1", b"HTTP/1.1 ", b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1 600 OK", b"HTTP/1.1 099 OK",
    b"HTTP/1.1 abc OK", b"HTTP/1.1 +20 OK", b"HTTP/1.1  200 OK", b"HTTP/1.1\t200 OK", b" HTTP/1.1 200 OK", b"HTTP/2.0 200 OK",
    b"HTTP/1.2 200 OK", b"HTTP/0.9 200 OK", b"HTTP/1.10 200 OK", b"http/1.1 200 OK", b"ICY 200 OK", b"HTTP/1.1 200 O\x00K",
    b"HTTP/1.1 200 O\rK", b"HTTP/1.1 200 O\nK", b"HTTP/1.1 200OK", b"HTTP/1.1 \xb2\xb2\xb2 OK", b"<html>", b"SSH-2.0-OpenSSH",
]  # fmt: skip


@pytest.mark.parametrize("line", REFUSED_LINES)
def test_status_line_outside_the_grammar_is_refused(line: bytes) -> None:
    with pytest.raises(BadResponse, match="status line"):
        read(line=line)


REFUSED = {
    "length beside coding": b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    "coding beside length": b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6",
    "list of lengths": b"Content-Length: 5, 6",
    "list of lengths that ends early": b"Content-Length: 5, ",
    "list of lengths, one of them none": b"Content-Length: 5, x, 5",
    "length 5 and a list of 6": b"Content-Length: 5\r\nContent-Length: 6, 6",
    "length hidden by a space": b"Content-Length : 5\r\nContent-Length: 6",
    "coding hidden by a space": b"Content-Length: 5\r\nTransfer-Encoding : chunked",
    "length with plus": b"Content-Length: +5",
    "negative length": b"Content-Length: -1",
    "empty length": b"Content-Length:",
    "coding gzip": b"Transfer-Encoding: gzip",
    "coding gzip, chunked": b"Transfer-Encoding: gzip, chunked",
    "coding twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "bare CR": b"X: a\rb",
    "bare LF": b"X: a\nb",
    "NUL": b"X: a\x00b",
    "folded line behind the status line": b" X: a",
    "folded line behind the status line, with a tab": b"\tX: a\r\nY: b",
    "folded length": b"Content-Length:\r\n 5",
    "folded length that looks whole": b"Content-Length: 5\r\n 0",
    "folded coding": b"Transfer-Encoding:\r\n chunked",
    "space within a name": b"X Y : a",
    "space and no colon": b"X \r\nY: b",
    "no colon": b"nothing",
    "empty name": b": a",
    "name that is not a token": b"X(: a",
}


@pytest.mark.parametrize("headers", REFUSED.values(), ids=REFUSED)
def test_response_with_more_than_one_reading_is_refused(headers: bytes) -> None:
    with pytest.raises(BadResponse):
        read(headers)


REPAIRED: dict[str, tuple[bytes, list[tuple[str, str]], int | None]] = {
    "space before the colon": (b"X-A : 1\r\nX-B \t:2", [("X-A", "1"), ("X-B", "2")], None),
    "space before the colon of a length": (b"Content-Length : 5", [("Content-Length", "5")], 5),
    "folded line": (b"X: a\r\n b\r\n\t  c\r\nY: d", [("X", "a b c"), ("Y", "d")], None),
    "folded line that looks like a header": (b"X: a\r\n Content-Length: 5", [("X", "a Content-Length: 5")], None),
    "folded line of spaces": (b"X: a\r\n  ", [("X", "a")], None),
    "both": (b"X : a\r\n b", [("X", "a b")], None),
    "same length twice": (b"Content-Length: 5\r\ncontent-length: 5", [("Content-Length", "5")], 5),
    "list of the same length": (b"Content-Length: 5, 5,5", [("Content-Length", "5")], 5),
}


@pytest.mark.parametrize(("sent", "headers", "length"), REPAIRED.values(), ids=REPAIRED)
def test_response_that_a_gateway_may_repair_is_repaired(sent: bytes, headers: list[tuple[str, str]], length: int | None) -> None:
    """RFC 9112 §5.1 (a proxy removes such spaces), §5.2 (or answers 502; HAProxy repairs it, too), §6.3 (one length is used)."""
    head = read(sent)
    assert (head.headers, head.length) == (headers, length)


def test_response_repair_takes_linear_time() -> None:
    spaces = b" " * 400_000
    with pytest.raises(BadResponse):
        read(b"X" + spaces + b"y: 1")
    assert read(b"X: a" + spaces + b"b\r\n c").headers == [("X", "a" + spaces.decode() + "b c")]


UNFINISHED = [b"", b"H", b"HTTP/1.", b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK\r", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX",
              b"HTTP/1.1 200 OK\r\nX : a\r\n b\r\n\tc\r\nY"]  # fmt: skip
HOPELESS = [b"\r\n", b"SSH", b"http/1.1", b"HTTP/2", b"<html>", b"\x15\x03", b"HTTP/1.1 200 OK\n", b"HTTP/1.1 OK\r\n",
            b"HTTP/1.1 200 OK\rX", b"HTTP/1.1 200 OK\r\nX: a\n", b"HTTP/1.1 200 OK\r\nnothing\r\n",
            b"HTTP/1.1 200 OK\r\n X: a\r\n", b"HTTP/1.1 200 OK\r\nX: a\r\nX\x00: b\r\n"]  # fmt: skip


@pytest.mark.parametrize("step", [1, 5, 1_000])
def test_response_head_that_can_become_valid_is_waited_for_and_no_other(step: int) -> None:
    def check(head: bytes) -> None:
        reader = ResponseParser()
        checked = scanned = 0
        for end in range(min(step, len(head)), len(head) + step, step):
            checked = reader.check_partial(head[:end], checked, scanned)
            scanned = min(end, len(head))

    for head in UNFINISHED:
        check(head)
    for head in HOPELESS:
        with pytest.raises(BadResponse):
            check(head)


def test_response_headers_keep_order_count_case_and_bytes() -> None:
    head = read(
        b"Set-Cookie: a=1", b"x-NAME: caf\xe9", b"SET-COOKIE: b=2", b"Date: now", b"Server: x", b"With_Underscore: y", b"E:"
    )
    assert head.headers == [
        ("Set-Cookie", "a=1"), ("x-NAME", "caf\xe9"), ("SET-COOKIE", "b=2"), ("Date", "now"), ("Server", "x"),
        ("With_Underscore", "y"), ("E", ""),
    ]  # fmt: skip


def test_response_content_length_is_passed_on_and_known() -> None:
    head = read(b"Content-Length: 5")
    assert (head.headers, head.length, head.chunked) == ([("Content-Length", "5")], 5, False)


def test_response_coding_is_known_and_not_passed_on() -> None:
    head = read(b"Transfer-Encoding: Chunked")
    assert (head.headers, head.length, head.chunked) == ([], None, True)


@pytest.mark.parametrize(
    "header",
    [
        b"Connection: close",
        b"Keep-Alive: 5",
        b"Proxy-Connection: x",
        b"TE: x",
        b"Trailer: X",
        b"Upgrade: h2c",
        b"HTTP2-Settings: x",
    ],
)
def test_response_header_of_this_hop_is_dropped(header: bytes) -> None:
    assert read(header).headers == []


def test_response_header_named_by_connection_is_dropped() -> None:
    head = read(b"X-Foo: 1", b"Connection: X-FOO, x-bar", b"x-foo: 2", b"X-Baz: 3", b"Connection: x-qux", b"X-Qux: 4")
    assert head.headers == [("X-Baz", "3")]


def test_response_header_that_connection_cannot_name_stays() -> None:
    headers = [b"Content-Length: 5", b"Content-Type: text/plain", b"Set-Cookie: a=1"]
    head = read(*headers, b"Connection: content-length, content-type, set-cookie, close, keep-alive")
    assert len(head.headers) == 3
    assert head.length == 5


@pytest.mark.parametrize(
    ("line", "headers", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK", [], True),
        (b"HTTP/1.1 200 OK", [b"Connection: Close"], False),
        (b"HTTP/1.1 200 OK", [b"Connection: keep-alive, close"], False),
        (b"HTTP/1.1 200 OK", [b"Connection: x"], True),
        (b"HTTP/1.0 200 OK", [], False),
        (b"HTTP/1.0 200 OK", [b"Connection: Keep-Alive"], True),
    ],
)
def test_response_persistence_is_read(line: bytes, headers: list[bytes], keep_alive: bool) -> None:
    assert read(*headers, line=line).keep_alive is keep_alive


def test_response_of_http_10_with_a_coding_is_refused() -> None:
    """Its framing is faulty (RFC 9112 §6.1)."""
    with pytest.raises(BadResponse, match=r"HTTP/1\.0"):
        read(b"Connection: keep-alive", b"Transfer-Encoding: chunked", line=b"HTTP/1.0 200 OK")


def test_response_trailers_are_announced_without_what_is_none() -> None:
    head = read(b"Trailer: X-Sum, Content-Length", b"Trailer: Set-Cookie", b"trailer: Server-Timing")
    assert (head.headers, head.trailer) == ([], "X-Sum, Server-Timing")


def test_response_switch_of_protocols_is_named() -> None:
    head = read(b"Connection: Upgrade", b"Upgrade: WebSocket", line=b"HTTP/1.1 101 Switching Protocols")
    assert (head.code, head.upgrade, head.headers) == (101, "websocket", [])


def test_response_500_headers_work_and_501_do_not() -> None:
    assert len(read(*[b"X: %d" % number for number in range(500)]).headers) == 500
    with pytest.raises(BadResponse, match="501 headers"):
        read(*[b"X: %d" % number for number in range(501)])


def test_response_header_of_16_kib_works() -> None:
    assert read(b"X: " + b"a" * 16_384).headers == [("X", "a" * 16_384)]


def test_response_head_that_comes_again_is_remembered() -> None:
    reader = ResponseParser()
    for _ in range(2):
        head = reader.parse(b"HTTP/1.1 200 OK\r\nX: 1")
        reader.parse(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1")
        reader.parse(b"HTTP/1.1 302 Found\r\nLocation: https://x/#access_token=1")
        reader.parse(b"HTTP/1.1 200 OK\r\nX: " + b"a" * ResponseParser.MAX_HEAD_BYTES)
    assert reader.head_cache[b"HTTP/1.1 200 OK\r\nX: 1"] is head
    assert len(reader.head_cache) == 1


def test_response_reader_memory_is_bounded() -> None:
    reader = ResponseParser()
    for number in range(8_192):
        for _ in range(2):
            reader.parse(b"HTTP/1.1 200 %d" % number)
        assert 0 < reader.head_cache.bytes <= ResponseParser.MAX_HEADS_BYTES
        assert 0 < reader._line_cache.bytes <= ResponseParser.MAX_LINES_BYTES
    assert len(reader.head_cache) < 8_192 > len(reader._line_cache)
    reader._line_cache.clear()
    for _ in range(2):
        reader.parse(b"HTTP/1.1 200 " + b"a" * 2_000)
    assert not reader._line_cache, "a long status line must not be kept: a hostile backend could fill the memory with them"
