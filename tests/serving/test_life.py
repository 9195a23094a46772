"""The server's life: deadlines, threads, clients that leave, sockets that run out, draining."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from time import monotonic, process_time
from typing import Any

import pytest

from rgate import Endpoint, Gateway
from rgate.config.models import ServerConfig
from rgate.serving.listeners import Listeners
from rgate.serving.server import Server
from rgate.serving.sockets import listen
from rgate.serving.thread_pool import SWITCH_SECONDS
from rgate.testing import ScriptedBackend, ScriptedConnection, http_response, make_gateway, running_gateway

from ..support.raw_client import RawClient
from ..support.serving import Holding, connection_of, echo, get, send_apart, serving
from ..support.waiting import eventually, passed


@pytest.fixture
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines are checked often, so that tests do not have to wait."""
    monkeypatch.setattr("rgate.serving.server.BEAT_SECONDS", 0.02)
    monkeypatch.setattr("rgate.serving.server.QUIET_TICK_SECONDS", 0.02)


# Deadlines


@pytest.mark.usefixtures("quick_checks")
def test_deadline_idle_connection_is_closed_without_a_word() -> None:
    with serving(echo, keep_alive_seconds=0.05) as server, RawClient(server.url) as client:
        assert client.get().status == 200
        assert client.is_closed()


@pytest.mark.usefixtures("quick_checks")
def test_deadline_request_that_meets_the_end_of_an_idle_connection_is_not_reset() -> None:
    """Its client sees an end before any answer, so it knows that nothing has been done (RFC 9112 §9.3.1)."""
    with serving(echo, keep_alive_seconds=0.05) as server, RawClient(server.url) as client:
        assert client.get().status == 200
        assert client.is_closed()
        for _ in range(20):
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
        assert client.is_closed() and not client.was_reset
        (connection,) = server.connections
        assert connection.requests_left == server.config.max_requests_per_connection - 1, (
            "it was served, and no client received the response"
        )


def test_deadline_request_that_comes_just_before_the_end_of_an_idle_connection_is_served() -> None:
    with serving(echo) as server, RawClient(server.url) as client:
        assert client.get().status == 200
        connection = connection_of(server, client)
        with connection.lock:  # so no thread reads it before the server has decided to close
            client.send(get("/late"))
            eventually(lambda: connection.events, "it has arrived")
        connection.close_if_idle()
        assert client.response().body == b"GET /late "
        assert client.get("/next").status == 200


@pytest.mark.usefixtures("quick_checks")
def test_deadline_idle_connection_of_a_client_that_does_not_care_is_closed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.serving.connection.IDLE_LINGER_SECONDS", 0.05)
    with serving(echo, keep_alive_seconds=0.05) as server, RawClient(server.url) as client:
        assert client.get().status == 200
        eventually(lambda: not server.connections, "it is closed")


@pytest.mark.usefixtures("quick_checks")
def test_deadline_connection_that_never_speaks_is_closed_without_a_word() -> None:
    with serving(echo, head_seconds=0.05) as server, RawClient(server.url) as client:
        assert client.is_closed()


@pytest.mark.usefixtures("quick_checks")
def test_deadline_empty_lines_after_a_request_are_no_request() -> None:
    with serving(echo, head_seconds=0.05, keep_alive_seconds=0.05) as server, RawClient(server.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n\r\n")
        assert client.response().status == 200
        assert client.is_closed(), "no byte of a request has arrived, so there is nothing to answer 408"


@pytest.mark.usefixtures("quick_checks")
@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\nHos", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_deadline_head_that_is_late_is_408(sent: bytes) -> None:
    with serving(make_gateway({}), head_seconds=0.05) as server, RawClient(server.url) as client:
        client.send(sent)
        response = client.response()
        assert (response.status, response.value("Connection")) == (408, "close")
        assert b'"request_timeout"' in response.body
        assert client.is_closed()


@pytest.mark.usefixtures("quick_checks")
def test_deadline_of_a_head_is_not_put_off_by_more_of_it() -> None:
    begin = monotonic()
    with serving(make_gateway({}), head_seconds=0.2) as server, RawClient(server.url) as client:
        client.send(b"GET / HTTP/1.1\r\n")

        def answered() -> bool:
            client.send(b"A: b\r\n")
            return not client.is_silent()

        eventually(answered, "the head's deadline passes although more of it keeps coming")
        assert client.response().status == 408
    assert monotonic() - begin < 5


@pytest.mark.usefixtures("quick_checks")
def test_deadline_does_not_end_a_request_that_is_worked_on() -> None:
    app = Holding()
    with serving(app, head_seconds=0.02, keep_alive_seconds=0.02, body_seconds=0.02) as server, RawClient(server.url) as client:
        client.send(get("/slow"))
        eventually(lambda: app.running)
        ticks = server.ticks
        eventually(lambda: server.ticks > ticks + 10)
        app.go_on.set()
        assert client.response().body == b"ok"


# Connections and threads


def test_connections_that_are_idle_hold_no_thread() -> None:
    with serving(echo, threads=2, max_in_flight=2) as server, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.url)) for _ in range(300)]
        for client in clients[:100]:
            assert client.get().status == 200
        for client in clients[100:200]:
            client.send(b"GET / HTTP/1.1\r\nHo")
        with RawClient(server.url) as other:
            assert other.get().status == 200
        assert server.threads <= 4, "two hundred idle connections need no threads of their own"
        for client in clients[100:200]:
            client.send(b"st: x\r\n\r\n")
            assert client.response().status == 200


def test_threads_grow_when_all_are_held_up_and_shrink_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.serving.thread_pool.SURPLUS_WAIT_SECONDS", 0.02)
    app = Holding()
    with serving(app, threads=2, max_in_flight=40) as server, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.url)) for _ in range(30)]
        for client in clients:
            client.send(get("/slow"))
        eventually(lambda: app.running == 30, "every slow request gets a thread")
        with RawClient(server.url) as other:
            other.send(get("/quick"))
            assert other.response().body == b"ok", "a quick request is served beside the slow ones"
        app.go_on.set()
        for client in clients:
            assert client.response().body == b"ok"
        eventually(lambda: server.threads <= 4, "surplus threads go")
        assert clients[0].get().body == b"ok"


def test_threads_are_bounded() -> None:
    app = Holding()
    with serving(app, threads=1, max_in_flight=5) as server, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.url)) for _ in range(20)]
        for client in clients:
            client.send(get("/slow"))
        eventually(lambda: app.running == 7)
        ticks = server.ticks
        eventually(lambda: server.ticks > ticks + 20)
        assert (server.threads, app.running) == (7, 7)
        app.go_on.set()
        for client in clients:
            assert client.response().body == b"ok"


def test_threads_do_not_wait_long_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr("sys.setswitchinterval", asked.append)
    monkeypatch.setattr("sys.getswitchinterval", lambda: 0.005)
    with serving(echo):
        eventually(lambda: asked)
    assert asked == [SWITCH_SECONDS]


def test_threads_that_cannot_be_started_are_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = Holding()
    with serving(app, threads=1, max_in_flight=5) as server, RawClient(server.url) as client, RawClient(server.url) as other:

        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr("rgate.serving.thread_pool._PoolThread.start", start)
            client.send(get("/slow"))
            eventually(lambda: "cannot start another thread" in caplog.text)
        other.send(get("/quick"))
        assert other.response().body == b"ok"
        app.go_on.set()
        assert client.response().body == b"ok"


def test_threads_that_cannot_be_started_limit_what_waits_for_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise all threads would wait, and none would be left to report it."""
    gates = [threading.Event(), threading.Event()]

    def script(connection: ScriptedConnection) -> None:
        while (request := connection.read_request()) is not None:
            passed(gates[int(request.line.split()[1][1:])])
            connection.send(http_response(b"ok"))

    start = threading.Thread.start

    def start_few(thread: threading.Thread) -> None:
        if server.threads > 8:
            raise RuntimeError("can't start new thread")
        start(thread)

    with ExitStack() as stack:
        url = stack.enter_context(ScriptedBackend(script)).url
        config = {"backends": [{"name": "b", "endpoints": [url]}], "routes": [{"path_prefix": "/", "backend": "b"}]}
        gateway = stack.enter_context(running_gateway(config))
        server = stack.enter_context(serving(gateway, threads=2, max_in_flight=100))
        monkeypatch.setattr("rgate.serving.thread_pool._PoolThread.start", start_few)
        clients = [stack.enter_context(RawClient(server.url)) for _ in range(8)]
        for client in clients:
            client.send(get("/0"))
        eventually(lambda: server.readiness.server.max_in_flight == 8 - 2 * 2, "the server knows that it gets no more")
        gates[0].set()
        statuses = [client.response().status for client in clients]
        assert statuses.count(200) >= 4 and set(statuses) <= {200, 503}
        for client in clients[:4]:
            client.send(get("/1"))
        eventually(lambda: sum(map(len, (e.state.active_exchanges for e in endpoints(gateway)))) == 4, "four wait")
        assert clients[4].get("/1").status == 503
        gates[1].set()
        assert [client.response().status for client in clients[:4]] == [200] * 4


def endpoints(gateway: Gateway) -> list[Endpoint]:
    return [endpoint for several in gateway.table.snapshot.endpoints.values() for endpoint in several]


def test_connection_that_fails_in_an_unforeseen_way_is_closed_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(echo) as server, RawClient(server.url) as client, RawClient(server.url) as other:
        assert other.get().status == 200

        def fail(block: bytes) -> bool:
            raise RuntimeError("unforeseen")

        with monkeypatch.context() as patched:
            patched.setattr("rgate.serving.connection.Connection._consume", lambda *_: fail(b""))
            client.send(get("/"))
            assert client.is_closed()
        assert other.get().status == 200
    assert "a connection failed" in caplog.text


def test_connection_reset_while_idle_is_forgotten() -> None:
    with serving(echo) as server, RawClient(server.url) as client:
        assert client.get().status == 200
        client.reset()
        eventually(lambda: not server.connections)


def test_connection_head_in_tiny_pieces_costs_little() -> None:
    """Judging all of a growing head at every piece would take half a minute here: a cheap way to keep a gateway busy."""
    with serving(echo) as server, RawClient(server.url) as client:
        send_apart(server, client, b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 50_000)
        connection = connection_of(server, client)
        begin = process_time()
        send_apart(server, client, *[b"a"] * 1_000)
        assert process_time() - begin < 0.4, "CPU time for 1,000 pieces of one byte"
        assert len(connection._pending) > 50_000
        client.send(b"\r\n\r\n")
        assert client.response().status == 200


# Clients that leave


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


@pytest.mark.parametrize("leave", [RawClient.close, RawClient.reset], ids=["close", "reset"])
def test_client_that_leaves_is_noticed_while_a_thread_works_for_it(leave: Callable[[RawClient], None]) -> None:
    app = Watching()
    with serving(app) as server, RawClient(server.url) as client:
        client.send(get("/"))
        passed(app.running)
        leave(client)
        passed(app.gone, "the client has left")


def test_client_that_leaves_is_known_to_be_gone_before_anything_is_ended() -> None:
    """Otherwise the callback could end the wait of another request: the thread that resets it must see the disconnect."""
    seen: list[bool] = []
    ended = threading.Event()
    running = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        connection = environ["rgate.connection"]

        def end() -> None:
            seen.append(connection.client_disconnected)
            ended.set()

        connection.on_disconnect = end
        running.set()
        passed(ended)
        connection.on_disconnect = None
        start_response("200 OK", [])
        return []

    with serving(app) as server, RawClient(server.url) as client:
        client.send(get("/"))
        passed(running)
        client.close()
        passed(ended)
    assert seen == [True]


def test_client_that_sends_on_has_not_left() -> None:
    app = Holding()
    left = threading.Event()

    def watched(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["rgate.connection"].on_disconnect = left.set
        try:
            return app(environ, start_response)
        finally:
            environ["rgate.connection"].on_disconnect = None

    with serving(watched) as server, RawClient(server.url) as client:
        client.send(get("/slow"))
        eventually(lambda: app.running)
        send_apart(server, client)  # the next request is left in the socket
        client.send(get("/next"))
        eventually(lambda: connection_of(server, client).events)
        app.go_on.set()
        assert [client.response().body for _ in range(2)] == [b"ok", b"ok"]
    assert not left.is_set()


# Sockets that run out


def test_accepting_pauses_when_there_are_no_sockets_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rgate.serving.acceptor.PAUSE_SECONDS", 0.05)
    with serving(echo, threads=4) as server:
        short = True

        class Listener:
            def __init__(self, listener: socket.socket) -> None:
                self._listener = listener

            def __getattr__(self, name: str) -> Any:
                return getattr(self._listener, name)

            def accept(self) -> Any:
                if short:
                    raise OSError(errno.EMFILE, "Too many open files")
                return self._listener.accept()

        ((fd, (listener, kind)),) = server._acceptor._listeners.items()
        server._acceptor._listeners[fd] = Listener(listener), kind  # type: ignore[assignment]
        with RawClient(server.url) as client:
            client.send(get("/"))
            eventually(lambda: "cannot accept connections at present: Too many open files" in caplog.text)
            assert client.is_silent()
            short = False
            assert client.response().status == 200


def test_connection_that_cannot_be_watched_is_closed_and_forgotten() -> None:
    with serving(echo) as server, RawClient(server.url) as first:
        assert first.get().status == 200
        connection = connection_of(server, first)

        class Epoll:
            def __init__(self, epoll: Any) -> None:
                self._epoll = epoll

            def __getattr__(self, name: str) -> Any:
                return getattr(self._epoll, name)

            def register(self, *_: object) -> None:
                raise OSError(errno.ENOSPC, "no watches left")

        epoll, server._epoll = server._epoll, Epoll(server._epoll)  # type: ignore[assignment]
        with RawClient(server.url) as second:
            assert second.is_closed()
        server._epoll = epoll
        assert server.connections == [connection], "the one that could not be watched is forgotten"


# Listening


def test_listen_on_a_taken_port_raises_and_leaves_nothing_open() -> None:
    listener = listen("127.0.0.1", 0)
    with listener, pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", listener.getsockname()[1])


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://127.0.0.1:"), ("::1", "http://[::1]:"), ("::", "http://[::1]:")],
)
def test_url_says_where_to_reach_the_server(host: str, url: str) -> None:
    try:
        listen(host, 0).close()
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with serving(echo, host=host) as server:
        assert server.url == f"{url}{server.port}"
        with RawClient(server.url) as client:
            assert client.get().status == 200


def test_server_takes_a_listener_that_is_given() -> None:
    with listen("127.0.0.1", 0) as listener:
        server = Server(echo, ServerConfig(port=1), Listeners((listener,)))
        assert server.port == listener.getsockname()[1]
        server.stop()
        server.run()
        server.server_close()
        assert listener.fileno() >= 0, "it is the giver's to close"
