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

from .raw_client import RawClient
from .waiting import DEADLINE_SECONDS, eventually

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
