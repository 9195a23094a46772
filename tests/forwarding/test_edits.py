"""Edits of the environ by middleware reach the backend, or are a fault of the gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

import pytest

from rgate import Exchange, Gateway, Middleware, hookimpl
from rgate.forwarding.forwarded import VIA
from rgate.testing import ScriptedBackend

from ..support.forwarding import forwarding
from ..support.raw_client import RawClient

FORWARDED = (
    "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: example.com\r\nX-Forwarded-Port: 80\r\n"
    f"Via: {VIA}\r\n"
).encode()


def get(*headers: str, target: str = "/", method: str = "GET") -> bytes:
    return "".join(f"{line}\r\n" for line in [f"{method} {target} HTTP/1.1", "Host: example.com", *headers, ""]).encode("latin-1")


Edit = Callable[[dict[str, Any]], object]


class Editing:
    """A plugin whose middleware edits environ as a test wants it."""

    def __init__(self, edit: Edit) -> None:
        self.edit = edit

    @hookimpl
    def rgate_middlewares(self, gateway: Gateway) -> Middleware:
        def wrap(app: Any, options: object) -> Any:
            def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
                self.edit(environ)
                inner: Iterable[bytes] = app(environ, start_response)
                return inner

            return call

        return Middleware("editing", wrap)


EDITS: dict[str, tuple[Edit, str]] = {
    "nothing": (lambda environ: None, "GET /a%2Fb?q HTTP/1.1\r\nHost: example.com\r\nX-A: 1\r\nX-A: 2\r\nAccept: x\r\n"),
    "header set": (
        lambda environ: environ.update(HTTP_X_A="3"),
        "GET /a%2Fb?q HTTP/1.1\r\nHost: example.com\r\nAccept: x\r\nX-A: 3\r\n",
    ),
    "header added": (
        lambda environ: environ.update(HTTP_X_USER="caf\xe9"),
        "GET /a%2Fb?q HTTP/1.1\r\nHost: example.com\r\nX-A: 1\r\nX-A: 2\r\nAccept: x\r\nX-User: caf\xe9\r\n",
    ),
    "header removed": (
        lambda environ: environ.pop("HTTP_X_A"),
        "GET /a%2Fb?q HTTP/1.1\r\nHost: example.com\r\nAccept: x\r\n",
    ),
    "path": (
        lambda environ: environ.update(PATH_INFO="/new path"),
        "GET /new%20path?q HTTP/1.1\r\nHost: example.com\r\nX-A: 1\r\nX-A: 2\r\nAccept: x\r\n",
    ),
    "query": (
        lambda environ: environ.update(QUERY_STRING="r=%20"),
        "GET /a%2Fb?r=%20 HTTP/1.1\r\nHost: example.com\r\nX-A: 1\r\nX-A: 2\r\nAccept: x\r\n",
    ),
    "method": (
        lambda environ: environ.update(REQUEST_METHOD="PURGE"),
        "PURGE /a%2Fb?q HTTP/1.1\r\nHost: example.com\r\nX-A: 1\r\nX-A: 2\r\nAccept: x\r\n",
    ),
}


@pytest.mark.parametrize(("edit", "head"), EDITS.values(), ids=EDITS)
def test_edit_of_environ_reaches_the_backend(backend: ScriptedBackend, edit: Edit, head: str) -> None:
    with forwarding(backend, plugins={"editing": Editing(edit)}) as live, RawClient(live.url) as client:
        client.send(get("X-A: 1", "X-A: 2", "Accept: x", target="/a%2Fb?q"))
        assert client.response().status == 200
    assert backend.requests[-1].head == head.encode("latin-1") + FORWARDED + b"\r\n"


def test_edit_of_host_goes_to_the_backend_and_a_removed_one_is_made_up_for(backend: ScriptedBackend) -> None:
    with forwarding(backend, plugins={"editing": Editing(lambda e: e.update(HTTP_HOST="new.example"))}) as live:
        with RawClient(live.url) as client:
            client.get()
        assert backend.requests[-1].values("Host") == ["new.example"]
        assert backend.requests[-1].values("X-Forwarded-Host") == ["x"], "it is what the client has sent"
    with forwarding(backend, plugins={"editing": Editing(lambda e: e.pop("HTTP_HOST"))}) as live:
        with RawClient(live.url) as client:
            client.get()
        assert backend.requests[-1].values("Host") == [f"127.0.0.1:{backend.port}"]
        assert backend.requests[-1].values("X-Forwarded-Host") == ["x"]


def test_edit_of_the_body_reaches_the_backend(backend: ScriptedBackend) -> None:
    def edit(environ: dict[str, Any]) -> None:
        body = environ["wsgi.input"].read().upper() + b"!"
        environ["wsgi.input"] = BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))

    with forwarding(backend, plugins={"editing": Editing(edit)}) as live, RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
        assert client.response().status == 200
    assert (backend.requests[-1].values("Content-Length"), backend.requests[-1].body) == (["6"], b"HELLO!")


def test_edit_by_removing_the_body_reaches_the_backend(backend: ScriptedBackend) -> None:
    def edit(environ: dict[str, Any]) -> None:
        environ["wsgi.input"].read()
        del environ["CONTENT_LENGTH"]

    with forwarding(backend, plugins={"editing": Editing(edit)}) as live, RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
        assert client.response().status == 200
    assert (backend.requests[-1].values("Content-Length"), backend.requests[-1].body) == ([], b"")


BAD_EDITS: dict[str, Edit] = {
    "line break in a header": lambda environ: environ.update(HTTP_X="a\r\nY: b"),
    "header that is not text": lambda environ: environ.update(HTTP_X="\u20ac"),
    "line break in the query": lambda environ: environ.update(QUERY_STRING="a HTTP/1.1\r\nX: y"),
    "path with dots": lambda environ: environ.update(PATH_INFO="/a/../../b"),
    "path without a slash": lambda environ: environ.update(PATH_INFO="b"),
    "method that is not a token": lambda environ: environ.update(REQUEST_METHOD="GET / HTTP/1.1\r\nX: y\r\n\r\nGET"),
    "body that was read": lambda environ: environ["wsgi.input"].read(),
}


@pytest.mark.parametrize("edit", BAD_EDITS.values(), ids=BAD_EDITS)
def test_edit_that_cannot_be_sent_is_a_fault_of_the_gateway(backend: ScriptedBackend, edit: Edit) -> None:
    count = len(backend.requests)
    with forwarding(backend, plugins={"editing": Editing(edit)}) as live, RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
        response = client.response()
        assert (response.status, b'"internal"' in response.body) == (500, True)
    assert len(backend.requests) == count


def test_edit_of_the_path_leads_out_of_a_stripped_prefix(backend: ScriptedBackend) -> None:
    editing = {"editing": Editing(lambda environ: environ.update(PATH_INFO="/elsewhere"))}
    with (
        forwarding(backend, route={"path_prefix": "/api", "strip_prefix": True}, plugins=editing) as live,
        RawClient(live.url) as client,
    ):
        assert client.get("/api/x?q").status == 200
    assert backend.requests[-1].line == "GET /elsewhere?q HTTP/1.1"


def test_chain_that_chooses_no_endpoint_is_a_fault_of_the_gateway(backend: ScriptedBackend) -> None:
    class Forgetting:
        @hookimpl
        def rgate_middlewares(self, gateway: Gateway) -> Middleware:
            def wrap(app: Any, options: object) -> Any:
                def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
                    Exchange.of(environ).endpoint = None
                    inner: Iterable[bytes] = app(environ, start_response)
                    return inner

                return call

            return Middleware("forgetting", wrap, after="selection")

    with forwarding(backend, plugins={"forgetting": Forgetting()}) as live, RawClient(live.url) as client:
        assert client.get().status == 500
