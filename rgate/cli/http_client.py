"""The HTTP client of the commands: one request to a running gateway, over TCP, TLS or a unix socket.

`rgate healthcheck` runs every few seconds, so this is written with a bare socket and imports next to nothing: http.client alone
takes longer to import than the request takes, and the gateway twenty times as long. `ssl` and the like are imported when needed.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from typing import IO, Any, Final, NamedTuple

__all__ = ["DEFAULT_URL", "Address", "GatewayUnreachable", "Response", "ask", "ask_admin", "parse_url", "request"]

DEFAULT_URL: Final = "http://127.0.0.1:8080"
TIMEOUT_SECONDS: Final = 10.0
MAX_BYTES: Final = 64 * 1024 * 1024
MAX_LINE_BYTES: Final = 65_536
MAX_REDIRECTS: Final = 3

_URL = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>/[!-~]*)?"
)
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r\n]")


class GatewayUnreachable(Exception):
    """No gateway has answered, or not with what was asked for; the text says why.

    It is not an RgateError, because rgate.errors is not imported here.

    reason   the slug of the gateway's fault, "" if it was not one
    message  the gateway's message for it
    """

    def __init__(self, text: str, reason: str = "", message: str = "") -> None:
        super().__init__(text)
        self.reason = reason
        self.message = message


class Address(NamedTuple):
    """Where a gateway listens. `path` is that of its URL, "" for none or "/"; `socket_path` that of a unix socket, else ""."""

    tls: bool
    host: str
    port: int
    path: str = ""
    socket_path: str = ""

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine."""
        from ipaddress import ip_address

        try:
            return bool(self.socket_path) or ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"


class Response(NamedTuple):
    """A response. The names of `headers` are in lower case; of several with one name the last counts."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON; None if it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


def parse_url(url: str) -> Address:
    """The address in a URL; the scheme may be absent. unix:PATH is a unix socket. Raises ValueError."""
    if url.startswith("unix:/"):
        return Address(tls=False, host="localhost", port=80, socket_path=url.removeprefix("unix:"))
    parts = _URL.fullmatch(url)
    if parts is None or int(parts["port"] or 0) > 65_535:
        raise ValueError(f"{url!r} is not the URL of a gateway; write one like {DEFAULT_URL}")
    tls = parts["scheme"] == "https"
    path = parts["path"] or ""
    return Address(tls, parts["host"], int(parts["port"] or (443 if tls else 80)), path if path.strip("/") else "")


def request(
    address: Address,
    target: str,
    method: str = "GET",
    *,
    verify: bool = True,
    timeout_seconds: float = TIMEOUT_SECONDS,
    max_bytes: int = MAX_BYTES,
) -> Response:
    """Send one request without a body and return the response. A gateway that answers that it speaks TLS is asked again in TLS.

    `timeout_seconds` bounds each wait, `max_bytes` the body; `verify` is whether the certificate must be valid for the host.
    Raises OSError and ValueError.
    """
    with _connect(address, timeout_seconds) as plain:
        sock = plain
        if address.tls:
            import ssl

            context = ssl.create_default_context()
            if not verify:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            sock = context.wrap_socket(plain, server_hostname=address.host.strip("[]"))
        with sock, sock.makefile("rb") as stream:
            length = "" if method == "GET" else "Content-Length: 0\r\n"
            head = f"{method} {target} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\n{length}Connection: close\r\n\r\n"
            sock.sendall(head.encode("ascii"))
            response = _read_response(stream, max_bytes)
    if response.status == 400 and not address.tls and b'"not_tls"' in response.body:
        address = address._replace(tls=True)
        return request(address, target, method, verify=verify, timeout_seconds=timeout_seconds, max_bytes=max_bytes)
    return response


def _connect(address: Address, timeout_seconds: float) -> socket.socket:
    if not address.socket_path:
        return socket.create_connection((address.host.strip("[]"), address.port), timeout_seconds)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(timeout_seconds)
        sock.connect(address.socket_path)
    except BaseException:
        sock.close()
        raise
    return sock


def _read_response(stream: IO[bytes], max_bytes: int) -> Response:
    status = 0
    headers: dict[str, str] = {}
    while status < 200:  # interim responses come first
        line = _STATUS_LINE.match(stream.readline(MAX_LINE_BYTES))
        if line is None:
            raise ValueError("what answers there does not speak HTTP")
        status = int(line[1])
        headers = {}
        while (field := stream.readline(MAX_LINE_BYTES)).strip():
            name, _, value = field.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
    if status in (204, 304):
        return Response(status, headers, b"")
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return Response(status, headers, _read_chunks(stream, max_bytes))
    length = headers.get("content-length")
    body = _read(stream, int(length), max_bytes) if length is not None else stream.read(max_bytes)
    return Response(status, headers, body)


def _read_chunks(stream: IO[bytes], max_bytes: int) -> bytes:
    body = bytearray()
    while len(body) < max_bytes:
        line = stream.readline(MAX_LINE_BYTES)
        size_bytes = int(line.partition(b";")[0], 16) if line else -1
        if size_bytes == 0:
            break
        body += _read(stream, size_bytes, max_bytes - len(body))
        stream.readline(MAX_LINE_BYTES)
    return bytes(body)


def _read(stream: IO[bytes], size_bytes: int, max_bytes: int) -> bytes:
    """Read `size_bytes`, or `max_bytes` if that is less."""
    size_bytes = min(size_bytes, max_bytes)
    block = stream.read(size_bytes) if size_bytes >= 0 else b""
    if len(block) != size_bytes:
        raise ValueError("the connection was closed before the end of the answer")
    return block


def ask(
    url: str,
    path: str,
    query: Mapping[str, str | None],
    *,
    method: str = "GET",
    not_there: str = "",
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> tuple[Any, str]:
    """Ask the gateway at `url` for `path`, or for the path of `url` if it has one. Returns the JSON answer and the URL asked.

    The answer is None if it is not JSON. Values of `query` that are None are left out. `not_there` is the message if the answer
    is an error without a message of rgate's. Redirects are followed for GET. The certificate of a gateway on this machine is
    not verified, because it does not have to name a loopback address. Raises GatewayUnreachable.
    """
    from urllib.parse import urlencode

    try:
        address = parse_url(url)
    except ValueError as error:
        raise GatewayUnreachable(str(error)) from None
    path = address.path.partition("?")[0] or path
    encoded = urlencode({name: value for name, value in query.items() if value is not None})
    target = f"{path}?{encoded}" if encoded else path
    asked = f"{url} ({path})" if address.socket_path else _url(address, target)
    try:
        response = request(address, target, method, verify=not address.is_loopback, timeout_seconds=timeout_seconds)
        for _ in range(MAX_REDIRECTS):
            if method != "GET" or response.status not in (301, 302, 303, 307, 308) or "location" not in response.headers:
                break
            location = response.headers["location"]
            if not location.startswith("/"):
                address = parse_url(location)
                location = address.path or "/"
            response = request(address, location, verify=not address.is_loopback, timeout_seconds=timeout_seconds)
    except (OSError, ValueError) as error:
        why = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise GatewayUnreachable(f"no gateway answers at {asked}: {why}; is it running? --url names another") from None
    answer = response.json
    if response.status >= 300:
        fault = answer if isinstance(answer, dict) else {}
        message = str(fault.get("body") or "")
        text = f"{asked} answers {response.status}: {message or not_there}"
        raise GatewayUnreachable(text, str(fault.get("reason", "")), message)
    return answer, asked


def ask_admin(
    url: str,
    path: str,
    query: Mapping[str, str | None],
    *,
    method: str = "GET",
    advice: str = "",
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> dict[str, Any]:
    """Ask for a page of the plugin admin, and return its JSON object. `advice` is what to do instead if it is not answered.

    Raises GatewayUnreachable.
    """
    not_there = "the pages under /-/ are not answered there (see plugins.admin.allow), and no admin socket has been found"
    not_there += advice and f"; {advice}"
    try:
        answer, asked = ask(url, path, query, method=method, not_there=not_there, timeout_seconds=timeout_seconds)
    except GatewayUnreachable as error:
        if error.reason == "no_route":
            raise GatewayUnreachable(f"{url}: {not_there}") from None
        raise
    if not isinstance(answer, dict):
        raise GatewayUnreachable(f"what answers at {asked} is not rgate")
    return answer


def _url(address: Address, target: str) -> str:
    port = "" if address.port == (443 if address.tls else 80) else f":{address.port}"
    return f"{'https' if address.tls else 'http'}://{address.host}{port}{target}"
