"""`rgate healthcheck`: whether a gateway wants requests, for container engines and scripts.

It runs every few seconds, so it asks over a bare socket and imports next to nothing: http.client alone would take longer to
import than asking takes, and the gateway itself twenty times as long.
"""

from __future__ import annotations

import json
import re
import socket
import sys
from typing import Final

from ..serving.runtime_dir import admin_sockets

__all__ = ["DEFAULT_URL", "ask", "run"]

DEFAULT_PORT: Final = 8080
DEFAULT_URL: Final = "http://127.0.0.1:8080"
PATH: Final = "/-/ready"
TIMEOUT_SECONDS: Final = 4.0
MAX_BYTES: Final = 65_536

_URL = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>/[!-~]*)?"
)


def run(url: str | None = None) -> int:
    """Ask, print the line, and return the exit code: 0 for ready, 1 for not, 2 for what is no URL. Without a URL it is the
    admin socket of the gateway at port 8080, or the only one that there is, else port 8080 itself."""
    try:
        ready, line = ask(_found() if url is None else url)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(line, file=sys.stdout if ready else sys.stderr)
    return 0 if ready else 1


def ask(url: str = DEFAULT_URL) -> tuple[bool, str]:
    """Whether the gateway at `url` is ready, and a line that says so or why not. unix:/run/rgate/admin.sock is a unix socket.
    Raises ValueError.

    The path is /-/ready unless the URL has another one; anything but 200 means no. Certificates are not verified: the question
    is whether it answers, it usually runs on this machine, and nothing is told to it.
    """
    parts = _URL.fullmatch(url)
    if unix := url.startswith("unix:/"):
        parts = _URL.fullmatch("localhost")
    if parts is None or int(parts["port"] or 0) > 65_535:
        raise ValueError(f"{url!r} is no URL of a gateway; write one like {DEFAULT_URL}")
    tls = parts["scheme"] == "https"
    path = parts["path"] if (parts["path"] or "/") != "/" else PATH
    port = int(parts["port"] or (443 if tls else 80))
    try:
        status, body = _get(parts["host"], port, path, tls, url.removeprefix("unix:") if unix else "")
        if status == 400 and not tls and b'"not_tls"' in body:
            status, body = _get(parts["host"], port, path, tls=True)
    except (OSError, ValueError) as error:
        return False, f"no gateway answers at {url}: {getattr(error, 'strerror', None) or error}"
    if status == 200:
        return True, "ready"
    return False, _why_not(url, path, status, body)


def _found() -> str:
    usable = [each for each in admin_sockets() if each.usable]
    chosen = [each for each in usable if each.port == DEFAULT_PORT and not each.host] or usable
    return f"unix:{chosen[0].path}" if len(chosen) == 1 else DEFAULT_URL


def _get(host: str, port: int, path: str, tls: bool, path_of_socket: str = "") -> tuple[int, bytes]:
    with _connected(host, port, path_of_socket) as plain:
        sock = plain
        if tls:
            import ssl

            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            sock = context.wrap_socket(plain, server_hostname=host.strip("[]"))
        with sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode("ascii"))
            response = b""
            while len(response) < MAX_BYTES and (block := sock.recv(MAX_BYTES)):
                response += block
    head, _, body = response.partition(b"\r\n\r\n")
    if not re.match(rb"HTTP/1\.[01] [0-9]{3} ", head):
        raise ValueError("what answers there does not speak HTTP")
    return int(head[9:12]), body


def _connected(host: str, port: int, path_of_socket: str) -> socket.socket:
    if not path_of_socket:
        return socket.create_connection((host.strip("[]"), port), TIMEOUT_SECONDS)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(TIMEOUT_SECONDS)
        sock.connect(path_of_socket)
    except BaseException:
        sock.close()
        raise
    return sock


def _why_not(url: str, path: str, status: int, body: bytes) -> str:
    try:
        said = json.loads(body)
        if status == 503 and "ready" in said:
            reasons = [f"{who}: {why}" for who, why in said.get("reasons", {}).items()]
            return f"not ready: {'; '.join(reasons) or 'it does not say why'}"
    except (ValueError, TypeError, AttributeError):
        pass
    if path == PATH:
        return f"{url} answers {status} at {path}; is this rgate, and may this machine ask (plugins.admin.probes)?"
    return f"{url} answers {status}"
