"""Clients that leave end the work that is done for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from rgate import Exchange, Gateway, Middleware, hookimpl
from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.forwarding import Forwarding, forwarding
from ..support.raw_client import RawClient
from ..support.serving import send_apart
from ..support.waiting import eventually, passed

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


CHUNKED_POST = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


SMALL_POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"


def resting(live: Forwarding, count: int) -> None:
    eventually(lambda: live.upstream_connections == count, f"{count} connections rest")


def waits_for_the_end(ended: threading.Event, begin: bytes = b"") -> Callable[[ScriptedConnection], None]:
    """A script that answers `begin` and then waits for the gateway to close the connection."""

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(begin)
        if connection.wait_closed():
            ended.set()

    return script


STREAMING = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200", STREAMING], ids=["no response", "half a head", "upstream_body"])
@pytest.mark.parametrize("leave", [RawClient.close, RawClient.reset], ids=["close", "reset"])
def test_client_that_leaves_ends_the_backends_work(begin: bytes, leave: Callable[[RawClient], None]) -> None:
    ended = threading.Event()
    with ScriptedBackend(waits_for_the_end(ended, begin)) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        backend.wait_for_requests(1)
        if begin == STREAMING:
            client.until(b"hello")
        leave(client)
        assert ended.wait(3), "the connection to the backend was not closed within 3 seconds"
        eventually(lambda: live.in_flight == 0)
        assert live.upstream_connections == 0


def test_client_that_leaves_does_not_make_the_request_be_sent_again() -> None:
    ended = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        while connection.read_request() is not None:
            if len(backend.requests) > 1:
                ended.set() if connection.wait_closed() else None
                return
            connection.send(http_response(b"ok"))

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get().body == b"ok"
        resting(live, 1)
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        backend.wait_for_requests(2)
        client.close()
        assert ended.wait(3)
        eventually(lambda: live.in_flight == 0)
        assert len(backend.connections) == 1, "an aborted connection is not a stale one"


LARGE_POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b"x" * 70_000
LARGE_CHUNKED_POST = CHUNKED_POST + b"11170\r\n" + b"x" * 70_000 + b"\r\n"


@pytest.mark.parametrize("leave", [RawClient.close, RawClient.reset, RawClient.half_close], ids=["close", "reset", "half-close"])
@pytest.mark.parametrize("request_", [LARGE_POST, LARGE_CHUNKED_POST], ids=["length", "chunked"])
def test_client_that_leaves_within_a_large_body_resets_the_upload(request_: bytes, leave: Callable[[RawClient], None]) -> None:
    """Servers such as gunicorn take the end of the stream for the end of the body; a reset is an error for all."""
    begun, ended = threading.Event(), threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        assert len(connection.read(70_000)) == 70_000
        begun.set()
        with pytest.raises(ConnectionResetError):
            connection.read(1_000_000)
        ended.set()

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(request_)
        passed(begun)
        leave(client)
        passed(ended)
        eventually(lambda: live.in_flight == 0)


@pytest.mark.parametrize("broken", [b"x\r\n", b"40000\r\n" + b"x" * 262_144 + b"!!"], ids=["size", "end of a chunk"])
def test_client_that_breaks_its_coding_resets_the_upload(broken: bytes) -> None:
    ended = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        with pytest.raises(ConnectionResetError):
            connection.read(1_000_000)
        ended.set()

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(LARGE_CHUNKED_POST)
        eventually(lambda: backend.connections, "the upload has begun")
        client.send(broken)
        assert client.response().status == 400
        passed(ended)


SMALL_CUT = {
    "length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 57\r\n\r\nto=bob&amount=10000",
    "chunked": CHUNKED_POST + b"13\r\nto=bob&amount=10000\r\n",
    "64 KiB but one byte": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 65536\r\n\r\n" + b"x" * 65_535,
}


@pytest.mark.parametrize("sent", SMALL_CUT.values(), ids=SMALL_CUT)
@pytest.mark.parametrize("limit", [None, 10**9, 10], ids=["no limit", "high limit", "low limit"])
def test_client_that_leaves_within_a_small_body_is_not_heard_of(sent: bytes, limit: int | None) -> None:
    """A route of the config may have a limit: then small bodies are asked about before they are whole, and yet are not sent."""
    limits = {} if limit is None else {"max_body_bytes": limit}
    with (
        ScriptedBackend(http_response(b"ok")) as backend,
        forwarding(backend, route={"path_prefix": "/limited", **limits}) as live,
        RawClient(live.url) as client,
    ):
        send_apart(live.server, client, sent.replace(b"POST / ", b"POST /limited ", 1))
        client.close()
        eventually(lambda: not live.server.connections, "the connection is over")
    assert not backend.connections


def test_client_that_leaves_is_not_held_against_the_backend(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[str | None] = []

    class Watching:
        @hookimpl
        def rgate_middlewares(self, gateway: Gateway) -> Middleware:
            def wrap(app: Any, options: object) -> Any:
                def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
                    Exchange.of(environ).on_finish(lambda e: errors.append(e.error and e.error.reason))
                    inner: Iterable[bytes] = app(environ, start_response)
                    return inner

                return call

            return Middleware("watching", wrap, before="faults", modifies_request=False)

    ended = threading.Event()
    with (
        ScriptedBackend(waits_for_the_end(ended, STREAMING)) as backend,
        forwarding(backend, plugins={"watching": Watching()}) as live,
        RawClient(live.url) as client,
    ):
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        client.until(b"hello")
        client.close()
        assert ended.wait(3)
        eventually(lambda: errors)
    assert errors == ["client_closed"]
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
