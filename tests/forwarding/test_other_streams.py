"""Forwarding under another server: wsgi.input is any stream, and it is not known when the client leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rgate import Gateway
from rgate.testing import ScriptedBackend, ScriptedConnection, assert_error, client, http_response, running_gateway

from ..support.waiting import eventually, passed


class Stream:
    """A wsgi.input that can only read(n), and gives what there is of it."""

    def __init__(self, *blocks: bytes) -> None:
        self.blocks = list(blocks)

    def read(self, size: int) -> bytes:
        if not self.blocks:
            return b""
        block = self.blocks.pop(0)
        assert len(block) <= size, f"asked for {size} bytes"
        return block


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    def script(connection: ScriptedConnection) -> None:
        while (request := connection.read_request()) is not None:
            connection.send(http_response(request.body))

    with ScriptedBackend(script) as running:
        yield running


@pytest.fixture
def gateway(backend: ScriptedBackend) -> Iterator[Gateway]:
    with gateway_for(backend) as running:
        yield running


def gateway_for(backend: ScriptedBackend) -> Any:
    config = {
        "backends": [{"name": "backend", "endpoints": [backend.url]}],
        "routes": [{"path_prefix": "/", "backend": "backend", "timeouts": {"read_seconds": 0.2}}],
    }
    return running_gateway(config)


def post(gateway: Gateway, stream: Stream, **environ: str) -> Any:
    return client(gateway).post("/", environ_overrides={"wsgi.input": stream, "wsgi.input_terminated": True, **environ})


def test_stream_of_known_length_goes_on(gateway: Gateway) -> None:
    response = post(gateway, Stream(b"he", b"llo"), CONTENT_LENGTH="5")
    assert response.data == b"hello"


def test_stream_of_unknown_length_goes_on_in_chunks(gateway: Gateway) -> None:
    response = post(gateway, Stream(b"he", b"llo"), HTTP_TRANSFER_ENCODING="chunked")
    assert response.data == b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"


def test_stream_that_is_not_announced_is_not_read(gateway: Gateway, backend: ScriptedBackend) -> None:
    stream = Stream(b"hello")
    assert post(gateway, stream).status_code == 200
    assert stream.blocks == [b"hello"]
    assert backend.requests[-1].values("Content-Length") == []


def test_stream_of_length_0_is_not_read(gateway: Gateway, backend: ScriptedBackend) -> None:
    assert post(gateway, Stream(b"hello"), CONTENT_LENGTH="0").status_code == 200
    assert backend.requests[-1].values("Content-Length") == ["0"]


def test_stream_that_ends_early_is_the_clients_fault_and_never_complete(gateway: Gateway, backend: ScriptedBackend) -> None:
    assert_error(post(gateway, Stream(b"he"), CONTENT_LENGTH="5"), 400, "client_closed")
    eventually(lambda: backend.connections and backend.connections[0].sock.fileno() < 0)
    assert backend.requests == [], "the backend has seen a reset, not the end of the body"


def test_stream_that_raises_is_the_gateways_fault(gateway: Gateway) -> None:
    class Failing(Stream):
        def read(self, size: int) -> bytes:
            raise OSError("the server's stream fails")

    assert_error(post(gateway, Failing(), CONTENT_LENGTH="5"), 500, "internal")


def test_stream_that_the_backend_does_not_take_is_504() -> None:
    done = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        passed(done)

    with ScriptedBackend(script) as backend, gateway_for(backend) as gateway:
        endless = Stream(*[b"x" * 65_536] * 400)
        assert_error(post(gateway, endless, CONTENT_LENGTH=str(400 * 65_536)), 504, "response_timeout")
        done.set()


def test_early_answer_is_passed_on_and_the_rest_is_not_read() -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        connection.send(http_response(b"no", "413 Content Too Large"))
        connection.wait_closed()

    class Slow(Stream):
        def read(self, size: int) -> bytes:
            if len(self.blocks) < 390:  # the backend has answered
                eventually(lambda: backend.connections[0].number == 0)
            return super().read(size)

    with ScriptedBackend(script) as backend, gateway_for(backend) as gateway:
        stream = Slow(*[b"x" * 65_536] * 400)
        response = post(gateway, stream, CONTENT_LENGTH=str(400 * 65_536))
        assert (response.status_code, response.data) == (413, b"no")
        assert stream.blocks, "not all was read"


def test_response_streams_and_is_closed_when_it_is_not_read_to_its_end() -> None:
    ended = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        if connection.wait_closed():
            ended.set()

    with ScriptedBackend(script) as backend, gateway_for(backend) as gateway:
        response = client(gateway).get("/", buffered=False)
        blocks = response.iter_encoded()
        assert next(iter(blocks)) == b"first"
        response.close()
        passed(ended, "closing the response closes the connection to the backend")
        endpoints = gateway.table.snapshot.endpoints["backend"]
        assert [endpoint.state.in_flight for endpoint in endpoints] == [0]


def test_start_response_that_fails_closes_the_connection() -> None:
    ended = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        if connection.wait_closed():
            ended.set()

    def start_response(*_: object) -> Any:
        raise RuntimeError("the server refuses the response")

    with ScriptedBackend(script) as backend, gateway_for(backend) as gateway:
        from werkzeug.test import create_environ

        with pytest.raises(RuntimeError, match="refuses"):
            gateway(create_environ("/", environ_base={"REMOTE_ADDR": "127.0.0.1"}), start_response)
        passed(ended)
        endpoints = gateway.table.snapshot.endpoints["backend"]
        assert [endpoint.state.in_flight for endpoint in endpoints] == [0]
