"""Plain HTTP beside TLS: sent to https from the port that is for it, refused at the port that is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rgate import Exchange, Middleware, hookimpl
from rgate.testing import ScriptedBackend

from ..support.forwarding import Forwarding, forwarding
from ..support.raw_client import RawClient, RawResponse
from ..support.serving import connection_of
from ..support.tls_client import SHOP, TLS, SecureClient


def redirecting(**more: Any) -> dict[str, Any]:
    return {"tls": {"certificate": SHOP.both, "redirect_port": 0, **more}}


def plain(live: Forwarding) -> RawClient:
    return RawClient(f"http://127.0.0.1:{live.server.redirect_port}")


def asked(request: bytes, **more: Any) -> RawResponse:
    """The answer of the plain port to a request; {port} in it is the public one."""
    with ScriptedBackend() as backend, forwarding(backend, **redirecting(public_port=443, **more)) as live:
        with plain(live) as client:
            client.send(request)
            response = client.response(request.split(b" ")[0].decode())
        assert backend.requests == [], "it has been forwarded"
    return response


@pytest.mark.parametrize(
    ("target", "host", "location"),
    [
        ("/", "shop.example", "https://shop.example/"),
        ("/a%2Fb//c;d?x=1&y", "shop.example", "https://shop.example/a%2Fb//c;d?x=1&y"),
        ("/x", "shop.example:80", "https://shop.example/x"),
        ("/x", "[::1]:8080", "https://[::1]/x"),
        ("/x", "[::1]", "https://[::1]/x"),
        ("//evil.example/x", "shop.example", "https://shop.example//evil.example/x"),
        ("http://other.example/x?y", "shop.example", "https://other.example/x?y"),
    ],
)
def test_request_is_sent_to_its_https_url(target: str, host: str, location: str) -> None:
    response = asked(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert (response.status, response.value("Location")) == (308, location)
    assert json.loads(response.body)["reason"] == "https_only"


def test_options_of_the_server_are_asked_for_over_https_too() -> None:
    response = asked(b"OPTIONS * HTTP/1.1\r\nHost: shop.example\r\n\r\n")
    assert (response.status, response.value("Location")) == (308, "https://shop.example/")


def test_port_in_the_answer_is_the_one_that_is_listened_at() -> None:
    with ScriptedBackend() as backend, forwarding(backend, **redirecting()) as live, plain(live) as client:
        location = client.get("/x", method="HEAD").value("Location")
        assert location == f"https://x:{live.server.port}/x"
        with SecureClient(live.url) as secure:
            assert secure.get("/x").status == 200
        assert [request.line for request in backend.requests] == ["GET /x HTTP/1.1"]


def test_body_is_not_waited_for() -> None:
    response = asked(b"POST /x HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
    assert response.status == 308
    assert response.value("Connection") == "close"


def test_request_without_a_host_has_nowhere_to_go() -> None:
    assert asked(b"GET / HTTP/1.0\r\n\r\n").status == 400


def test_request_that_is_malformed_is_not_sent_anywhere() -> None:
    response = asked(b"GET /../x HTTP/1.1\r\nHost: shop.example\r\n\r\n")
    assert (response.status, response.value("Location")) == (400, None)


def test_statistics_are_no_way_around_it() -> None:
    response = asked(b"GET /stats HTTP/1.1\r\nHost: shop.example\r\n\r\n")
    assert (response.status, response.value("Location")) == (308, "https://shop.example/stats")


def test_connection_is_kept() -> None:
    with ScriptedBackend() as backend, forwarding(backend, **redirecting()) as live, plain(live) as client:
        for number in range(3):
            location = client.get(f"/{number}").value("Location")
            assert location == f"https://x:{live.server.port}/{number}"


def test_redirects_are_seen_by_the_chain() -> None:
    seen: list[tuple[int, str | None]] = []

    class Counting:
        @hookimpl
        def rgate_middlewares(self, gateway: object) -> Middleware:
            def wrap(app: Any, options: object) -> Any:
                def count(environ: dict[str, Any], start_response: Any) -> Any:
                    Exchange.of(environ).on_finish(lambda exchange: seen.append((exchange.status, environ["wsgi.url_scheme"])))
                    return app(environ, start_response)

                return count

            return Middleware("counting", wrap, before="stats")

    more: dict[str, Any] = {"plugins": {"counting": Counting()}, "options": {"counting": True}, **redirecting()}
    with ScriptedBackend() as backend, forwarding(backend, **more) as live, plain(live) as client:
        assert client.get().status == 308
    assert seen == [(308, "http")]


def test_environ_of_the_plain_port_is_that_of_plain_http() -> None:
    with ScriptedBackend() as backend, forwarding(backend, **redirecting()) as live, plain(live) as client:
        assert client.get().status == 308
        template = connection_of(live.server, client)._template
        assert template["wsgi.url_scheme"] == "http" and "HTTPS" not in template
        assert template["SERVER_PORT"] == str(live.server.redirect_port)


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PROPFIND"])
def test_plain_http_at_the_port_of_tls_is_told_so(method: str) -> None:
    with ScriptedBackend() as backend, forwarding(backend, **TLS) as live, RawClient(live.url) as client:
        response = client.get("/x", method=method)
        assert (response.status, response.value("Connection")) == (400, "close")
        if method != "HEAD":
            assert json.loads(response.body)["reason"] == "not_tls"
        assert client.is_closed()
        assert backend.requests == []


def test_plain_http_at_the_port_of_tls_is_told_so_although_more_comes() -> None:
    with ScriptedBackend() as backend, forwarding(backend, **TLS) as live, RawClient(live.url) as client:
        client.send(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000)
        assert client.response().status == 400
        assert client.is_closed() and not client.was_reset
