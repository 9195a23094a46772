"""An HTTP client on a real socket that sends exactly the bytes a test says, and shows the bytes that arrive."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from .waiting import DEADLINE_SECONDS


@dataclass(frozen=True)
class RawResponse:
    """One response as it arrived. `complete`: the body ended as its framing says. `trailers`: the lines after the body."""

    head: bytes
    body: bytes
    complete: bool = True
    trailers: bytes = b""

    @property
    def line(self) -> str:
        return self.head.partition(b"\r\n")[0].decode("latin-1")

    @property
    def status(self) -> int:
        return int(self.line.split(" ")[1])

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Names as sent and values, in order."""
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        return [(name, value.strip(" \t")) for name, _, value in (line.partition(":") for line in lines)]

    def values(self, name: str) -> list[str]:
        """All values of a header, whatever the case of its name."""
        return [value for other, value in self.headers if other.lower() == name.lower()]

    def value(self, name: str) -> str | None:
        """The only value of a header, or None."""
        values = self.values(name)
        assert len(values) < 2, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None


class RawClient:
    """One connection to a server; a context manager. `host` is the Host that get() sends. Waits end after DEADLINE_SECONDS."""

    def __init__(self, url: str, host: str = "x") -> None:
        parts = urlsplit(url)
        self.host = host
        self.sock = socket.create_connection((parts.hostname, parts.port), DEADLINE_SECONDS)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.unread = b""

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()

    @property
    def port(self) -> int:
        """The client's own port, by which a server knows the connection."""
        port: int = self.sock.getsockname()[1]
        return port

    def send(self, *blocks: bytes) -> None:
        """Send each block on its own."""
        for block in blocks:
            self.sock.sendall(block)

    def get(self, target: str = "/", *headers: str, method: str = "GET") -> RawResponse:
        """Send a plain request and read its response."""
        self.send(
            "".join(f"{line}\r\n" for line in [f"{method} {target} HTTP/1.1", f"Host: {self.host}", *headers, ""]).encode(
                "latin-1"
            )
        )
        return self.response(method)

    def response(self, method: str = "GET") -> RawResponse:
        """Read the next response, which may be an interim one. Fails if the connection ends without one."""
        head = self.until(b"\r\n\r\n")
        assert head.endswith(b"\r\n\r\n"), f"no whole response head, but {head!r} and the end of the connection"
        response = RawResponse(head, b"")
        if method == "HEAD" or response.status < 200 or response.status in (204, 304):
            return response
        if response.value("Transfer-Encoding") == "chunked":
            return self._chunked(head)
        length = response.value("Content-Length")
        if length is None:
            return RawResponse(head, self.rest(), complete=not self.was_reset)
        body = self.read(int(length))
        return RawResponse(head, body, complete=len(body) == int(length))

    def _chunked(self, head: bytes) -> RawResponse:
        body = b""
        while line := self.until(b"\r\n"):
            size = int(line, 16) if line.endswith(b"\r\n") else -1
            if not size:
                trailers = b""
                while (trailer := self.until(b"\r\n")) not in (b"\r\n", b""):
                    trailers += trailer
                return RawResponse(head, body, complete=trailer == b"\r\n", trailers=trailers)
            block = self.read(size + 2)
            body += block[:size] if block.endswith(b"\r\n") else block
            if size < 0 or len(block) < size + 2:
                break
            assert block.endswith(b"\r\n"), f"no CRLF after a chunk of {size} bytes, but {block[size:]!r}"
        return RawResponse(head, body, complete=False)

    def until(self, end: bytes) -> bytes:
        """Read up to and including `end`, or to the end of the connection."""
        while end not in self.unread:
            if not self._more():
                break
        at = self.unread.find(end)
        return self.read(at + len(end) if at >= 0 else len(self.unread))

    def read(self, size_bytes: int) -> bytes:
        """Read `size_bytes` bytes, or fewer if the connection ends before."""
        blocks = [self.unread]
        size = len(self.unread)
        while size < size_bytes:
            self.unread = b""
            if not self._more():
                break
            blocks.append(self.unread)
            size += len(self.unread)
        whole = b"".join(blocks)
        block, self.unread = whole[:size_bytes], whole[size_bytes:]
        return block

    def rest(self) -> bytes:
        """Read to the end of the connection."""
        while self._more():
            pass
        block, self.unread = self.unread, b""
        return block

    was_reset = False

    def _more(self) -> bool:
        try:
            block = self.sock.recv(262_144)
        except ConnectionError:
            self.was_reset = True
            return False
        self.unread += block
        return bool(block)

    def is_closed(self) -> bool:
        """Wait for the end of the connection; whether it came without another byte. A reset counts as an end."""
        return self.rest() == b""

    def is_silent(self) -> bool:
        """Whether the connection is open and nothing has arrived. Does not wait."""
        self.sock.setblocking(False)
        try:
            with suppress(BlockingIOError):
                self.sock.recv(1, socket.MSG_PEEK)
                return False  # a byte, or the end
            return not self.unread
        finally:
            self.sock.settimeout(DEADLINE_SECONDS)

    def half_close(self) -> None:
        """Close the sending side."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()
