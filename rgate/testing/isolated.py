"""For a middleware alone: an app to wrap, the exchange that it expects, a client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from werkzeug.test import Client, TestResponse, create_environ

from ..chain.body_wrapper import close_body
from ..chain.exchange import ENVIRON_KEY, Exchange
from ..config import Backend, Route
from ..discovery.model import Address, Endpoint

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["assert_error", "client", "make_endpoint", "make_environ", "make_exchange", "respond_with"]


def respond_with(
    body: bytes | Iterable[bytes] = b"", status: str = "200 OK", headers: Iterable[tuple[str, str]] = ()
) -> WSGIApplication:
    """A WSGI app that always returns this response. A `body` of bytes has a Content-Length, an iterable does not."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if isinstance(body, bytes):
            start_response(status, [*headers, ("Content-Length", str(len(body)))])
            return [body]
        start_response(status, [*headers])
        return body

    return app


def make_endpoint(
    name: str = "orders-1",
    *,
    backend: str = "orders",
    host: str = "127.0.0.1",
    port: int = 9,
    in_flight: int = 0,
    weight: int = 1,
) -> Endpoint:
    """An endpoint on which nothing listens (port 9 is discard), with `in_flight` requests."""
    endpoint = Endpoint(name, name, backend, Address("http", host, port), weight=weight)
    endpoint.state.active_exchanges.update(Exchange() for _ in range(in_flight))
    return endpoint


def make_exchange(route: Route | None = None, candidates: Sequence[Endpoint] | None = None) -> Exchange:
    """An exchange as it is inside `routing`: with a route (default: "/" to backend "orders") and candidates (default: one)."""
    exchange = Exchange()
    exchange.route = route or Route("/", Backend("orders"))
    exchange.candidates = (make_endpoint(backend=exchange.route.backend.name),) if candidates is None else tuple(candidates)
    return exchange


def make_environ(target: str = "/", exchange: Exchange | None = None, **request: Any) -> WSGIEnvironment:
    """The environ of a request, as it is inside ExchangeScope: with `exchange` (default: make_exchange()) in it.

    `target` is path and query as sent; `request` are arguments of werkzeug.test.EnvironBuilder (method, headers, data, …).
    """
    environ = create_environ(target, **request)
    environ[ENVIRON_KEY] = exchange or make_exchange()
    return environ


def client(app: WSGIApplication, exchange: Exchange | None = None) -> Client:
    """A client for a gateway or, with an `exchange`, for a middleware alone.

    For a middleware it acts as ExchangeScope: every request has the exchange in its environ, whose status and bytes_sent are
    written, and which is finished. The response body is read to its end and closed before the client gets it; its exceptions
    are raised. Requests come from 127.0.0.1 unless they say otherwise (`environ_base={"REMOTE_ADDR": …}`).
    """
    inner = app if exchange is None else _scope(app, exchange)

    def local(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.setdefault("REMOTE_ADDR", "127.0.0.1")
        head: tuple[str, list[tuple[str, str]]] | None = None
        written: list[bytes] = []

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            # Nothing has been sent yet, so a second head, of a fault, replaces the first (PEP 3333).
            nonlocal head
            head = (status, headers)
            return written.append

        blocks = _read(inner(environ, start))
        if head is not None:
            start_response(*head)
        return written + blocks

    return Client(local)


def _scope(app: WSGIApplication, exchange: Exchange) -> WSGIApplication:
    def scope(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            exchange.status = int(status[:3])
            return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

        environ[ENVIRON_KEY] = exchange
        blocks = _read(app(environ, start))
        exchange.bytes_sent = sum(map(len, blocks))
        exchange.finish()
        return blocks

    return scope


def _read(body: Iterable[bytes]) -> list[bytes]:
    try:
        return list(body)
    finally:
        close_body(body)


def assert_error(response: TestResponse, status_code: int, reason: str) -> dict[str, Any]:
    """Assert that the response is the gateway's own, in the common shape, and return its JSON object.

    Its `reason` is a slug of the tree in rgate.errors ("no_endpoint", "refused", …).
    """
    shown = f"{response.status}, {response.headers.get('Content-Type')}, {response.get_data()[:500]!r}"
    assert response.status_code == status_code, f"expected a fault with status {status_code}, got {shown}"
    assert response.headers.get("Content-Type") == "application/json", f"expected a fault as application/json, got {shown}"
    answer = json.loads(response.get_data())
    assert isinstance(answer, dict) and answer.keys() == {"status_code", "body", "reason", "request_id"}, (
        f"expected the keys status_code, body, reason and request_id, got {shown}"
    )
    assert answer["status_code"] == status_code, f"the status in the body is different: {shown}"
    assert answer["reason"] == reason, f"expected the reason {reason!r}, got {shown}"
    return answer
