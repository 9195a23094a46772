"""The demo's payment service: one file and the standard library, as a team of its own would ship it.

    python app.py --host 127.0.0.1 --port 8000

Every path and method is answered with JSON. Port 0 takes a free port; the start line says which.
The environment variables HOST and PORT are the defaults of the two options.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SERVICE_NAME = "payment"


class Payment(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave in one write: two small ones would wait for each other's ACK

    def answer(self) -> None:
        self.skip_body()
        reply = {
            "message": f"Hello from {SERVICE_NAME}",
            "service_name": SERVICE_NAME,
            "method": self.command,
            "path": self.path,
        }
        body = json.dumps(reply).encode() + b"\n"
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

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
    request_queue_size = 128  # the default of 5 makes a burst of new connections wait a second


def main() -> None:
    options = argparse.ArgumentParser(description="The demo's payment service.")
    options.add_argument("--host", default=os.environ.get("HOST", "127.0.0.1"))
    options.add_argument("--port", type=int, default=int(os.environ.get("PORT", "8000")))
    chosen = options.parse_args()
    # As PID 1 of a container a process without this would not be ended by SIGTERM, and `docker stop` take 10 s.
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: sys.exit(0))
    with Server((chosen.host, chosen.port), Payment) as server:
        print(f"{SERVICE_NAME} listens on http://{chosen.host}:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
