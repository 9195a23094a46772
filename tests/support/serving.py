"""A server on a real socket of this process, with an app that the test gives."""

from __future__ import annotations

import fcntl
import struct
import termios
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rgate.config.models import ServerConfig
from rgate.serving.connection import Connection
from rgate.serving.server import Server

from .raw_client import RawClient, RawResponse
from .waiting import DEADLINE_SECONDS, eventually, passed

App = Callable[..., Iterable[bytes]]


@contextmanager
def serving(app: App, **config: Any) -> Iterator[Server]:
    """A running server. At the end it is stopped and drained, and must have left no connection, upload or spooled body."""
    condition = getattr(app, "readiness", None)  # a gateway has one
    server = Server(app, ServerConfig(**{"port": 0, "threads": 2, "drain_seconds": 5.0, **config}), readiness=condition)
    thread = threading.Thread(target=server.run, name="test-server")
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(DEADLINE_SECONDS)
        server.server_close()
        assert not thread.is_alive(), "the server did not stop"
        assert not server.connections, "connections were left"
        assert not server.uploads, "uploads were left"
        assert (server.spool.files, server.spool.bytes) == (0, 0), "spooled bodies were left"


def echo(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answers with method, path and body."""
    body = b"%b %b %b" % (environ["REQUEST_METHOD"].encode(), environ["RAW_URI"].encode(), environ["wsgi.input"].read())
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def connection_of(server: Server, client: RawClient) -> Connection:
    """The server's end of a client's connection."""

    def find() -> Connection | None:
        every = server.connections
        return next((c for c in every if c._template["REMOTE_PORT"] == str(client.port)), None)

    return eventually(find, "the server accepts the connection")


def send_apart(server: Server, client: RawClient, *blocks: bytes) -> None:
    """Send each block only when the server has read the one before from its socket."""
    connection = connection_of(server, client)
    for block in blocks:
        client.send(block)
        eventually(lambda: _is_taken(connection), "the server takes what was sent")


def _is_taken(connection: Connection) -> bool:
    try:
        return not struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.FIONREAD, b"\0" * 4))[0]
    except (OSError, ValueError):
        return True  # closed


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


class Body:
    """A body whose close() is counted."""

    def __init__(self, *blocks: bytes | BaseException | Callable[[], bytes]) -> None:
        self.blocks = iter(blocks)
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block = next(self.blocks)
        if isinstance(block, BaseException):
            raise block
        return block() if callable(block) else block

    def close(self) -> None:
        assert not self.closed.is_set(), "closed twice"
        self.closed.set()


def respond_with(body: Iterable[bytes], *headers: tuple[str, str], status: str = "200 OK") -> Callable[..., Iterable[bytes]]:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(status, [*headers])
        return body

    return app


def responses(app: Callable[..., Iterable[bytes]], *requests: bytes) -> tuple[list[RawResponse], bool]:
    """The responses to requests on one connection, and whether it stays open after them."""
    with serving(app) as server, RawClient(server.url) as client:
        found = []
        for request in requests:
            client.send(request)
            found.append(client.response(request.partition(b" ")[0].decode()))
        client.send(b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        try:
            return found, client.rest().startswith(b"HTTP/1.1 ")
        except OSError:
            return found, False


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"
GET_10 = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
