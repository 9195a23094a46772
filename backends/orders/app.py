"""The demo's orders service: one file and the standard library, as a team of its own would ship it.

    python app.py --host 127.0.0.1 --port 8000

Every path and method is answered with JSON that names the instance, so that one sees which of several answered;
`?delay_ms=500` makes it wait first, so that one sees requests go to the less busy one. Port 0 takes a free port; the
start line says which. The environment variables HOST and PORT are the defaults of the two options, INSTANCE is this
instance's name (default: the host's).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

SERVICE_NAME = "orders"
INSTANCE = os.environ.get("INSTANCE") or socket.gethostname()
DELAY_LIMIT_MS = 30_000
QUIET_SECONDS = 0.3
STOP_LIMIT_SECONDS = 8.0  # `docker stop` waits 10


class Orders(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave in one write: two small ones would wait for each other's ACK
    server: Server

    def answer(self) -> None:
        with self.server.respond_with():
            self.reply()
            self.wfile.flush()

    def reply(self) -> None:
        self.skip_body()
        time.sleep(self.asked_delay_ms() / 1000)
        reply = {
            "message": f"Hello from {SERVICE_NAME}",
            "service_name": SERVICE_NAME,
            "instance": INSTANCE,
            "method": self.command,
            "path": self.path,
        }
        body = json.dumps(reply).encode() + b"\n"
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.server.stopping:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

    def asked_delay_ms(self) -> int:
        """The query's `delay_ms`, at most DELAY_LIMIT_MS; 0 when absent or not a number."""
        (asked,) = parse_qs(urlsplit(self.path).query).get("delay_ms", ["0"])[:1]
        return min(int(asked), DELAY_LIMIT_MS) if asked.isdecimal() else 0

    def skip_body(self) -> None:
        """Read the request's body to its end: what is left would be taken for the next request."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                self.skip(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            self.skip(int(self.headers.get("Content-Length", 0)))

    def skip(self, size_bytes: int) -> None:
        while size_bytes > 0 and (piece := self.rfile.read(min(size_bytes, 65536))):
            size_bytes -= len(piece)


class Server(ThreadingHTTPServer):
    """Told to stop, it serves on until its clients have noticed, so that no request is lost."""

    request_queue_size = 128  # the default of 5 makes a burst of new connections wait a second

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, Orders)
        self.stopping = False
        self.lock = threading.Lock()
        self.in_flight = 0
        self.requests = 0

    @contextmanager
    def respond_with(self) -> Iterator[None]:
        with self.lock:
            self.in_flight += 1
            self.requests += 1
        try:
            yield
        finally:
            with self.lock:
                self.in_flight -= 1

    def finish(self) -> None:
        """End once no request has come for QUIET_SECONDS and all are answered, after STOP_LIMIT_SECONDS at the latest."""
        self.stopping = True
        limit = time.monotonic() + STOP_LIMIT_SECONDS
        seen = -1
        while (seen != self.requests or self.in_flight) and time.monotonic() < limit:
            seen = self.requests
            time.sleep(QUIET_SECONDS)
        self.shutdown()


def main() -> None:
    options = argparse.ArgumentParser(description="The demo's orders service.")
    options.add_argument("--host", default=os.environ.get("HOST", "127.0.0.1"))
    options.add_argument("--port", type=int, default=int(os.environ.get("PORT", "8000")))
    chosen = options.parse_args()
    # Waited for, not handled: as PID 1 of a container a process that does neither is not ended by SIGTERM.
    endings = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, endings)
    with Server((chosen.host, chosen.port)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"{SERVICE_NAME} ({INSTANCE}) listens on http://{chosen.host}:{server.server_port}", flush=True)
        signal.sigwait(endings)
        server.finish()


if __name__ == "__main__":
    main()
