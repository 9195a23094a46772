"""The response that the client gets when a backend fails: every row of the table, on the wire."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from time import monotonic

import pytest

from rgate.testing import ScriptedBackend, ScriptedConnection, closed_port_url, http_response

from ..support.forwarding import forwarding
from ..support.raw_client import RawClient, RawResponse
from ..support.waiting import eventually, passed

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
GET_10 = b"GET / HTTP/1.0\r\n\r\n"
QUICK = {"timeouts": {"connect_seconds": 0.2, "read_seconds": 0.1}}


def is_fault(response: RawResponse, status: int, reason: str) -> None:
    answer = json.loads(response.body)
    assert answer.keys() == {"status_code", "body", "reason", "request_id"}
    assert (response.status, answer["status_code"], answer["reason"]) == (status, status, reason)
    assert answer["request_id"]
    assert response.value("Content-Type") == "application/json"
    assert response.value("Retry-After") == ("1" if status == 503 else None)
    assert not [word for word in ("127.0.0.1", "Errno", "urllib3", "Traceback") if word in answer["body"]]


def test_fault_no_route() -> None:
    with forwarding("http://127.0.0.1:9", route={"path_prefix": "/api"}) as live, RawClient(live.url) as client:
        is_fault(client.get("/other"), 404, "no_route")


def test_fault_no_endpoint() -> None:
    with forwarding() as live, RawClient(live.url) as client:
        is_fault(client.get(), 503, "no_endpoint")
        assert client.get().status == 503, "the connection to the client stays"


def test_fault_refused_at_once() -> None:
    with closed_port_url() as url, forwarding(url) as live, RawClient(live.url) as client:
        begin = monotonic()
        is_fault(client.get(), 503, "refused")
        assert monotonic() - begin < 1
        assert live.in_flight == 0


def test_fault_refused_of_a_post_answers_it_too() -> None:
    with closed_port_url() as url, forwarding(url) as live, RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
        is_fault(client.response(), 503, "refused")
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        is_fault(client.response(), 503, "refused")


def test_fault_unreachable_name() -> None:
    with forwarding("http://no-such-host.invalid:80") as live, RawClient(live.url) as client:
        is_fault(client.get(), 503, "unreachable")


def test_fault_unreachable_network() -> None:
    # A broadcast address is refused by the system before anything is sent.
    with forwarding("http://255.255.255.255:80", route=QUICK) as live, RawClient(live.url) as client:
        is_fault(client.get(), 503, "unreachable")


def test_fault_connect_timeout() -> None:
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # fill the queue, so that the next connection is not even accepted by the system
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with forwarding(url, route=QUICK) as live, RawClient(live.url) as client:
            is_fault(client.get(), 503, "connect_timeout")


def silent(connection: ScriptedConnection) -> None:
    connection.read_request()
    connection.wait_closed()


def test_fault_response_timeout() -> None:
    with ScriptedBackend(silent) as backend, forwarding(backend, route=QUICK) as live, RawClient(live.url) as client:
        is_fault(client.get(), 504, "response_timeout")
        assert len(backend.connections) == 1, "a slow backend must not be asked twice"
        assert live.in_flight == 0


def test_fault_response_timeout_within_the_head() -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nX-")
        connection.wait_closed()

    with ScriptedBackend(script) as backend, forwarding(backend, route=QUICK) as live, RawClient(live.url) as client:
        is_fault(client.get(), 504, "response_timeout")


def test_fault_response_timeout_for_a_request_that_is_not_taken() -> None:
    done = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        passed(done)

    with ScriptedBackend(script) as backend, forwarding(backend, route=QUICK) as live, RawClient(live.url) as client:
        size = 30_000_000
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        try:
            for _ in range(size // 100_000):
                client.send(b"x" * 100_000)
        except ConnectionError:
            pass
        is_fault(client.response(), 504, "response_timeout")
        done.set()


def test_fault_response_time_is_the_routes() -> None:
    slow = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        slow.wait(0.3)
        connection.send(http_response(b"late"))

    route = {"timeouts": {"read_seconds": 5}}
    with ScriptedBackend(script) as backend, forwarding(backend, route=route) as live, RawClient(live.url) as client:
        assert client.get().body == b"late"


CLOSED: dict[str, Callable[[ScriptedConnection], object]] = {
    "closed at once": lambda connection: None,
    "closed after the request": lambda connection: connection.read_request(),
    "reset after the request": lambda connection: (connection.read_request(), connection.reset()),
    "closed within the head": lambda connection: (connection.read_request(), connection.send(b"HTTP/1.1 200 OK\r\nX")),
    "closed after an interim response": lambda connection: (
        connection.read_request(),
        connection.send(b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    ),
}


@pytest.mark.parametrize("script", CLOSED.values(), ids=CLOSED)
def test_fault_closed(script: Callable[[ScriptedConnection], object]) -> None:
    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        is_fault(client.get(), 502, "closed")
        assert live.in_flight == 0


def test_fault_bad_response() -> None:
    with ScriptedBackend(b"NONSENSE 200 OK\r\n\r\n") as backend, forwarding(backend) as live, RawClient(live.url) as client:
        is_fault(client.get(), 502, "bad_response")


def test_fault_in_answer_to_head_has_no_body() -> None:
    with closed_port_url() as url, forwarding(url) as live, RawClient(live.url) as client:
        response = client.get(method="HEAD")
        assert (response.status, response.value("Retry-After")) == (503, "1")
        assert client.get().status == 503


# Truncated: the head has been passed on, so all that is left is never to end well

TRUNCATED: dict[str, bytes] = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
    "length, nothing": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
    "chunked, within a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhello",
    "chunked, after a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "chunked, before the last CRLF": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    "chunked, broken": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n",
    "chunked, longer than announced": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n ",
}
ENDINGS: dict[str, Callable[[ScriptedConnection], object]] = {
    "closed": ScriptedConnection.close,
    "reset": ScriptedConnection.reset,
    "stalled": ScriptedConnection.wait_closed,
}


@pytest.mark.parametrize("request_", [GET, GET_10], ids=["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("end", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("begin", TRUNCATED.values(), ids=TRUNCATED)
def test_fault_truncated_never_looks_complete(begin: bytes, end: Callable[[ScriptedConnection], object], request_: bytes) -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(begin)
        end(connection)

    # Only where the time is what ends it: else a busy machine makes a backend too slow that is not meant to be.
    route = {"timeouts": {"read_seconds": 0.4}} if end is ENDINGS["stalled"] else {}
    with ScriptedBackend(script) as backend, forwarding(backend, route=route) as live, RawClient(live.url) as client:
        client.send(request_)
        head = client.until(b"\r\n\r\n")
        client.unread = head + client.unread
        if head.startswith(b"HTTP/1.1 502 "):
            is_fault(client.response(), 502, "truncated")  # nothing had left yet
        elif head:
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert not client.response().complete, "the client would take this for the whole response"
            assert client.is_closed()
        eventually(lambda: live.in_flight == 0)
        assert live.upstream_connections == 0


def test_fault_truncated_is_recorded(caplog: pytest.LogCaptureFixture) -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert not client.get().complete
        eventually(lambda: "truncated" in caplog.text, "the log says that the response was cut")


# Coming back


def test_backend_that_comes_back_is_used_again_at_once() -> None:
    with ScriptedBackend() as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get().body == b"ok"
        backend.stop()
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: live.gateway.queue.waiting, "it waits for the backend")
        with socket.create_server(("127.0.0.1", backend.port)) as listener:
            listener.settimeout(10)

            def serve() -> None:
                answered = False
                while not answered:  # the first connection only checks whether it listens
                    sock, _ = listener.accept()
                    connection = ScriptedConnection(sock, 0, lambda request: None)
                    answered = connection.read_request() is not None
                    if answered:
                        connection.send(http_response(b"back"))
                    connection.close()

            thread = threading.Thread(target=serve)
            thread.start()
            assert client.response().body == b"back"
            thread.join(10)


def test_endpoints_that_fail_hurt_only_their_own_requests() -> None:
    with closed_port_url() as bad, ScriptedBackend() as good, forwarding(bad, good) as live, RawClient(live.url) as client:
        statuses = [client.get().status for _ in range(60)]
    assert set(statuses) <= {200, 503}
    assert 200 in statuses
