"""A Docker engine that answers what the test wrote: good, bad, cut or never; and one that speaks TLS."""

from __future__ import annotations

import json
import shutil
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from ...support.certificates import authority
from ...support.waiting import DEADLINE_SECONDS

Answer: TypeAlias = "tuple[int, bytes] | Callable[[Request], None]"


def line(action: str, **attributes: str) -> bytes:
    return json.dumps({"Type": "container", "Action": action, "Actor": {"ID": "a", "Attributes": attributes}}).encode() + b"\n"


class Request(BaseHTTPRequestHandler):
    """One connection to the fake engine."""

    protocol_version = "HTTP/1.1"
    server: FakeEngine

    def address_string(self) -> str:
        return "client"

    def log_message(self, *_: Any) -> None:
        pass

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        if parsed and self.command != "GET":
            self.server.asked.append(f"{self.command} {self.path}")
        return parsed

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = urlsplit(self.path).path
        answer = next((a for end, a in self.server.answers.items() if path.endswith(end)), (404, b'{"message": "no such page"}'))
        if callable(answer):
            answer(self)
            self.close_connection = True
            return
        status, body = answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, *pieces: bytes, end: bool = False) -> None:
        """Begin a chunked answer, with these chunks."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if end:
            self.wfile.write(b"0\r\n\r\n")

    def hang(self) -> None:
        """Say nothing more until the test is over."""
        self.server.over.wait(DEADLINE_SECONDS)


class FakeEngine(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Request)
        self.url = f"unix://{path}"
        self.answers: dict[str, Answer] = {
            "/version": (200, b'{"ApiVersion": "1.41"}'),
            "/containers/json": (200, b'[{"Id": "a"}]'),
            "/containers/a/json": (200, b'{"Id": "a"}'),
        }
        self.asked: list[str] = []
        self.over = threading.Event()

    def handle_error(self, *_: Any) -> None:
        pass  # the client went away


def certificates(directory: Path) -> None:
    """ca.pem, cert.pem and key.pem for the client, by the names that Docker gives them, and server.pem for the engine."""
    engine, client = authority().issue("127.0.0.1"), authority().issue("client.example", common_name="client")
    files = {"ca": authority().file, "cert": client.certificate, "key": client.key, "server": engine.both}
    for name, file in files.items():
        shutil.copy(file, directory / f"{name}.pem")


@contextmanager
def tls_engine(directory: Path) -> Iterator[tuple[int, list[str]]]:
    """An engine without containers that wants a certificate of its clients; the names that it saw in them."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(directory / "ca.pem"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(directory / "server.pem")
    seen: list[str] = []

    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = b'{"ApiVersion": "1.41"}' if self.path == "/version" else b"[]"
            if not seen:
                subject = self.connection.getpeercert()["subject"]
                seen.extend(value for ((name, value),) in subject if name == "commonName")
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port, seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
