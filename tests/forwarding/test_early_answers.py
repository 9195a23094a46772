"""A backend may answer before it has the whole request, and take no more of it."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.forwarding import Forwarding, forwarding
from ..support.raw_client import RawClient
from ..support.waiting import eventually, passed

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


CHUNKED_POST = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


SMALL_POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"


def resting(live: Forwarding, count: int) -> None:
    eventually(lambda: live.upstream_connections == count, f"{count} connections rest")


def test_early_answer_reaches_a_client_that_is_still_sending() -> None:
    closed = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        connection.send(http_response(b"too large", "413 Content Too Large"))
        with suppress(ConnectionError):
            while connection.sock.recv(65_536):
                pass  # what has been sent of the body
        closed.set()

    with ScriptedBackend(script) as backend, forwarding(backend, body_buffer_bytes=0) as live, RawClient(live.url) as client:
        client.send(CHUNKED_POST + b"5\r\nhello\r\n")
        response = client.response()
        assert (response.status, response.body, response.value("Connection")) == (413, b"too large", "close")
        assert client.is_closed()
        passed(closed, "the backend's connection is closed, as its request will never be whole")


@pytest.mark.parametrize("stalled", [b"5\r\nhello\r\n1", b"5\r\nhello\r", b"1;a", b"0\r\nX-Su"])
def test_early_answer_reaches_a_client_that_has_stalled_within_the_coding(stalled: bytes) -> None:
    """Half a chunk's size is not yet a byte of the body: whoever reads on for that reads past the answer."""
    seen, answer = threading.Event(), threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        seen.set()
        passed(answer)
        connection.send(http_response(b"too large", "413 Content Too Large"))
        connection.wait_closed()

    with ScriptedBackend(script) as backend, forwarding(backend, body_buffer_bytes=0) as live, RawClient(live.url) as client:
        client.send(CHUNKED_POST, stalled)
        passed(seen)
        answer.set()
        response = client.response()
        assert (response.status, response.body) == (413, b"too large")


@pytest.mark.parametrize("backend_closes", [False, True], ids=["stays", "closes"])
def test_early_answer_reaches_a_client_whose_upload_the_backend_does_not_take(backend_closes: bool) -> None:
    """The backend answers and reads no more, so that what it has been sent fills every buffer on the way."""
    done = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        connection.send(http_response(b"too large", "413 Content Too Large"))
        if not backend_closes:
            passed(done)

    size = 30_000_000
    with ScriptedBackend(script) as backend, forwarding(backend, body_buffer_bytes=0) as live, RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        try:
            for _ in range(size // 100_000):
                client.send(b"x" * 100_000)
        except ConnectionError:
            pass  # which is how a client notices that it may stop
        response = client.response()
        assert (response.status, response.body) == (413, b"too large")
        done.set()
        assert live.upstream_connections == 0, "half a request is still under way on that connection"


def test_early_answer_to_a_small_body_that_the_backend_never_reads_is_passed_on() -> None:
    answered = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        connection.send(http_response(b"no", "403 Forbidden"))
        passed(answered)

    with ScriptedBackend(script) as backend, forwarding(backend, body_buffer_bytes=0) as live, RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + b"x" * 60_000)
        response = client.response()
        assert (response.status, response.body) == (403, b"no")
        answered.set()


@pytest.mark.parametrize("response", [http_response(), b"HTTP/1.1 204 No Content\r\n\r\n"], ids=["200", "204"])
def test_early_answer_that_is_good_and_empty_is_passed_on(response: bytes) -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        connection.send(response)
        connection.wait_closed()

    with ScriptedBackend(script) as backend, forwarding(backend, body_buffer_bytes=0) as live, RawClient(live.url) as client:
        client.send(CHUNKED_POST + b"5\r\nhello\r\n")
        answer = client.response()
        assert (answer.status in (200, 204), answer.body, answer.value("Connection")) == (True, b"", "close")
        assert client.is_closed()
        assert live.upstream_connections == 0, "half a request is still under way on that connection"


def test_early_answer_that_is_good_streams_both_ways() -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(2):
            connection.send(connection.read(8))
        connection.send(connection.read(5))

    with ScriptedBackend(script) as backend, forwarding(backend, body_buffer_bytes=0) as live, RawClient(live.url) as client:
        client.send(CHUNKED_POST + b"3\r\none\r\n")
        client.until(b"one\r\n")
        client.send(b"3\r\ntwo\r\n")
        assert client.until(b"two\r\n") == b"3\r\ntwo\r\n"
        client.send(b"0\r\n\r\n")
        assert client.until(b"0\r\n\r\n") == b"0\r\n\r\n"
