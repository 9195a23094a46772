"""A backend may be hostile or broken: its response has one reading or is refused, and the next client is not harmed by it.

Every case is sent at once and byte by byte. After each, another client of the same backend gets its own, clean answer: what
is called response-queue poisoning is the reuse of a connection on which more has come than was asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.forwarding import forwarding
from ..support.raw_client import RawClient, RawResponse
from ..support.waiting import passed

POISON = http_response(b"poison")
CLEAN = http_response(b"clean")


def response(*lines: bytes, body: bytes = b"", status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\n" % status + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def answers(first: bytes, request: bytes, apart: bool) -> tuple[RawResponse, RawResponse]:
    """The responses to the client that meets `first` and to the next one, after all of it has been sent.

    The first connection to the backend answers with these bytes, and every other with CLEAN.
    """
    sent = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        if connection.read_request() is None:
            return
        if connection.number:
            connection.send(CLEAN)
            return
        try:
            for block in [first[at : at + 1] for at in range(len(first))] if apart else [first]:
                connection.send(block)
        finally:
            sent.set()
        if connection.read_request() is not None:  # the connection was used again
            connection.send(http_response(b"reused"))

    with ScriptedBackend(script) as backend, forwarding(backend, route={"timeouts": {"read_seconds": 2}}) as live:
        with RawClient(live.url) as client:
            client.send(request)
            met = client.response(request.split(b" ")[0].decode())
            passed(sent)
            assert not met.complete or met.value("Connection") == "close" or client.is_silent(), (
                "something comes after the response"
            )
        with RawClient(live.url) as other:
            return met, other.get("/other")


GET, HEAD_REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = b"5\r\nhello\r\n0\r\n\r\n"
CL, TE = b"Content-Length: 5", b"Transfer-Encoding: chunked"

REFUSED: dict[str, bytes] = {
    "CVE-2018-1000164 gunicorn: CR in a header": response(b"X: a\rSet-Cookie: b=c", CL, body=b"hello"),
    "CVE-2016-2216 Node: response splitting": response(b"Location: /\x00", CL, body=b"hello"),
    "CVE-2023-27522 Apache: control bytes in a header": response(b"X: a\x0bb", CL, body=b"hello"),
    "CVE-2022-37436 Apache: a header that ends the head early": response(b"X\x00Y: a", b"Set-Cookie: a=1", CL, body=b"hello"),
    "CVE-2023-38709 Apache: LF in a header": response(b"X: a\nContent-Length: 0", CL, body=b"hello"),
    "bare LF as line end": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello\r\n\r\n",
    "folded line before any header": response(b" X: a", CL, body=b"hello"),
    "folded length": response(b"Content-Length:", b" 5", body=b"hello"),
    "space before the colon of a second length": response(CL, b"Content-Length : 6", body=b"hello!"),
    "space before the colon of a coding beside a length": response(CL, b"Transfer-Encoding : chunked", body=BODY),
    "coding in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY,
    "empty name": response(b": x", CL, body=b"hello"),
    "no colon": response(b"X", CL, body=b"hello"),
    "length beside coding": response(CL, TE, body=BODY),
    "coding beside length": response(TE, b"Content-Length: 100", body=BODY),
    "two lengths": response(CL, b"Content-Length: 6", body=b"hello!"),
    "length list": response(b"Content-Length: 5, 6", body=b"hello!"),
    "+5": response(b"Content-Length: +5", body=b"hello"),
    "-1": response(b"Content-Length: -1", body=b"hello"),
    "0x5": response(b"Content-Length: 0x5", body=b"hello"),
    "empty length": response(b"Content-Length:", body=b"hello"),
    "length over 64 bit": response(b"Content-Length: 18446744073709551621", body=b"hello"),
    "two codings": response(TE, TE, body=BODY),
    "coding list": response(b"Transfer-Encoding: gzip, chunked", body=BODY),
    "unknown coding": response(b"Transfer-Encoding: xchunked", body=BODY),
    "coding behind a vertical tab": response(b"Transfer-Encoding:\x0bchunked", body=BODY),
    "coding before a no-break space": response(b"Transfer-Encoding: chunked\xa0", body=BODY),
    "status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 5\r\n\r\nhello",
    "status of four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 5\r\n\r\nhello",
    "status with a sign": b"HTTP/1.1 +20 OK\r\nContent-Length: 5\r\n\r\nhello",
    "status 000": b"HTTP/1.1 000 OK\r\nContent-Length: 5\r\n\r\nhello",
    "CR in the phrase": b"HTTP/1.1 200 OK\rX: y\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "http/1.1": b"http/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "leading empty line": b"\r\n" + response(CL, body=b"hello"),
    "leading space": b" " + response(CL, body=b"hello"),
    "leading LF": b"\n" + response(CL, body=b"hello"),
    "ICY": b"ICY 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "CVE-2024-23326 Envoy: a switch of protocols without an Upgrade request": response(
        b"Upgrade: websocket", b"Connection: Upgrade", status=b"101 Switching Protocols"
    ),
    "h2c without an Upgrade request": response(b"Upgrade: h2c", b"Connection: Upgrade", status=b"101 Switching Protocols"),
}  # fmt: skip


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("first", REFUSED.values(), ids=REFUSED)
def test_response_without_one_reading_is_502_and_the_next_client_is_unharmed(first: bytes, apart: bool) -> None:
    met, other = answers(first, GET, apart)
    assert (met.status, b'"bad_response"' in met.body) == (502, True), met
    assert other.body == b"clean"


REPAIRED: dict[str, tuple[bytes, list[tuple[str, str]]]] = {
    "folded header": (response(b"X: a", b" Set-Cookie: b", CL, body=b"hello"), [("X", "a Set-Cookie: b")]),
    "space before the colon": (response(b"X\t : a", b"Content-Length : 5", body=b"hello"), [("X", "a")]),
    "two lengths that are one": (response(CL, CL, b"X: a", body=b"hello"), [("X", "a")]),
}


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize(("first", "headers"), REPAIRED.values(), ids=REPAIRED)
def test_response_that_a_gateway_may_repair_is_and_the_next_client_is_unharmed(
    first: bytes, headers: list[tuple[str, str]], apart: bool
) -> None:
    """RFC 9112 §5.1, §5.2 and §6.3."""
    met, other = answers(first, GET, apart)
    assert (met.status, met.body, met.value("Content-Length")) == (200, b"hello", "5")
    assert [pair for pair in met.headers if pair[0] not in ("Content-Length", "Date")] == headers
    assert other.body in (b"clean", b"reused")


# The request, what the client gets: status, body, whether it is complete.
CUT: dict[str, tuple[bytes, bytes, bytes]] = {
    "CVE-2013-2028 nginx: chunk size that is negative": (GET, response(TE, body=b"ffffffffffffffed\r\nhello"), b""),
    "chunk size 0x5": (GET, response(TE, body=b"0x5\r\nhello\r\n0\r\n\r\n"), b""),
    "chunk size +5": (GET, response(TE, body=b"+5\r\nhello\r\n0\r\n\r\n"), b""),
    "CVE-2025-22871 Go: LF after the size": (GET, response(TE, body=b"5\nhello\r\n0\r\n\r\n"), b""),
    "CVE-2025-43859 h11: no CRLF after a chunk": (GET, response(TE, body=b"5\r\nhelloXX0\r\n\r\n"), b"hello"),
    "funky chunks: CR in an extension": (GET, response(TE, body=b"5;a\rb\r\nhello\r\n0\r\n\r\n"), b""),
    "extension without end": (GET, response(TE, body=b"5;" + b"a" * 5_000 + b"\r\nhello\r\n0\r\n\r\n"), b""),
    "CVE-2023-45648 Tomcat: invalid trailer": (GET, response(TE, body=b"5\r\nhello\r\n0\r\nX : a\r\n\r\n"), b"hello"),
    "trailers without end": (GET, response(TE, body=b"5\r\nhello\r\n0\r\n" + b"X: y\r\n" * 5_000), b"hello"),
}


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize(("request_", "first", "body"), CUT.values(), ids=CUT)
def test_response_whose_coding_breaks_is_never_complete_and_the_next_client_is_unharmed(
    request_: bytes, first: bytes, body: bytes, apart: bool
) -> None:
    met, other = answers(first, request_, apart and len(first) < 3_000)
    assert met.status == 502 or (met.status, met.complete) == (200, False), met
    assert met.status == 502 or body.startswith(met.body)
    assert other.body == b"clean"


TOO_MUCH: dict[str, tuple[bytes, bytes, int, bytes]] = {
    "response-queue poisoning: two responses": (GET, response(CL, body=b"hello") + POISON, 200, b"hello"),
    "two responses, the first chunked": (GET, response(TE, body=BODY) + POISON, 200, b"hello"),
    "two responses, the first empty": (GET, response(b"Content-Length: 0") + POISON, 200, b""),
    "one byte too many": (GET, response(CL, body=b"hello!"), 200, b"hello"),
    "CRLF too many": (GET, response(CL, body=b"hello\r\n"), 200, b"hello"),
    "HEAD with a body": (HEAD_REQUEST, response(CL, body=b"hello"), 200, b""),
    "HEAD with a body that is a response": (HEAD_REQUEST, response(b"Content-Length: %d" % len(POISON), body=POISON), 200, b""),
    "HEAD with chunks": (HEAD_REQUEST, response(TE, body=BODY), 200, b""),
    "204 with a body": (GET, response(CL, body=b"hello", status=b"204 No Content"), 204, b""),
    "204 with a response": (GET, response(status=b"204 No Content") + POISON, 204, b""),
    "304 with a body": (GET, response(CL, body=b"hello", status=b"304 Not Modified"), 304, b""),
    "304 with chunks": (GET, response(TE, body=BODY, status=b"304 Not Modified"), 304, b""),
    "interim, final, and one more": (GET, response(status=b"100 Continue") + response(CL, body=b"hello") + POISON, 200, b"hello"),
    "trailers that look like a response": (
        GET, response(TE, body=b"5\r\nhello\r\n0\r\nSet-Cookie: a=1\r\nContent-Length: 5\r\n\r\n") + POISON, 200, b"hello",
    ),
}  # fmt: skip


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize(("request_", "first", "status", "body"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_response_with_more_than_was_asked_for_never_reaches_the_next_client(
    request_: bytes, first: bytes, status: int, body: bytes, apart: bool
) -> None:
    met, other = answers(first, request_, apart)
    assert (met.status, met.body, met.complete) == (status, body, True)
    assert met.values("Set-Cookie") == [], "a trailer was merged into the head"
    assert other.body == b"clean"


HOP_BY_HOP = [
    "Connection: X-Internal, close", "X-Internal: 1", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "TE: trailers",
    "Trailer: X-Sum", "Upgrade: h2c",
]  # fmt: skip


def test_response_headers_of_the_backends_hop_are_not_passed_on() -> None:
    met, _ = answers(response(*[line.encode() for line in HOP_BY_HOP], CL, body=b"hello"), GET, apart=False)
    names = {name.lower() for name, _ in met.headers}
    assert not names & {"connection", "x-internal", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"}, met.headers


def test_response_connection_cannot_take_away_framing_or_cookies() -> None:
    lines = (b"Connection: Content-Length, Set-Cookie, Content-Type", b"Set-Cookie: a=1", b"Content-Type: text/plain", CL)
    met, _ = answers(response(*lines, body=b"hello"), GET, apart=False)
    assert (met.values("Set-Cookie"), met.value("Content-Type"), met.body) == (["a=1"], "text/plain", b"hello")


RESPONSES: dict[str, Callable[[], bytes]] = {
    "Set-Cookie twice": lambda: response(b"Set-Cookie: a=1, b", b"Set-Cookie: c=2", CL, body=b"hello"),
    "bytes above ASCII": lambda: response(b"X: caf\xe9", CL, body=b"hello"),
}


@pytest.mark.parametrize("made", RESPONSES.values(), ids=RESPONSES)
def test_response_headers_that_look_odd_are_passed_on_byte_for_byte(made: Callable[[], bytes]) -> None:
    first = made()
    met, _ = answers(first, GET, apart=False)
    lines = first.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    assert [line for line in met.head.split(b"\r\n")[1:] if line in lines] == lines
