"""Stopping: what is in flight is finished, the rest is closed, and it does not take for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from rgate.config.models import ServerConfig
from rgate.serving.listeners import Listeners
from rgate.serving.server import Server
from rgate.serving.sockets import listen
from rgate.testing import make_gateway

from ..support.raw_client import RawClient
from ..support.serving import Holding, connection_of, echo, get, send_apart
from ..support.waiting import eventually, passed


class Watching:
    """An app that stays until the client leaves."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.gone = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        client = environ["rgate.connection"]
        client.on_disconnect = self.gone.set
        self.running.set()
        passed(self.gone)
        client.on_disconnect = None
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


def test_stop_keeps_a_connection_whose_response_has_promised_that_it_stays(
    running: Callable[..., tuple[Server, threading.Thread]],
) -> None:
    go_on = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "2")])
        yield b"o"
        passed(go_on)
        yield b"k"

    server, thread = running(app, idle_drain_seconds=8)
    with RawClient(server.url) as client:
        client.send(get("/"))
        (connection,) = eventually(lambda: [each for each in server.connections if each.response.head_sent])
        server.stop()
        eventually(lambda: connection.response.close_after)
        go_on.set()
        first = client.response()
        assert (first.body, first.value("Connection")) == (b"ok", None)
        client.send(get("/"))
        second = client.response()
        assert (second.body, second.value("Connection")) == (b"ok", "close")
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


def test_stop_serves_who_has_connected_and_was_not_accepted_yet(
    running: Callable[..., tuple[Server, threading.Thread]],
) -> None:
    server, thread = running(echo, drain_seconds=5)
    eventually(lambda: server.threads)
    server._acceptor.pause()
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.url)) for _ in range(300)]  # more than are accepted at once
        for client in clients:
            client.send(get("/"))
        server.stop()
        for number, client in enumerate(clients):
            response = client.response()
            assert (response.status, response.value("Connection")) == (200, "close"), f"client {number}"
    thread.join(10)
    assert not thread.is_alive()


def test_stop_answers_a_last_request_on_an_idle_connection(running: Callable[..., tuple[Server, threading.Thread]]) -> None:
    server, thread = running(echo, idle_drain_seconds=60, drain_seconds=60)
    with RawClient(server.url) as used, RawClient(server.url) as fresh:
        assert used.get().status == 200
        connection_of(server, fresh)
        server.stop()
        eventually(lambda: server.draining)
        for client in (used, fresh):
            response = client.get()
            assert (response.status, response.value("Connection")) == (200, "close")
            assert client.is_closed()
    thread.join(10)
    assert not thread.is_alive()


def test_stop_ends_idle_connections_without_a_reset(running: Callable[..., tuple[Server, threading.Thread]]) -> None:
    server, thread = running(echo, idle_drain_seconds=0)
    with RawClient(server.url) as client:
        assert client.get().status == 200
        server.stop()
        assert client.is_closed() and not client.was_reset
    thread.join(10)
    assert not thread.is_alive()


def test_stop_answers_every_connection_that_there_was(running: Callable[..., tuple[Server, threading.Thread]]) -> None:
    server, thread = running(echo, drain_seconds=5)
    some = threading.Semaphore(0)
    lost: list[str] = []

    def connect_until_refused() -> None:
        while True:
            try:
                client = RawClient(server.url)
            except ConnectionRefusedError:
                return
            except TimeoutError:
                pytest.fail("neither connected nor refused")
            with client:
                try:
                    client.send(get("/"))
                    client.response()
                except (OSError, AssertionError) as error:
                    lost.append(repr(error))
            some.release()

    clients = [threading.Thread(target=connect_until_refused) for _ in range(4)]
    for client in clients:
        client.start()
    for _ in range(200):
        assert some.acquire(timeout=10)
    server.stop()
    for client in clients:
        client.join(10)
        assert not client.is_alive()
    assert not lost, f"{len(lost)} were connected and got no answer"
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("lent", [True, False], ids=["stopped, with sockets of systemd", "retired"])
def test_stop_leaves_sockets_to_whoever_serves_them_next(lent: bool) -> None:
    with listen("127.0.0.1", 0) as listener:
        server = Server(echo, ServerConfig(port=1, threads=2), Listeners((listener,), externally_owned=lent))
        thread = threading.Thread(target=server.run)
        thread.start()
        (server.stop if lent else server.hand_off)()
        thread.join(10)
        assert not thread.is_alive()
        with RawClient(server.url) as client:
            accepted, _ = listener.accept()
            accepted.close()
            assert client.is_closed()


def test_retire_keeps_idle_connections_longer(running: Callable[..., tuple[Server, threading.Thread]]) -> None:
    server, thread = running(echo, idle_drain_seconds=0, drain_seconds=100)
    with RawClient(server.url) as client:
        assert client.get().status == 200
        server.hand_off()
        eventually(lambda: server.draining)
        ticks = server.ticks
        eventually(lambda: server.ticks > ticks + 5)
        assert client.get().value("Connection") == "close"
    thread.join(10)
    assert not thread.is_alive()


def test_beat_goes_on_to_the_end(
    running: Callable[..., tuple[Server, threading.Thread]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rgate.serving.server.BEAT_SECONDS", 0.01)
    app = Holding()
    server, thread = running(app)
    beats = threading.Semaphore(0)
    server.heartbeat = beats.release
    with RawClient(server.url) as client:
        client.send(get("/slow"))
        eventually(lambda: app.running)
        assert beats.acquire(timeout=10)
        server.stop()
        eventually(lambda: server.draining)
        for _ in range(5):
            assert beats.acquire(timeout=10)
        app.go_on.set()
        assert client.response().status == 200
    thread.join(10)


def test_retire_serves_those_that_only_it_may_have_been_told_of(
    running: Callable[..., tuple[Server, threading.Thread]],
) -> None:
    server, thread = running(echo)
    with server.listeners.main[0].dup():  # the next gateway's
        eventually(lambda: server.threads)
        server._acceptor.pause()
        with RawClient(server.url) as client:
            client.send(get("/"))
            server.hand_off()
            assert client.response().status == 200
        thread.join(10)
        assert not thread.is_alive()


def test_stop_keeps_its_word_that_a_connection_goes_on(running: Callable[..., tuple[Server, threading.Thread]]) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "6")])
        yield b"abc"
        if environ["PATH_INFO"] == "/slow":
            begun.set()
            passed(go_on)
        yield b"def"

    server, thread = running(app, idle_drain_seconds=5)
    with RawClient(server.url) as client:
        client.send(get("/slow"))
        passed(begun)
        server.stop()
        eventually(lambda: server.draining)
        go_on.set()
        response = client.response()
        assert (response.body, response.value("Connection")) == (b"abcdef", None), "its head went out before the stop"
        response = client.get()
        assert (response.body, response.value("Connection")) == (b"abcdef", "close")
    thread.join(10)
    assert not thread.is_alive()
