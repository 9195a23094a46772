"""A backend on a real socket that a test controls."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

__all__ = ["RawRequest", "ScriptedBackend", "ScriptedConnection", "closed_port_url", "http_response"]

PATIENCE_SECONDS = 10.0
"""The longest wait here before the test fails."""


def http_response(body: bytes = b"", status: str = "200 OK", headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """A complete HTTP/1.1 response with a Content-Length, as bytes."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), f"Content-Length: {len(body)}"]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1") + body


@dataclass(frozen=True, slots=True)
class RawRequest:
    """One request as it arrived over the socket.

    `head` is everything up to and including the empty line. `body` is what followed, including the chunk framing and the
    trailers of a chunked body.
    """

    head: bytes
    body: bytes

    @property
    def line(self) -> str:
        """The request line: "GET /x?y HTTP/1.1"."""
        return self.head.partition(b"\r\n")[0].decode("latin-1")

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Names, as sent, and values, in order."""
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        return tuple((name, value.strip(" \t")) for name, _, value in (line.partition(":") for line in lines))

    def values(self, name: str) -> list[str]:
        """All values of a header, whatever the case of its name."""
        return [value for other, value in self.headers if other.lower() == name.lower()]


class ScriptedConnection:
    """One connection of a client, controlled by a script. Every wait ends after PATIENCE_SECONDS."""

    def __init__(self, sock: socket.socket, number: int, record: Callable[[RawRequest], object]) -> None:
        self.sock = sock
        self.number = number
        self._record = record
        self._unread = b""
        sock.settimeout(PATIENCE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read_head(self) -> bytes:
        """The head of the next request; b"" if the client has closed instead."""
        return self._until(b"\r\n\r\n")

    def read_request(self) -> RawRequest | None:
        """The next request, recorded in `ScriptedBackend.requests`; None if the client has closed instead."""
        head = self.read_head()
        if not head:
            return None
        request = RawRequest(head, b"")
        body = b""
        if any("chunked" in value.lower() for value in request.values("transfer-encoding")):
            while line := self._until(b"\r\n"):
                body += line
                size = int(line.partition(b";")[0], 16)
                if not size:
                    while (trailer := self._until(b"\r\n")) not in (b"\r\n", b""):
                        body += trailer
                    body += trailer
                    break
                body += self.read(size + 2)
        else:
            body = self.read(sum(map(int, request.values("content-length"))))
        request = RawRequest(head, body)
        self._record(request)
        return request

    def read(self, size_bytes: int) -> bytes:
        """Read this many bytes, or fewer if the client closes before."""
        while len(self._unread) < size_bytes and (block := self.sock.recv(65_536)):
            self._unread += block
        block, self._unread = self._unread[:size_bytes], self._unread[size_bytes:]
        return block

    def read_some(self) -> bytes:
        """Read what has arrived, at least one byte; b"" if the client has closed."""
        block, self._unread = self._unread or self.sock.recv(65_536), b""
        return block

    def send(self, data: bytes) -> None:
        """Send these bytes now."""
        self.sock.sendall(data)

    def wait_closed(self) -> bool:
        """True once the client has closed or reset the connection; False if it sends something instead."""
        try:
            return not self._unread and not self.sock.recv(65_536)
        except ConnectionError:
            return True

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """End the connection."""
        self.sock.close()

    def _until(self, end: bytes) -> bytes:
        while end not in self._unread:
            block = self.sock.recv(65_536)
            if not block:
                break
            self._unread += block
        found = self._unread.find(end)
        return self.read(found + len(end) if found >= 0 else len(self._unread))


Script: TypeAlias = Callable[[ScriptedConnection], object]


class ScriptedBackend:
    """A backend on a real socket at a free port of 127.0.0.1, with the exact bytes under the test's control. A context manager.

    `script` is either a response in bytes, sent for every request on connections that are kept alive, or a function that is
    called with each ScriptedConnection, in a thread of its own; when it returns, the connection is closed. Use threading.Event
    to synchronise a script with the test. Leaving the context closes all connections and raises the first exception of a
    script, except ConnectionError, because that is raised when the other side closes the connection.
    """

    def __init__(self, script: bytes | Script = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") -> None:
        self._script: Script = partial(_answer_all, script) if isinstance(script, bytes) else script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.requests: list[RawRequest] = []
        self.connections: list[ScriptedConnection] = []
        self._errors: list[Exception] = []
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> ScriptedBackend:
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        if self._errors and not exc_info[0]:
            raise self._errors[0]

    def stop(self) -> None:
        """Stop listening and close all connections; new ones are refused from then on."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    def wait_for_requests(self, count: int) -> list[RawRequest]:
        """Wait until there are `count` requests and return them. Fails after PATIENCE_SECONDS."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.requests) >= count, PATIENCE_SECONDS):
                raise AssertionError(f"waited for {count} requests, only {len(self.requests)} arrived: {self.requests}")
            return list(self.requests)

    def _start(self, target: Callable[..., object], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            connection = ScriptedConnection(sock, len(self.connections), self._record)
            self.connections.append(connection)
            self._start(self._run, connection)

    def _run(self, connection: ScriptedConnection) -> None:
        try:
            self._script(connection)
        except ConnectionError:
            pass
        except Exception as error:
            self._errors.append(error)
        finally:
            connection.close()

    def _record(self, request: RawRequest) -> None:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()


def _answer_all(response: bytes, connection: ScriptedConnection) -> None:
    with suppress(TimeoutError):  # an idle connection, or a body that does not arrive
        while connection.read_request() is not None:
            connection.send(response)


@contextmanager
def closed_port_url() -> Iterator[str]:
    """The URL of an endpoint that refuses connections while inside: its port is bound, but nothing listens on it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
