"""Large bodies both ways: bounded memory, back-pressure, first bytes at once."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.forwarding import forwarding
from ..support.raw_client import RawClient
from ..support.waiting import passed

MIB = 1024 * 1024
SIZE = int(os.environ.get("RGATE_TEST_BODY_MIB", "256")) * MIB
"""More by hand: RGATE_TEST_BODY_MIB=1024 pytest tests/forwarding/test_large_bodies.py"""

BLOCK = bytes(range(256)) * 1024  # 256 KiB
GROWTH_BYTES = 32 * MIB


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Memory:
    """How much this process (client, gateway and backend in one) has grown at most."""

    def __init__(self) -> None:
        self.start = resident_bytes()
        self.most = self.start

    def look(self) -> None:
        self.most = max(self.most, resident_bytes())

    @property
    def growth(self) -> int:
        return self.most - self.start


def blocks(chunked: bool) -> Iterator[bytes]:
    """A body of SIZE bytes in its framing."""
    piece = b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK) if chunked else BLOCK
    for _ in range(SIZE // len(BLOCK)):
        yield piece
    if chunked:
        yield b"0\r\n\r\n"


def framing(chunked: bool) -> bytes:
    return b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: %d\r\n\r\n" % SIZE


def swallow(receive: Callable[[], bytes], first: bytes, chunked: bool, memory: Memory) -> int:
    """Read a body to its end and drop it; how many bytes there were. BLOCK has no last chunk in it."""
    received, tail = len(first), first[-5:]
    while tail != b"0\r\n\r\n" if chunked else received < SIZE:
        block = receive()
        assert block, f"the body ended after {received} bytes"
        received += len(block)
        tail = (tail + block)[-5:]
        memory.look()
    return received


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_download_streams_in_bounded_memory(chunked: bool) -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\n" + framing(chunked))
        for block in blocks(chunked):
            connection.send(block)

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        client.until(b"\r\n\r\n")
        memory = Memory()
        received = swallow(lambda: client.sock.recv(MIB), client.unread, chunked, memory)
    assert received >= SIZE
    assert memory.growth < GROWTH_BYTES, f"{memory.growth / MIB:.1f} MiB more for {SIZE // MIB} MiB"


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_upload_streams_in_bounded_memory(chunked: bool) -> None:
    received: list[int] = []
    memory: list[Memory] = []

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        memory.append(Memory())
        received.append(swallow(lambda: connection.sock.recv(MIB), connection._unread, chunked, memory[0]))
        connection.send(http_response(b"done"))

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing(chunked))
        for block in blocks(chunked):
            client.send(block)
        assert client.response().body == b"done"
    assert received[0] >= SIZE
    assert memory[0].growth < GROWTH_BYTES, f"{memory[0].growth / MIB:.1f} MiB more for {SIZE // MIB} MiB"


def test_download_to_a_slow_reader_holds_the_backend_back() -> None:
    blocked, sent = threading.Event(), [0]

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        connection.sock.settimeout(0.3)
        try:
            while sent[0] < SIZE:
                sent[0] += connection.sock.send(BLOCK)
        except TimeoutError:
            blocked.set()

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        memory = Memory()
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        passed(blocked, "the backend cannot send any more while the client does not read")
        memory.look()
        assert sent[0] < 32 * MIB, "it is the sockets' buffers that are full, not the gateway"
        assert memory.growth < GROWTH_BYTES


def test_upload_to_a_slow_backend_holds_the_client_back() -> None:
    done = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.read_head()
        passed(done)

    with ScriptedBackend(script) as backend, forwarding(backend) as live, RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing(chunked=False))
        client.sock.settimeout(0.3)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < SIZE:
                sent += client.sock.send(BLOCK)
        assert sent < 32 * MIB
        done.set()


def test_first_bytes_go_on_within_100_ms_both_ways() -> None:
    came: list[float] = []
    go_on = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        connection.read(3)
        came.append(monotonic())
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nfirst")
        came.append(monotonic())
        passed(go_on)

    with (
        ScriptedBackend(script) as backend,
        forwarding(backend, body_buffer_bytes=0) as live,
        RawClient(live.url) as client,
    ):
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        sent = monotonic()
        client.send(b"one")
        client.until(b"first")
        received = monotonic()
        go_on.set()
    assert came[0] - sent < 0.1
    assert received - came[1] < 0.1
