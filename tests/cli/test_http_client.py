"""The HTTP client of the commands: URLs, and every form in which a response may arrive."""

from __future__ import annotations

import pytest

from rgate.cli.http_client import Address, GatewayUnreachable, ask, parse_url, request
from rgate.testing import ScriptedBackend, ScriptedConnection, http_response


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:9000", Address(False, "127.0.0.1", 9000)),
        ("127.0.0.1:9000", Address(False, "127.0.0.1", 9000)),
        ("https://gateway.example/", Address(True, "gateway.example", 443)),
        ("http://[::1]/-/live", Address(False, "[::1]", 80, "/-/live")),
        ("unix:/run/rgate/8080.sock", Address(False, "localhost", 80, "", "/run/rgate/8080.sock")),
    ],
)
def test_url_is_parsed(url: str, address: Address) -> None:
    assert parse_url(url) == address


def fetch(response: bytes, max_bytes: int = 1_000) -> tuple[int, bytes]:
    """Status and body of a response in these bytes, after which the connection is closed."""

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(response)

    with ScriptedBackend(script) as backend:
        found = request(parse_url(backend.url), "/", max_bytes=max_bytes)
        return found.status, found.body


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("response", "body"),
    [
        (http_response(b"hello"), b"hello"),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
        (CHUNKED + b"3;a=b\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", b"hello"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + http_response(b"hello"), b"hello"),
    ],
    ids=["length", "closed", "chunked", "interim"],
)
def test_body_is_read_to_its_end(response: bytes, body: bytes) -> None:
    assert fetch(response) == (200, body)


@pytest.mark.parametrize(
    "response", [http_response(b"hello"), b"HTTP/1.0 200 OK\r\n\r\nhello", CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"]
)
def test_body_is_bounded(response: bytes) -> None:
    assert fetch(response, max_bytes=3) == (200, b"hel")


@pytest.mark.parametrize(
    "response",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", CHUNKED + b"9\r\nhello", CHUNKED + b"5\r\nhello\r\n", b"SSH\r\n"],
)
def test_response_that_is_incomplete_or_not_http_is_an_error(response: bytes) -> None:
    with pytest.raises(ValueError, match=r"closed before the end|does not speak HTTP"):
        fetch(response)


def test_connection_that_is_kept_open_does_not_delay_the_answer() -> None:
    with ScriptedBackend(http_response(b"[1]")) as backend:
        assert ask(backend.url, "/x", {"by": "a b", "since": None}) == ([1], f"{backend.url}/x?by=a+b")
        assert backend.requests[0].line == "GET /x?by=a+b HTTP/1.1"
        ask(backend.url, "/x", {}, method="POST")
        assert backend.requests[1].values("Content-Length") == ["0"]


def test_redirect_is_followed_for_get_only() -> None:
    with ScriptedBackend(http_response(b"[1]")) as target:
        moved = http_response(b"", "308 Permanent Redirect", [("Location", f"{target.url}/there?x=1")])
        with ScriptedBackend(moved) as backend:
            assert ask(backend.url, "/x", {})[0] == [1]
            assert [each.line for each in target.requests] == ["GET /there?x=1 HTTP/1.1"]
            with pytest.raises(GatewayUnreachable, match="answers 308"):
                ask(backend.url, "/x", {}, method="POST")


def test_redirects_in_a_loop_end() -> None:
    with (
        ScriptedBackend(http_response(b"", "302 Found", [("Location", "/again")])) as backend,
        pytest.raises(GatewayUnreachable, match="answers 302"),
    ):
        ask(backend.url, "/x", {})
