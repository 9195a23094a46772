"""Requests that wait without a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import pytest

from rgate import Exchange, GatewayError, NoEndpoint, SuspendedResponse
from rgate.chain.exchange import ENVIRON_KEY
from rgate.chain.scope import ExchangeScope

from ..support.raw_client import RawClient
from ..support.serving import serving
from ..support.waiting import eventually

POST = b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"


class Suspending:
    """Suspends every request but those for /now, and echoes method, target and body when they are resumed; else 503."""

    def __init__(self, seconds: float = 60.0) -> None:
        self.seconds = seconds
        self.suspended: list[SuspendedResponse] = []
        self.ended = 0
        self.over: list[tuple[int, GatewayError | None]] = []
        self.app = ExchangeScope(self.suspend, self.suspend, {}, lambda exchange, error, hook="": None)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return self.app(environ, start_response)

    def suspend(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        exchange: Exchange = environ[ENVIRON_KEY]
        exchange.on_finish(lambda exchange: self.over.append((exchange.status, exchange.error)))

        def go_on(in_time: bool) -> Iterable[bytes]:
            if not in_time:
                raise NoEndpoint
            body = b"%b %b %b" % (environ["REQUEST_METHOD"].encode(), environ["RAW_URI"].encode(), environ["wsgi.input"].read())
            start_response("200 OK", [("Content-Length", str(len(body)))])
            return [body]

        if environ["RAW_URI"] == "/now":
            return go_on(True)
        suspended = SuspendedResponse(environ, self.seconds, go_on, self.end)
        self.suspended.append(suspended)
        return suspended

    def end(self) -> None:
        self.ended += 1


def test_requests_that_wait_hold_no_thread_and_go_on_with_all_that_they_had() -> None:
    app = Suspending()
    with serving(app, threads=2) as server, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.url)) for _ in range(300)]
        for number, client in enumerate(clients):
            client.send(POST % number)
        eventually(lambda: len(app.suspended) == 300)
        assert server.threads == 2
        with RawClient(server.url) as other:
            assert other.get("/now").body == b"GET /now ", "others are served meanwhile"
        for suspended in app.suspended:
            suspended.resume()
        for number, client in enumerate(clients):
            assert client.response().body == b"POST /%d hello" % number
            client.send(b"GET /now HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.response().status == 200, "the connection goes on"
    assert app.ended == 300


def test_request_whose_time_is_over_goes_on_without() -> None:
    with serving(Suspending(seconds=0.05)) as server, RawClient(server.url) as client:
        assert client.get().status == 503


def test_request_woken_before_its_thread_has_left_it_goes_on() -> None:
    app = Suspending()
    wake = app.suspend

    def suspend(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = wake(environ, start_response)
        if isinstance(body, SuspendedResponse):
            body.resume()
        return body

    app.app = ExchangeScope(suspend, suspend, {}, lambda exchange, error, hook="": None)
    with serving(app) as server, RawClient(server.url) as client:
        for number in range(50):
            client.send(POST % number)
            assert client.response().body == b"POST /%d hello" % number


def test_what_a_client_has_sent_behind_a_request_that_waits_comes_after_it() -> None:
    app = Suspending()
    with serving(app) as server, RawClient(server.url) as client:
        client.send(POST % 1 + POST % 2)
        eventually(lambda: app.suspended)
        client.send(b"GET /now HTTP/1.1\r\nHost: x\r\n\r\n")
        app.suspended[0].resume()
        assert client.response().body == b"POST /1 hello"
        eventually(lambda: len(app.suspended) == 2)
        app.suspended[1].resume()
        assert client.response().body == b"POST /2 hello"
        assert client.response().body == b"GET /now "


@pytest.mark.parametrize("leave", [RawClient.close, RawClient.reset], ids=["close", "reset"])
def test_client_that_leaves_is_no_longer_waited_for(leave: Callable[[RawClient], None]) -> None:
    app = Suspending()
    with serving(app) as server, RawClient(server.url) as client:
        client.send(POST % 1)
        eventually(lambda: app.suspended)
        leave(client)
        eventually(lambda: app.ended == 1)
        eventually(lambda: not server.connections)
    ((status, error),) = app.over
    assert (status, error and error.reason) == (499, "client_closed")


def test_client_that_has_only_ended_its_side_has_its_answer() -> None:
    app = Suspending()
    with serving(app) as server, RawClient(server.url) as client:
        client.send(POST % 1)
        eventually(lambda: app.suspended)
        client.half_close()
        assert client.read(9) == b"HTTP/1.1 ", "it is tested with what comes next whatever the answer"
        app.suspended[0].resume()
        assert client.rest().endswith(b"\r\n\r\nPOST /1 hello")
    assert [status for status, _ in app.over] == [200]


def test_server_that_stops_answers_what_waits_in_time() -> None:
    app = Suspending()
    with serving(app, drain_seconds=1.0) as server, RawClient(server.url) as client:
        client.send(POST % 1)
        eventually(lambda: app.suspended)
        server.stop()
        assert client.response().status == 503


def test_request_that_waits_is_served_while_the_server_stops() -> None:
    app = Suspending()
    with serving(app, drain_seconds=30.0) as server, RawClient(server.url) as client:
        client.send(POST % 1)
        eventually(lambda: app.suspended)
        server.stop()
        eventually(lambda: server.draining)
        app.suspended[0].resume()
        assert client.response().status == 200


def test_body_that_is_still_coming_waits_with_its_request() -> None:
    app = Suspending()
    with serving(app) as server, RawClient(server.url) as client:
        client.send(b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + b"a" * 100_000)
        eventually(lambda: app.suspended)
        app.suspended[0].resume()
        client.send(b"b" * 100_000)
        assert client.response().body == b"POST /1 " + b"a" * 100_000 + b"b" * 100_000
        client.send(b"GET /now HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.response().status == 200


def test_waiting_costs_no_thread_that_others_would_need() -> None:
    """With one base thread and room for one request in flight, a hundred may wait."""
    app = Suspending()
    with serving(app, threads=1, max_in_flight=1) as server, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.url)) for _ in range(100)]
        for number, client in enumerate(clients):
            client.send(POST % number)
        eventually(lambda: len(app.suspended) == 100)
        assert server.threads == 1
        assert not [thread for thread in threading.enumerate() if "connection" in thread.name]
        for suspended in app.suspended:
            suspended.expire()
        assert {client.response().status for client in clients} == {503}
