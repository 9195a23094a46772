"""How the command line asks a running gateway: one request over HTTP, JSON back, every failure in words."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Mapping
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ipaddress import ip_address
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request, build_opener

from ..errors import RgateError

__all__ = ["GatewayUnreachable", "ask"]

TIMEOUT_SECONDS: Final = 10
MAX_BYTES: Final = 64 * 1024 * 1024


class GatewayUnreachable(RgateError):
    """There is no answer to be had; the message says why. `reason` is the slug of the gateway's fault, "" if it is none, and
    `said` its words."""

    def __init__(self, message: str, reason: str = "", said: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.said = said


def ask(
    url: str,
    path: str,
    query: Mapping[str, str | None],
    *,
    method: str = "GET",
    not_there: str = "",
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> tuple[Any, str]:
    """What the gateway at `url` answers at `path`, or at the path of `url` when it has one, and the URL that was asked. A `url`
    like unix:/run/rgate/admin.sock is a unix socket.

    `query` may have None for what is not asked. `not_there` is what to say when the answer is not one of rgate's. The answer is
    None when it is no JSON. Where http is refused because the gateway speaks TLS, it is asked by https; the certificate of one on
    this machine is not verified, as it need not name an address of loopback. Raises GatewayUnreachable.
    """
    path_of_socket = url.removeprefix("unix:") if url.startswith("unix:") else ""
    parts = urlsplit("http://localhost" if path_of_socket else url if "//" in url else f"//{url}", scheme="http")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise GatewayUnreachable(f"{url!r} is no URL of a gateway; write one like http://127.0.0.1:8080")
    asked_for = urlencode({name: value for name, value in query.items() if value is not None})
    asked = parts._replace(path=parts.path if parts.path.strip("/") else path, query=asked_for).geturl()
    request = Request(asked, method=method)
    asked = f"{url} ({path})" if path_of_socket else asked
    try:
        with _opener(parts.hostname or "", path_of_socket).open(request, timeout=timeout_seconds) as response:
            return _json(response.read(MAX_BYTES)), asked
    except HTTPError as error:
        with error:
            said = _json(error.read(100_000))
        said = said if isinstance(said, dict) else {}
        if said.get("reason") == "not_tls" and parts.scheme == "http":
            url = parts._replace(scheme="https").geturl()
            return ask(url, path, query, method=method, not_there=not_there, timeout_seconds=timeout_seconds)
        words = str(said.get("body") or "")
        raise GatewayUnreachable(
            f"{asked} answers {error.code}: {words or not_there}", str(said.get("reason", "")), words
        ) from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        why = " ".join(str(getattr(reason, "strerror", None) or reason).split())
        raise GatewayUnreachable(f"no gateway answers at {asked}: {why}; is it running? --url names another") from None


class _UnixConnection(HTTPConnection):
    """HTTP over the unix socket at this path."""

    def __init__(self, path: str, host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _UnixHandler(HTTPHandler):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def http_open(self, request: Request) -> HTTPResponse:
        """Ask over the socket, whatever the host."""
        return self.do_open(partial(_UnixConnection, self._path), request)


def _opener(host: str, path_of_socket: str) -> OpenerDirector:
    if path_of_socket:
        return build_opener(ProxyHandler({}), _UnixHandler(path_of_socket))
    context = ssl.create_default_context()
    if _is_here(host):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return build_opener(ProxyHandler({}), HTTPSHandler(context=context))  # no proxy: a gateway is asked, not the web


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None
