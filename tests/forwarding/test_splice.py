"""Large bodies of known length between plain sockets: from socket to socket by splice(2)."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rgate.forwarding import upload as body
from rgate.forwarding.upload import SPLICE, SplicePipe
from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.forwarding import forwarding
from ..support.raw_client import RawClient
from ..support.waiting import eventually, passed

pytestmark = pytest.mark.skipif(not SPLICE, reason="there is no splice(2) here")

PAYLOAD = random.Random(1).randbytes(3_000_000)


class _Counted(SplicePipe):
    """Counts what goes through pipes, and which are open."""

    open = 0
    moved = 0

    def __init__(self) -> None:
        super().__init__()
        _Counted.open += 1

    def fill(self, fd: int, max_bytes: int) -> int:
        taken = super().fill(fd, max_bytes)
        _Counted.moved += taken
        return taken

    def close(self) -> None:
        if self._reading >= 0:
            _Counted.open -= 1
        super().close()


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(body, "SplicePipe", _Counted)
    monkeypatch.setattr(_Counted, "open", 0)
    monkeypatch.setattr(_Counted, "moved", 0)
    yield
    assert _Counted.open == 0, "a pipe was left open"


class _Swallowed:
    """A backend that keeps what it was sent."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def __call__(self, connection: ScriptedConnection) -> None:
        while (request := connection.read_request()) is not None:
            self.bodies.append(request.body)
            connection.send(http_response(b"ok"))


def put(size: int, path: str = "/") -> bytes:
    return b"PUT %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), size)


def test_large_upload_goes_through_a_pipe_and_arrives_byte_for_byte() -> None:
    script = _Swallowed()
    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(put(len(PAYLOAD)) + PAYLOAD)
        assert client.response().body == b"ok"
    assert script.bodies == [PAYLOAD]
    assert _Counted.moved > len(PAYLOAD) // 2, "hardly anything went through the pipe"


def test_request_that_follows_an_upload_in_the_same_bytes_is_not_taken_for_its_end() -> None:
    script = _Swallowed()
    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        sender = threading.Thread(target=client.send, args=((put(len(PAYLOAD)) + PAYLOAD) * 2 + put(3) + b"end",))
        sender.start()
        assert [client.response().body for _ in range(3)] == [b"ok"] * 3
        sender.join()
    assert script.bodies == [PAYLOAD, PAYLOAD, b"end"]


def test_upload_goes_the_ordinary_way_where_splice_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "SPLICE", False)
    script = _Swallowed()
    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(put(len(PAYLOAD)) + PAYLOAD)
        assert client.response().body == b"ok"
    assert (script.bodies, _Counted.moved) == ([PAYLOAD], 0)


def test_client_that_leaves_within_a_large_upload_leaves_no_pipe_and_no_whole_request() -> None:
    ended = threading.Event()
    received: list[int] = []

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        count = 0
        try:
            while block := connection.read_some():
                count += len(block)
        except ConnectionResetError:
            received.append(count)
        ended.set()

    with ScriptedBackend(script) as backend, forwarding(backend) as live:
        with RawClient(live.url) as client:
            client.send(put(len(PAYLOAD)) + PAYLOAD[:1_500_000])
            eventually(lambda: _Counted.moved > 500_000, "nothing went through the pipe")
        passed(ended)
        eventually(lambda: live.in_flight == 0, "the request is still in flight")
    assert received[0] < len(PAYLOAD)


def test_backend_that_resets_within_a_large_upload_leaves_no_pipe_and_gives_502() -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        connection.reset()

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        sender = threading.Thread(target=_send_what_is_taken, args=(client, put(30_000_000) + PAYLOAD * 10))
        sender.start()
        assert client.response().status == 502
        sender.join()


def _send_what_is_taken(client: RawClient, block: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        client.send(block)


def test_pipe_moves_what_there_is_and_says_when_there_is_nothing() -> None:
    (near, giver), (taker, far) = socket.socketpair(), _tcp_pair()
    pipe = SplicePipe()
    try:
        with pytest.raises(BlockingIOError):
            pipe.fill(giver.fileno(), 10)
        near.sendall(b"0123456789abc")
        assert (pipe.fill(giver.fileno(), 10), pipe.pending) == (10, 10)
        pipe.drain(taker.fileno())
        assert (pipe.pending, far.recv(100)) == (0, b"0123456789")
        near.close()
        assert (pipe.fill(giver.fileno(), 10), pipe.fill(giver.fileno(), 10)) == (3, 0), "b'abc', then the end"
    finally:
        pipe.close()
        pipe.close()
        for sock in (near, giver, taker, far):
            sock.close()


def _tcp_pair() -> tuple[socket.socket, Any]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def test_a_pipe_that_cannot_be_large_is_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, command: int, size: int) -> int:
        raise PermissionError

    monkeypatch.setattr("rgate.forwarding.upload.fcntl.fcntl", refuse)
    pipe = SplicePipe()
    pipe.close()
    with pytest.raises(OSError):
        os.fstat(pipe._reading)
