"""Memory is bounded by configuration, whatever is sent: each case is sent to a gateway whose process may take no more."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..meta.source import ROOT
from ..raw_client import RawClient
from ..waiting import eventually

MB = 1_000_000
CLIENTS = 300


class Bounded:
    """A gateway in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        self.url = process.stdout.readline().strip()

    def taken(self) -> tuple[int, int]:
        """The most memory that it has taken so far, in bytes, and its present number of threads."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline().split()
        assert len(answer) == 2, f"the gateway has died: {self._process.wait()}"
        return int(answer[0]), int(answer[1])

    def is_well(self) -> None:
        """Another client gets its answer. How soon is for other tests: a busy machine may take its time."""
        with RawClient(self.url) as client:
            client.sock.settimeout(60)
            assert client.get("/well").status == 200


@contextmanager
def bounded(backend_url: str, **options: Any) -> Iterator[Bounded]:
    command = [sys.executable, "-m", "tests.security.bounded", backend_url, json.dumps(options)]
    environ = {**os.environ, "MALLOC_ARENA_MAX": "2"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environ, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield Bounded(process)
        finally:
            process.stdin.close()
            process.wait(20)


@pytest.fixture(scope="module")
def backend() -> Iterator[ScriptedBackend]:
    with ScriptedBackend(http_response(b"ok")) as running:
        yield running


@contextmanager
def connections(url: str, count: int, request: bytes) -> Iterator[list[socket.socket]]:
    """So many connections that send this, as far as it is taken, and read nothing."""
    parts = urlsplit(url)
    with ExitStack() as stack:
        sockets = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            sock.connect((parts.hostname, parts.port))
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.send(request)
            sockets.append(sock)
        yield sockets


START = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = START + b"Transfer-Encoding: chunked\r\n\r\n"
# What a thousand clients send each, and the megabytes that it may cost: the configured limit of each times a thousand, and
# what Python and a thread need for one.
FLOODS: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 60),
    "heads of 60 kB that do not end": (START + b"X: " + b"a" * 60_000, 60 + 65),
    "heads of many short headers that do not end": (START + b"X: y\r\n" * 190, 60),
    "small bodies that do not end": (START + b"Content-Length: 60001\r\n\r\n" + b"a" * 60_000, 60 + 65),
    "large bodies that do not end": (START + b"Content-Length: 900000000000\r\n\r\n" + b"a" * 60_000, 100 + 65),
    "huge chunks": (CHUNKED + b"fffffffffffffff\r\nabc", 100),
    "chunk sizes that do not end": (CHUNKED + b"0" * 4_000, 100),
    "trailers that do not end": (CHUNKED + b"0\r\n" + b"X: y\r\n" * 1_000, 100),
    "requests that nobody reads the answers of": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20, 100),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "megabytes"), FLOODS.values(), ids=FLOODS)
def test_memory_for_hundreds_of_clients_is_bounded(backend: ScriptedBackend, request_: bytes, megabytes: int) -> None:
    with bounded(backend.url, threads=4) as gateway, connections(gateway.url, CLIENTS, request_):
        gateway.is_well()
        gateway.is_well()
        assert gateway.taken()[0] < megabytes * MB


def different(number: int) -> list[bytes]:
    """Requests in which everything differs that is ever remembered; what comes but once is not, so everything comes twice."""
    number //= 2
    padding = b"p" * 300
    return [
        b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number,
        b"GET / HTTP/1.1\r\nHost: x%d\r\n\r\n" % number,
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 10.0.0.%d\r\n\r\n" % number,
        b"GET / HTTP/1.1\r\nHost: x\r\n%b\r\n" % b"".join(b"X-%d-%d: %b\r\n" % (number, n, padding) for n in range(20)),
        b"M%d / HTTP/1.1\r\nHost: x\r\n\r\n" % number,
        b"GET /?%b%d HTTP/1.1\r\nHost: x\r\n\r\n" % (padding, number),
    ]


def test_memory_of_what_was_seen_before_is_bounded() -> None:
    """Lines and heads that come again are known; that there are ever new ones must not matter."""

    def script(connection: ScriptedConnection) -> None:
        number = connection.number * 1_000_000
        while connection.read_request() is not None:
            number += 1
            headers = [(f"X-{number // 2}-{n}", "p" * 300) for n in range(15)]
            connection.send(http_response(b"ok", f"200 {number // 2}", headers))

    with ScriptedBackend(script) as backend, bounded(backend.url) as gateway, RawClient(gateway.url) as client:
        taken = []
        for number in range(900):
            requests = different(number)
            client.send(b"".join(requests))
            assert [client.response().status for _ in requests] == [200] * len(requests)
            if number % 300 == 299:
                taken.append(gateway.taken()[0])
    assert taken[0] < 60 * MB
    assert taken[2] - taken[1] < 4 * MB, f"it grows and grows: {taken}"


def test_memory_for_different_connections_is_bounded(backend: ScriptedBackend) -> None:
    with bounded(backend.url, proxy_protocol=True, max_connections_per_client=10) as gateway:
        taken = []
        for number in range(900):
            with RawClient(gateway.url) as client:
                client.send(
                    b"PROXY TCP4 10.0.%d.%d 192.0.2.1 1 2\r\n" % divmod(number, 250) + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
                )
                assert client.response().status == 200
            if number % 300 == 299:
                taken.append(gateway.taken()[0])
    assert taken[2] - taken[1] < 4 * MB, f"it grows and grows: {taken}"


ENDLESS = {
    "head": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1_000,
    "interim responses": b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000,
    "chunk size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 10_000,
    "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 10_000,
    "huge chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n" + b"a" * 100_000,
}


@pytest.mark.parametrize("block", ENDLESS.values(), ids=ENDLESS)
def test_memory_for_a_backend_that_sends_for_ever_is_bounded(block: bytes) -> None:
    def script(connection: ScriptedConnection) -> None:
        head = connection.read_head()
        if b"/well" in head:
            connection.send(http_response(b"ok"))
        while head:
            connection.send(block)

    with ExitStack() as stack:
        backend = stack.enter_context(ScriptedBackend(script))
        gateway = stack.enter_context(bounded(backend.url, write_seconds=2))
        stack.enter_context(connections(gateway.url, 20, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
        gateway.is_well()
        assert gateway.taken()[0] < 40 * MB


@contextmanager
def streaming(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> Iterator[str]:
    """A backend for a thousand connections at one time."""
    where: list[str] = []
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0, backlog=2_000) as server:
            where.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            started.set()
            await stop.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        thread = threading.Thread(target=runner.run, args=(serve(),))
        thread.start()
        started.wait(10)
        try:
            yield where[0]
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()


@contextmanager
def closing_now(writer: asyncio.StreamWriter) -> Iterator[None]:
    try:
        yield
    finally:
        writer.transport.abort()


def test_memory_for_hundreds_of_slow_readers_of_a_large_response_is_bounded() -> None:
    block = b"x" * 65_536

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing_now(writer), suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            size = 16 if b"/well" in head else 100_000_000
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(0, size, len(block)):
                writer.write(block[:size])
                await writer.drain()

    with ExitStack() as stack:
        gateway = stack.enter_context(bounded(stack.enter_context(streaming(answer)), threads=4, write_seconds=600))
        stack.enter_context(connections(gateway.url, CLIENTS, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
        gateway.is_well()
        eventually(lambda: gateway.taken()[1] >= CLIENTS, "every slow reader has its thread", 60)
        gateway.is_well()
        assert gateway.taken()[0] < 400 * MB, "a block of 256 KiB and a thread for each"
