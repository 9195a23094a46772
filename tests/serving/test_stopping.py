"""Stopping: what is in flight is finished, the rest is closed, and it does not take for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from rgate.config.models import ServerConfig
from rgate.serving.server import Server
from rgate.testing import make_gateway

from ..raw_client import RawClient
from ..waiting import eventually, passed
from .live import connection_of, echo, send_apart


class Holding:
    """An app whose requests to /slow hold their thread until they are let go."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.running = 0
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/slow"):
            with self._lock:
                self.running += 1
            passed(self.go_on)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


class Watching:
    """An app that stays until the client leaves."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.gone = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        client = environ["rgate.client"]
        client.on_gone = self.gone.set
        self.running.set()
        passed(self.gone)
        client.on_gone = None
        start_response("200 OK", [])
        return []


@pytest.fixture
def running() -> Iterator[Callable[..., tuple[Server, threading.Thread]]]:
    with ExitStack() as stack:

        def run(app: Any, **config: Any) -> tuple[Server, threading.Thread]:
            server = Server(app, ServerConfig(**{"port": 0, "threads": 2, **config}))
            thread = threading.Thread(target=server.run)
            thread.start()
            stack.callback(server.server_close)
            stack.callback(thread.join, 10)
            stack.callback(server.stop)
            return server, thread

        yield run


def test_stop_finishes_what_is_in_flight_and_closes_the_rest(running: Callable[..., tuple[Server, threading.Thread]]) -> None:
    app = Holding()
    server, thread = running(app)
    with RawClient(server.url) as busy, RawClient(server.url) as idle, RawClient(server.url) as fresh:
        assert idle.get().body == b"ok"
        connection_of(server, fresh)
        busy.send(get("/slow"))
        eventually(lambda: app.running)
        server.stop()
        assert idle.is_closed()
        assert fresh.is_closed()
        with pytest.raises(ConnectionRefusedError):
            RawClient(server.url)
        assert thread.is_alive()
        app.go_on.set()
        response = busy.response()
        assert (response.body, response.value("Connection")) == (b"ok", "close")
        assert busy.is_closed()
    thread.join(10)
    assert not thread.is_alive()


def test_stop_answers_a_request_that_is_still_coming(running: Callable[..., tuple[Server, threading.Thread]]) -> None:
    server, thread = running(echo)
    with RawClient(server.url) as head, RawClient(server.url) as body:
        send_apart(server, head, b"GET / HTTP/1.1\r\nHo")
        send_apart(server, body, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe")
        server.stop()
        eventually(lambda: server.draining)
        head.send(b"st: x\r\n\r\n")
        body.send(b"llo")
        assert head.response().value("Connection") == "close"
        assert body.response().body == b"POST / hello"
    thread.join(10)
    assert not thread.is_alive()


def test_stop_does_not_wait_longer_than_its_deadlines_for_a_head(running: Callable[..., tuple[Server, threading.Thread]]) -> None:
    server, thread = running(make_gateway({}), head_seconds=0.05, drain_seconds=60)
    with RawClient(server.url) as client:
        send_apart(server, client, b"GET / HTTP/1.1\r\nHo")
        server.stop()
        assert client.response().status == 408
    thread.join(5)
    assert not thread.is_alive()


def test_stop_cuts_what_is_left_after_drain_seconds(
    running: Callable[..., tuple[Server, threading.Thread]], caplog: pytest.LogCaptureFixture
) -> None:
    app = Watching()
    server, thread = running(app, drain_seconds=0.05)
    with RawClient(server.url) as client:
        client.send(get("/"))
        passed(app.running)
        server.stop()
        passed(app.gone, "what the app waits for is told to end")
        client.rest()  # up to the end of the connection
        thread.join(5)
        assert not thread.is_alive()
    assert "1 connections were cut" in caplog.text


def test_stop_does_not_wait_for_threads_that_are_stuck(
    running: Callable[..., tuple[Server, threading.Thread]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rgate.serving.server.CUT_SECONDS", 0.05)
    app = Holding()
    server, thread = running(app, threads=8, drain_seconds=0)
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.url)) for _ in range(8)]
        for client in clients:
            client.send(get("/slow"))
        eventually(lambda: app.running == 8)
        server.stop()
        thread.join(2)
        assert not thread.is_alive(), "eight stuck threads hold up the end no longer than one"
        app.go_on.set()
        eventually(lambda: not server.threads, "the threads end when they can")


def test_stop_before_run_ends_at_once() -> None:
    server = Server(echo, ServerConfig(port=0))
    server.stop()
    server.stop()
    thread = threading.Thread(target=server.run)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    server.server_close()
