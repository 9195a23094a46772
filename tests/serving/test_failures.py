"""Apps that fail, responses that cannot be sent or break off (PEP 3333)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from rgate.chain.exchange import ENVIRON_KEY, Exchange

from ..support.raw_client import RawClient
from ..support.serving import GET, GET_10, HEAD, Body, respond_with, responses, serving
from ..support.waiting import passed

Headers = list[tuple[str, str]]


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("200 OK", [("X", "a\r\nY: b")]),
        ("200 OK", [("X", "a\nb")]),
        ("200 OK", [("X", "\x00")]),
        ("200 OK", [("X Y", "a")]),
        ("200 OK", [("X", "\u20ac")]),
        ("200 OK", [("X\r\nY", "a")]),
        ("200 OK", [("Content-Length", "five")]),
        ("200 OK", [("Content-Length", "-1")]),
        ("200 OK", [("Content-Length", "1"), ("Content-Length", "1")]),
        ("200 OK\r\nX: y", []),
        ("200 O\x00K", []),
        ("20 OK", []),
        ("2000 OK", []),
        ("abc OK", []),
        ("100 Continue", []),
        ("101 Switching Protocols", []),
        ("600 X", []),
        ("\u0662\u0660\u0660 OK", []),
    ],
)
@pytest.mark.parametrize("body", [[b"x"], (b"x",)], ids=["whole", "blocks"])
def test_response_that_cannot_be_sent_is_500(status: str, headers: Headers, body: Any, caplog: pytest.LogCaptureFixture) -> None:
    (response,), _ = responses(respond_with(body, *headers, status=status), GET)
    assert response.line == "HTTP/1.1 500 Internal Server Error"
    assert json.loads(response.body)["reason"] == "internal"
    assert caplog.records[-1].levelname == "ERROR"


def test_response_failure_names_the_exchange() -> None:
    exchange = Exchange()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[ENVIRON_KEY] = exchange
        raise ValueError("a secret")

    (response,), _ = responses(app, GET)
    assert json.loads(response.body)["request_id"] == exchange.id
    assert b"secret" not in response.body


FAILURES: dict[str, Callable[..., Iterable[bytes]]] = {}


def failing(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    FAILURES[app.__name__] = app
    return app


@failing
def raises_at_once(environ: Any, start_response: Any) -> Iterable[bytes]:
    raise ValueError


@failing
def raises_after_start_response(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "5")])
    raise ValueError


@failing
def raises_at_the_first_block(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    return Body(ValueError())


@failing
def never_calls_start_response(environ: Any, start_response: Any) -> Iterable[bytes]:
    return [b"x"]


@failing
def never_calls_start_response_with_blocks(environ: Any, start_response: Any) -> Iterable[bytes]:
    return Body(b"x")


@failing
def calls_start_response_twice(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    start_response("200 OK", [])
    return []


@failing
def returns_none(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", [])


@pytest.mark.parametrize("app", FAILURES.values(), ids=FAILURES)
def test_app_that_fails_before_its_head_is_500_and_the_connection_ends(app: Callable[..., Iterable[bytes]]) -> None:
    for request in (GET, HEAD):
        with serving(app) as server, RawClient(server.url) as client:
            client.send(request)
            response = client.response(request.partition(b" ")[0].decode())
            assert (response.status, response.value("Connection"), response.complete) == (500, "close", True)
            assert client.is_closed()


def test_app_that_yields_text_is_cut_off_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with serving(respond_with(("text",))) as server, RawClient(server.url) as client:  # type: ignore[arg-type]
        client.send(GET)
        assert not client.rest().endswith(b"0\r\n\r\n")
    assert "the response broke off" in caplog.text


def test_app_that_fails_hurts_no_other_client() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/bad":
            raise SystemError
        start_response("200 OK", [])
        return [b"good"]

    with serving(app) as server, RawClient(server.url) as other:
        assert other.get().body == b"good"
        for _ in range(5):
            with RawClient(server.url) as client:
                assert client.get("/bad").status == 500
            assert other.get().body == b"good"


CUTS: dict[str, tuple[Any, Headers, bytes]] = {
    "chunked": ((b"he", ValueError()), [], GET),
    "known length": ((b"he", ValueError()), [("Content-Length", "5")], GET),
    "known length, too short": ((b"he",), [("Content-Length", "5")], GET),
    "until the end of the connection": ((b"he", ValueError()), [], GET_10),
}


@pytest.mark.parametrize(("blocks", "headers", "request_"), CUTS.values(), ids=CUTS)
def test_response_that_breaks_off_never_looks_complete(blocks: Any, headers: Headers, request_: bytes) -> None:
    body = Body(*blocks)
    with serving(respond_with(body, *headers)) as server, RawClient(server.url) as client:
        client.send(request_)
        response = client.response()
        assert not response.complete, "a client would take this for the whole response"
        assert response.body in (b"he", b"")  # a reset may overtake it
        assert client.is_closed()
        passed(body.closed)


def test_response_whole_block_too_short_breaks_off() -> None:
    with serving(respond_with([b"he"], ("Content-Length", "5"))) as server, RawClient(server.url) as client:
        assert not client.get().complete
