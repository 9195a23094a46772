"""A strict reading of what a backend is sent: the judge of "whatever reaches a backend is strictly valid, with one framing".

Written from RFC 9112 alone, without a line of the gateway's own code. The backends of test_advisories.py read with it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

from rgate.testing import ScriptedConnection

_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) (\*|/[\x21-\x7e]*) HTTP/1\.1")
_FIELD = re.compile(
    rb"([!#$%&'*+\-.^`|~0-9A-Za-z]+): ((?:[\x21-\x7e\x80-\xff](?:[ \t\x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)"
)
_HOST = re.compile(rb"(?:[A-Za-z0-9.\-_~!$&'()*+,;=%]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?")
_HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade", b"http2-settings", b"expect"}
# An upgrade, and a client that takes trailers (RFC 9110 §10.1.4: TE is named by Connection), as rgate asks for them.
_ALLOWED = (
    [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")],
    [(b"connection", b"TE"), (b"te", b"trailers")],
)
_NO_TRAILER = re.compile(rb"host|content-length|transfer-encoding|authorization|cookie|x-forwarded-.*|te|connection|content-type")


class Invalid(Exception):
    """The bytes that arrived are not valid HTTP/1.1 for a backend."""


@dataclass(frozen=True)
class Request:
    """A whole request."""

    line: str
    fields: tuple[tuple[str, str], ...]
    body: bytes

    def values(self, name: str) -> list[str]:
        """All values of a header."""
        return [value for other, value in self.fields if other.lower() == name.lower()]


def read(data: bytes) -> tuple[Request | None, bytes]:
    """The first request in `data` and what follows it; None when it is not whole. Raises Invalid."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        if re.search(rb"\n(?<!\r\n)|\r(?!\n|\Z)|\0", head):
            raise Invalid(f"a lone CR, LF or NUL in {head!r}")
        return None, data
    first, *lines = head.split(b"\r\n")
    if not _LINE.fullmatch(first):
        raise Invalid(f"request line {first!r}")
    fields: list[tuple[bytes, bytes]] = []
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise Invalid(f"header line {line!r}")
        fields.append((match[1], match[2]))
    names = [name.lower() for name, _ in fields]
    of_hop = sorted((name.lower(), value) for name, value in fields if name.lower() in (b"connection", b"upgrade", b"te"))
    allowed = {name for name, _ in of_hop} if of_hop in _ALLOWED else set()
    if b"transfer-encoding" in names:
        allowed.add(b"trailer")
    if [value for name, value in fields if name.lower() == b"expect"] == [b"100-continue"]:
        allowed.add(b"expect")
    if named := _HOP_BY_HOP & set(names) - allowed:
        raise Invalid(f"headers of another hop: {named}")
    hosts = [value for name, value in fields if name.lower() == b"host"]
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        raise Invalid(f"Host {hosts}")
    lengths = [value for name, value in fields if name.lower() == b"content-length"]
    codings = [value for name, value in fields if name.lower() == b"transfer-encoding"]
    if len(lengths) + len(codings) > 1:
        raise Invalid(f"framed by {lengths} and {codings}")
    if codings:
        if codings != [b"chunked"]:
            raise Invalid(f"coding {codings}")
        body, after = _read_chunked(rest)
    elif lengths:
        if not re.fullmatch(rb"[0-9]+", lengths[0]):
            raise Invalid(f"length {lengths}")
        size = int(lengths[0])
        body, after = (rest[:size], rest[size:]) if len(rest) >= size else (None, rest)
    else:
        body, after = b"", rest
    if body is None:
        return None, data
    read_fields = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields)
    return Request(first.decode("latin-1"), read_fields, body), after


def _read_chunked(data: bytes) -> tuple[bytes | None, bytes]:
    body = b""
    while True:
        line, end, data = data.partition(b"\r\n")
        if not end:
            if not re.fullmatch(rb"[0-9a-f]*\r?", line):
                raise Invalid(f"chunk size {line!r}")
            return None, b""
        if not re.fullmatch(rb"[0-9a-f]+", line):
            raise Invalid(f"chunk size {line!r}")
        size = int(line, 16)
        if not size:
            trailers, whole, after = (b"\r\n" + data).partition(b"\r\n\r\n")
            for trailer in trailers.split(b"\r\n")[1:] if whole else ():
                match = _FIELD.fullmatch(trailer)
                if match is None or _NO_TRAILER.fullmatch(match[1].lower()):
                    raise Invalid(f"trailer {trailer!r}")
            return (body, after) if whole else (None, b"")
        if len(data) < size + 2:
            if not b"\r\n".startswith(data[size:]):
                raise Invalid(f"end of a chunk {data[size:]!r}")
            return None, b""
        if data[size : size + 2] != b"\r\n":
            raise Invalid(f"end of a chunk {data[size : size + 2]!r}")
        body += data[:size]
        data = data[size + 2 :]


class StrictBackend:
    """A script for ScriptedBackend: answers whole requests with `response`, or what that makes of them, and keeps what it got.

    requests  the whole ones, of all connections
    received  all bytes that came
    invalid   why something that came is not valid; empty if all is well
    partial   beginnings of requests that never became whole
    """

    def __init__(self, response: bytes | Callable[[Request], bytes] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") -> None:
        self.response = response
        self.requests: list[Request] = []
        self.received = bytearray()
        self.invalid: list[str] = []
        self.partial: list[bytes] = []
        self._lock = threading.Lock()

    def __call__(self, connection: ScriptedConnection) -> None:
        """Serve one connection."""
        pending = b""
        try:
            while block := connection.sock.recv(65_536):
                pending += block
                with self._lock:
                    self.received += block
                while pending:
                    request, pending = read(pending)
                    if request is None:
                        break
                    with self._lock:
                        self.requests.append(request)
                    response = self.response
                    connection.send(response if isinstance(response, bytes) else response(request))
        except Invalid as error:
            with self._lock:
                self.invalid.append(str(error))
        finally:
            if pending:
                with self._lock:
                    self.partial.append(bytes(pending))
