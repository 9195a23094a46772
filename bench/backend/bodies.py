"""A backend that reads request bodies to their end, takes its time, or streams: python bodies.py PORT

    /api/payment/read     read the body, then 200 bytes of JSON
    /api/payment/slow     the same, a second later
    /api/payment/stream   64 chunks of 1 KiB, each sent by itself

It expects one request at a time on a connection, which is what proxies send.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from typing import cast

JSON = b'{"status":200,"message":{"message":"Hello from payment","service_name":"payment","pad":"' + b"x" * 109 + b'"}}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(JSON), JSON)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"400\r\n" + b"x" * 1024 + b"\r\n"
CHUNKS = 64
SLOW_SECONDS = 1.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


class Bodies(asyncio.Protocol):
    """One connection. `missing` counts the body's bytes still to come; it is None before the head is there, -1 for chunked."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.head = b""
        self.tail = b""
        self.missing: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        if self.missing is None:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return
            data, self.head = self.head[end + 4 :], self.head[: end + 2]
            length = _LENGTH.search(self.head)
            self.missing = int(length[1]) if length else -1 if _CHUNKED.search(self.head) else 0
            if b"100-continue" in self.head:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.missing < 0:
            self.tail = (self.tail + data)[-5:]
            if self.tail != b"0\r\n\r\n":
                return
        else:
            self.missing -= len(data)
            if self.missing > 0:
                return
        path = self.head.split(b" ", 2)[1]
        self.head, self.tail, self.missing = b"", b"", None
        if path.endswith(b"/slow"):
            asyncio.get_running_loop().call_later(SLOW_SECONDS, self.transport.write, ANSWER)
        elif path.endswith(b"/stream"):
            self.transport.write(STREAM_HEAD)
            for _ in range(CHUNKS):
                self.transport.write(CHUNK)
            self.transport.write(b"0\r\n\r\n")
        else:
            self.transport.write(ANSWER)


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Bodies, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(ImportError):
        import uvloop  # type: ignore[import-not-found, unused-ignore]

        uvloop.install()
    asyncio.run(serve(int(sys.argv[1])))
