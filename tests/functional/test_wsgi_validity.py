"""Every joint of the chain is valid WSGI: the standard validator around each of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

import rgate.runtime.gateway
from rgate import Gateway, Middleware
from rgate.chain.pipeline import compose
from rgate.plugins import BUILTIN
from rgate.serving.server import Server
from rgate.testing import ScriptedBackend, ScriptedConnection, closed_port_url, http_response, running_gateway

from ..support.raw_client import RawClient
from ..support.serving import serving

App = Callable[..., Iterable[bytes]]
TEXT = ("Content-Type", "text/plain")


def backend_script(connection: ScriptedConnection) -> None:
    while (request := connection.read_request()) is not None:
        _, target, _ = request.line.split(" ")
        match target:
            case "/streamed":
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
                connection.send(b"3\r\none\r\n")
                connection.send(b"3\r\ntwo\r\n0\r\n\r\n")
            case "/nothing":
                connection.send(b"HTTP/1.1 204 No Content\r\n\r\n")
            case "/json":
                connection.send(http_response(b'{"a": 1}', headers=[("Content-Type", "application/json")]))
            case "/broken":
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\nhello")
                return
            case "/bad":
                connection.send(b"nonsense\r\n\r\n")
                return
            case _ if request.line.startswith("HEAD "):
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\n")
            case _:
                connection.send(http_response(request.body or b"hello", headers=[TEXT]))


@pytest.fixture(params=["passthrough", "envelope"])
def validated(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[Gateway, Server, set[str]]]:
    """A gateway with a validator at every joint, on a real socket; and which middleware there is one around."""
    around: set[str] = set()

    def validating(middleware: Middleware) -> Middleware:
        def wrap(app: App, options: object) -> App:
            around.add(middleware.name)
            return validator(middleware.wrap(app, options))

        return replace(middleware, wrap=wrap)

    def compose_validated(app: App, middlewares: Sequence[Middleware], options: Callable[[str], Any]) -> App:
        return compose(validator(app), [validating(middleware) for middleware in middlewares], options)

    monkeypatch.setattr(rgate.runtime.gateway, "compose", compose_validated)
    with ScriptedBackend(backend_script) as backend, closed_port_url() as nobody:
        config = {
            "backends": [
                {"name": "backend", "endpoints": [backend.url]},
                {"name": "gone", "match_labels": ["app=gone"]},
                {"name": "refusing", "endpoints": [nobody]},
            ],
            "routes": [
                {"path_prefix": "/", "backend": "backend"},
                {"path_prefix": "/gone", "backend": "gone"},
                {"path_prefix": "/refusing", "backend": "refusing"},
            ],
            "plugins": {
                "normalize": {"format": request.param},
                "stats": {"database": f"sqlite:///{tmp_path}/stats.db"},
            },
        }
        with running_gateway(config) as gateway, serving(validator(gateway)) as server:
            yield gateway, server, around


REQUESTS: dict[str, tuple[bytes, int]] = {
    "GET": (b"GET /x?q HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    "HEAD": (b"HEAD /x HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    "POST": (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 200),
    "large POST": (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000, 200),
    "chunked POST": (b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 200),
    "streamed": (b"GET /streamed HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    "204": (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 204),
    "JSON": (b"GET /json HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    "local route": (b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
    "no endpoint": (b"GET /gone HTTP/1.1\r\nHost: x\r\n\r\n", 503),
    "refused": (b"GET /refusing HTTP/1.1\r\nHost: x\r\n\r\n", 503),
    "no response": (b"GET /bad HTTP/1.1\r\nHost: x\r\n\r\n", 502),
}


def test_chain_is_valid_wsgi_at_every_joint(
    validated: tuple[Gateway, Server, set[str]], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway, server, around = validated
    with RawClient(server.url) as client:
        for name, (request, status) in REQUESTS.items():
            client.send(request)
            response = client.response(request.partition(b" ")[0].decode())
            assert response.status == status, f"{name}: {response.body!r} {caplog.text}"
        client.send(b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n")
        broken = client.response()
        if gateway.options("normalize").format == "envelope":  # which has the whole body before it answers
            assert (broken.status, broken.complete) == (502, True)
        else:
            assert (broken.status, broken.complete) == (200, False)
    with RawClient(server.url) as client:
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        assert client.response().status == 400
    assert around == set(gateway.chains["/"])
    assert around <= set(BUILTIN)
    assert "AssertionError" not in caplog.text
    assert "without being closed" not in capsys.readouterr().err


def test_validator_notices_what_is_not_valid() -> None:
    """The test above would be worth nothing if it could not fail."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("X\n", "y")])
        return [b""]

    with warnings.catch_warnings(), serving(validator(app)) as server, RawClient(server.url) as client:
        assert client.get().status == 500
