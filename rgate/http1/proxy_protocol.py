"""The PROXY protocol, versions 1 and 2: the first bytes of a connection, in which a proxy names the client that it forwards.

Parsed strictly by its specification (haproxy.org, doc/proxy-protocol.txt): anything that is not exactly a header of one of the
two versions ends the connection, because a lenient parser can be made to take a client's bytes for a proxy's.
"""

from __future__ import annotations

import re
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

__all__ = ["MAX_HEADER_BYTES", "ProxyHeader", "parse_proxy_header"]

MAX_HEADER_BYTES: Final = 4_096  # version 2 allows 65,551; addresses and TLVs of real proxies take a few hundred
_MAX_LINE_BYTES: Final = 107
_LINE = re.compile(
    rb"PROXY (?:(TCP4|TCP6) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) ([0-9]{1,5}) ([0-9]{1,5})|UNKNOWN(?: [\t\x20-\x7e]*)?)"
)
_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31  # family and transport; a datagram never comes over a stream
_ADDRESS_BYTES: Final = {_UNSPECIFIED: 0, _TCP4: 12, _TCP6: 36, _UNIX: 216}


class ProxyHeader(NamedTuple):
    """A complete header of `size` bytes. The bytes after it are the client's.

    `address` and `port` are the client's. `address` is None when the header does not name one (LOCAL, UNKNOWN, a UNIX socket):
    then the peer is the client.
    """

    size: int
    address: str | None = None
    port: int = 0


def parse_proxy_header(block: bytes) -> ProxyHeader | None:
    """The header at the beginning of `block`, which is all that has arrived so far; None while it may still become one.

    Raises ValueError when it cannot.
    """
    if block.startswith(_SIGNATURE):
        return _parse_binary(block)
    if block.startswith(b"PROXY "):
        return _parse_line(block)
    if _SIGNATURE.startswith(block) or b"PROXY ".startswith(block):
        return None
    raise ValueError("not a PROXY header")


def _parse_line(block: bytes) -> ProxyHeader | None:
    end = block.find(b"\r\n", 0, _MAX_LINE_BYTES)
    if end < 0:
        if len(block) >= _MAX_LINE_BYTES:
            raise ValueError("a PROXY line without an end")
        return None
    match = _LINE.fullmatch(block[:end])
    if match is None:
        raise ValueError("malformed PROXY line")
    family = match[1]
    if family is None:
        return ProxyHeader(end + 2)
    kind = IPv4Address if family == b"TCP4" else IPv6Address
    source, destination = (ip_address(match[at].decode()) for at in (2, 3))
    if not isinstance(source, kind) or not isinstance(destination, kind):
        raise ValueError("an address of another family")
    port, _ = (_port(match[at].decode()) for at in (4, 5))
    return ProxyHeader(end + 2, str(source), port)


def _port(text: str) -> int:
    if (text[0] == "0" and text != "0") or int(text) > 65_535:
        raise ValueError("not a port")
    return int(text)


def _parse_binary(block: bytes) -> ProxyHeader | None:
    if len(block) < 16:
        return None
    command, family, length = struct.unpack_from("!BBH", block, 12)
    if command not in (_LOCAL, _PROXY) or family not in _ADDRESS_BYTES:
        raise ValueError("unknown version, command or family in a PROXY header")
    size = 16 + length
    address_bytes = _ADDRESS_BYTES[family]
    if size > MAX_HEADER_BYTES or length < address_bytes:
        raise ValueError("a PROXY header of impossible length")
    if len(block) < size:
        return None
    _check_extensions(block, 16 + address_bytes, size)
    if command == _LOCAL or family in (_UNSPECIFIED, _UNIX):
        return ProxyHeader(size)
    if family == _TCP4:
        return ProxyHeader(size, str(IPv4Address(block[16:20])), *struct.unpack_from("!H", block, 24))
    return ProxyHeader(size, str(IPv6Address(block[16:32])), *struct.unpack_from("!H", block, 48))


def _check_extensions(block: bytes, at: int, end: int) -> None:
    """Check the sequence of type, length and value. None of them is used."""
    while at < end:
        if end - at < 3:
            raise ValueError("a truncated extension in a PROXY header")
        at += 3 + int.from_bytes(block[at + 1 : at + 3])
    if at != end:
        raise ValueError("an extension that exceeds its PROXY header")
