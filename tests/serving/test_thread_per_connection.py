"""Without epoll, simulated here: the same connections, each with a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import pytest

from ..support.raw_client import RawClient
from ..support.serving import echo, send_apart, serving
from ..support.waiting import eventually


@pytest.fixture(autouse=True)
def without_epoll(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("connection", "server", "settings", "sockets"):
        monkeypatch.setattr(f"rgate.serving.{module}.EPOLL", False)


def test_requests_follow_each_other_on_connections_with_a_thread_each() -> None:
    with serving(echo) as server, RawClient(server.url) as one, RawClient(server.url) as other:
        for client in (one, other, one, other):
            assert client.get("/x").body == b"GET /x "
        assert server.threads == 3, "two connections and the listener"
        one.close()
        eventually(lambda: server.threads == 2, "the thread goes with its connection")


def test_requests_in_one_packet_are_answered_in_order() -> None:
    with serving(echo) as server, RawClient(server.url) as client:
        client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(5)))
        assert [client.response().body for _ in range(5)] == [b"GET /%d " % number for number in range(5)]


def test_slow_body_is_collected_or_streamed_as_configured() -> None:
    seen = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        first = environ["wsgi.input"].read1()
        seen.set()
        body = first + environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    with serving(app) as server, RawClient(server.url) as client:
        send_apart(server, client, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello")
        assert not seen.is_set()
        client.send(b"world")
        assert client.response().body == b"helloworld"
    seen.clear()
    with serving(app, body_buffer_bytes=0) as server, RawClient(server.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello")
        assert seen.wait(10), "the first half reaches the app before the second is sent"
        client.send(b"world")
        assert client.response().body == b"helloworld"


def test_disconnect_is_noticed_while_the_request_is_served() -> None:
    working, gone = threading.Event(), threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["rgate.connection"].on_disconnect = gone.set
        working.set()
        assert gone.wait(10), "no thread reports that the client is gone"
        start_response("200 OK", [])
        return []

    with serving(app) as server:
        with RawClient(server.url) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert working.wait(10)
        assert gone.wait(10)
        eventually(lambda: server.threads == 1, "its thread ends")


def test_late_head_is_answered_408(monkeypatch: pytest.MonkeyPatch) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(f"{environ['rgate.rejection'].status} Refused", [])
        return []

    monkeypatch.setattr("rgate.serving.server.BEAT_SECONDS", 0.02)
    with serving(app, head_seconds=0.1) as server, RawClient(server.url) as client:
        client.send(b"GET / HT")
        assert client.response().status == 408


def test_upgrade_is_not_offered_to_the_app() -> None:
    asked: list[object] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        asked.append(environ.get("rgate.upgrade"))
        return echo(environ, start_response)

    with serving(app) as server, RawClient(server.url) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert client.response().status == 200
    assert asked == [None]
