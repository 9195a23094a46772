"""Trailer fields (RFC 9110 §6.5) are carried beside WSGI, on the exchange, both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from rgate import Exchange, Middleware, hookimpl
from rgate.testing import ScriptedBackend, ScriptedConnection

from ..support.forwarding import forwarding
from ..support.raw_client import RawClient, RawResponse

CHUNKED = b"HTTP/1.1 200 OK\r\nTrailer: X-Sum, Content-Length\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b"2\r\nok\r\n"
END = b"0\r\nX-Sum: 0\r\nContent-Length: 99\r\nSet-Cookie: a=1\r\ngrpc-status: 0\r\n\r\n"
PARTS: dict[str, list[bytes]] = {
    "at once": [CHUNKED + BODY + END],
    "head apart": [CHUNKED, BODY + END],
    "end apart": [CHUNKED + BODY, END],
    "in pieces": [CHUNKED, *(bytes([byte]) for byte in BODY + END)],
}


def sending(*parts: bytes) -> Callable[[ScriptedConnection], None]:
    def script(connection: ScriptedConnection) -> None:
        while connection.read_request() is not None:
            for part in parts:
                connection.send(part)

    return script


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_trailers_of_a_response_are_passed_on_to_clients_that_take_them(parts: list[bytes]) -> None:
    with ScriptedBackend(sending(*parts)) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        for _ in range(3):
            response = client.get("/", "TE: trailers", "Connection: TE")
            assert (response.body, response.trailers) == (b"ok", b"X-Sum: 0\r\ngrpc-status: 0\r\n")
            assert response.values("Trailer") == ["X-Sum"]
            assert not {"X-Sum", "grpc-status", "Set-Cookie", "Content-Length"} & {name for name, _ in response.headers}
        assert len(backend.connections) == 1
        assert backend.requests[0].values("TE") == ["trailers"]
        assert backend.requests[0].values("Connection") == ["TE"]


@pytest.mark.parametrize(
    "request_", ["GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nTE: gzip\r\n", "GET / HTTP/1.0\r\nTE: trailers\r\n"]
)
def test_trailers_of_a_response_are_kept_from_other_clients(request_: str) -> None:
    with ScriptedBackend(sending(*PARTS["end apart"])) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(f"{request_}Host: x\r\n\r\n".encode())
        response = client.response()
        assert (response.body, response.trailers, response.values("Trailer")) == (b"ok", b"", [])
        assert backend.requests[0].values("TE") == []


POST = b"POST / HTTP/1.1\r\nHost: x\r\nTrailer: X-Sum, Host\r\nTransfer-Encoding: chunked\r\n\r\n"
FORBIDDEN = b"Host: evil\r\nX-Forwarded-For: 1.2.3.4\r\nX_User: me\r\nAuthorization: Basic x\r\n"
SENT = b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n" + FORBIDDEN + b"X-More: 2\r\n\r\n"
GOT = b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n"


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "apart"])
def test_trailers_of_a_request_are_passed_on(apart: bool) -> None:
    with ScriptedBackend() as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(*([POST, SENT[:12], SENT[12:]] if apart else [POST + SENT]))
        assert client.response().body == b"ok"
        request = backend.requests[0]
        assert (request.body, request.values("Trailer"), request.values("X-Sum")) == (GOT, ["X-Sum"], [])
        assert len(request.values("Host")) == 1
        assert client.get().status == 200, "nothing of them is taken for a request"


@pytest.mark.parametrize("body", [b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"], ids=["empty", "with a body"])
def test_trailers_that_are_announced_and_do_not_come_are_not_announced_to_the_backend(body: bytes) -> None:
    with ScriptedBackend() as backend, forwarding(backend) as live, RawClient(live.url) as client:
        for _ in range(3):  # the head is read anew, remembered, and known
            client.send(POST + body)
            assert client.response().body == b"ok"
            request = backend.requests[-1]
            assert (request.values("Trailer"), request.values("Transfer-Encoding")) == ([], [])
        client.send(POST + SENT)
        assert client.response().body == b"ok"
        assert backend.requests[-1].values("Trailer") == ["X-Sum"], "the cached head still has it"


def test_trailers_of_a_request_do_not_say_again_what_its_head_says() -> None:
    """A backend that merges them into the head must not find there what the chain has not seen."""
    post = POST.replace(b"Host: x\r\n", b"Host: x\r\nX-User: me\r\n")
    with ScriptedBackend() as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(post + b"0\r\nX-User: admin\r\nX-Sum: 1\r\n\r\n")
        assert client.response().body == b"ok"
        assert backend.requests[0].body == b"0\r\nX-Sum: 1\r\n\r\n"


@pytest.mark.parametrize(
    "end", [b"0\r\nX: a\nb\r\n\r\n", b"0\r\nnothing\r\n\r\n", b"0\r\n" + b"X: %b\r\n" % (b"a" * 1_000) * 17 + b"\r\n"]
)
def test_trailers_that_are_malformed_or_too_many_are_refused(end: bytes) -> None:
    with ScriptedBackend(sending(CHUNKED + BODY, end)) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        response = client.get("/", "TE: trailers")
        assert (response.status == 502, response.complete) in ((True, True), (False, False))
        with RawClient(live.url) as other:
            other.send(POST + b"5\r\nhello\r\n" + end)
            assert other.response().status == 400


class Trailing:
    """A plugin that looks at the trailers of both sides, takes some away, and adds its own."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    @hookimpl
    def rgate_middlewares(self) -> Middleware:
        return Middleware("trailing", lambda app, options: self.middleware(app))

    def middleware(self, app: Any) -> Any:
        def trailing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            exchange = Exchange.of(environ)
            exchange.request_trailers.append(("X-Mine", "1"))

            body = app(environ, start_response)
            return Ending(body, lambda: self.ended(exchange)) if type(body) is not list else body

        return trailing

    def ended(self, exchange: Exchange) -> None:
        self.seen.append(list(exchange.response_trailers))
        exchange.response_trailers[:] = [("X-Own", "2")]


class Ending:
    """A body, and something to do at its end."""

    def __init__(self, body: Any, at_end: Callable[[], object]) -> None:
        self.blocks = iter(body)
        self.close = body.close
        self.at_end = at_end

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        for block in self.blocks:
            return block
        self.at_end()
        raise StopIteration


def trailing(request: bytes, backend_sends: list[bytes]) -> tuple[Trailing, RawResponse, bytes]:
    plugin = Trailing()
    plugins = {"trailing": plugin}
    with (
        ScriptedBackend(sending(*backend_sends)) as backend,
        forwarding(backend, plugins=plugins) as live,
        RawClient(live.url) as client,
    ):
        client.send(request)
        return plugin, client.response(), backend.requests[0].head + backend.requests[0].body


def test_trailers_can_be_changed_by_plugins() -> None:
    post = POST.replace(b"Host: x\r\n", b"Host: x\r\nTE: trailers\r\n")
    plugin, response, received = trailing(post + SENT, PARTS["end apart"])
    assert plugin.seen == [[("X-Sum", "0"), ("grpc-status", "0")]]
    assert response.trailers == b"X-Own: 2\r\n"
    assert received.endswith(b"\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\nX-Mine: 1\r\n\r\n")


@pytest.mark.parametrize("body", [b"hello", b""])
def test_trailers_that_a_plugin_adds_to_a_body_of_known_length_make_it_chunked(body: bytes) -> None:
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    _, response, received = trailing(request, PARTS["end apart"])
    assert (response.status, response.trailers) == (200, b"")
    assert b"Content-Length" not in received
    assert received.endswith(b"\r\n\r\n" + (b"5\r\nhello\r\n" if body else b"") + b"0\r\nX-Mine: 1\r\n\r\n")
