"""The PROXY protocol: its two headers, and nothing that merely looks like them."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgate.http1.proxy_protocol import ProxyHeader, parse_proxy_header

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def binary(command: int, family: int, body: bytes, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(body) if length is None else length) + body


def addresses(source: str, destination: str, port: int = 5678) -> bytes:
    return ip_address(source).packed + ip_address(destination).packed + struct.pack("!HH", port, 443)


EXTENSION = b"\x02\x00\x05abcde"
GOOD: dict[str, tuple[bytes, str | None, int]] = {
    "v1 IPv4": (b"PROXY TCP4 203.0.113.5 192.0.2.1 5678 443\r\n", "203.0.113.5", 5678),
    "v1 IPv4, the longest": (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255", 65535),
    "v1 IPv6": (b"PROXY TCP6 2001:db8::1 ::1 1 0\r\n", "2001:db8::1", 1),
    "v1 IPv6 in capitals": (b"PROXY TCP6 2001:DB8:0:0::1 ::1 1 0\r\n", "2001:db8::1", 1),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", None, 0),
    "v1 unknown, with anything": (b"PROXY UNKNOWN ffff:f...f:ffff ffff 65535 65535\r\n", None, 0),
    "v2 IPv4": (binary(0x21, 0x11, addresses("203.0.113.5", "192.0.2.1")), "203.0.113.5", 5678),
    "v2 IPv6": (binary(0x21, 0x21, addresses("2001:db8::1", "::1")), "2001:db8::1", 5678),
    "v2 unix": (binary(0x21, 0x31, b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0")), None, 0),
    "v2 unspecified": (binary(0x21, 0x00, b""), None, 0),
    "v2 local": (binary(0x20, 0x00, b""), None, 0),
    "v2 local with addresses": (binary(0x20, 0x11, addresses("203.0.113.5", "192.0.2.1")), None, 0),
    "v2 with extensions": (binary(0x21, 0x11, addresses("203.0.113.5", "192.0.2.1") + EXTENSION * 3), "203.0.113.5", 5678),
    "v2 with an empty extension": (binary(0x21, 0x11, addresses("203.0.113.5", "192.0.2.1") + b"\x04\0\0"), "203.0.113.5", 5678),
}


@pytest.mark.parametrize(("header", "address", "port"), GOOD.values(), ids=GOOD)
def test_header_is_read_when_it_is_whole_and_what_follows_is_left(header: bytes, address: str | None, port: int) -> None:
    for size in range(len(header)):
        assert parse_proxy_header(header[:size]) is None, f"cut at {size}"
    for rest in (b"", b"G", b"GET / HTTP/1.1\r\n\r\n", header):
        assert parse_proxy_header(header + rest) == ProxyHeader(len(header), address, port)


BAD: dict[str, bytes] = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01",
    "empty line": b"\r\n\r\nG",
    "lower case": b"proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n",
    "two spaces": b"PROXY  TCP4 1.1.1.1 1.1.1.1 1 1\r\n",
    "two spaces inside": b"PROXY TCP4 1.1.1.1  1.1.1.1 1 1\r\n",
    "tab": b"PROXY TCP4\t1.1.1.1 1.1.1.1 1 1\r\n",
    "space at the end": b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1 \r\n",
    "bare LF": b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\nGET / HTTP/1.1\r\n\r\n",
    "bare CR": b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\rGET / HTTP/1.1\r\n\r\n",
    "two lines in unknown": b"PROXY UNKNOWN \nGET / HTTP/1.1\r\n",
    "unknown run on": b"PROXY UNKNOWNS\r\n",
    "other family": b"PROXY UDP4 1.1.1.1 1.1.1.1 1 1\r\n",
    "IPv6 as TCP4": b"PROXY TCP4 ::1 ::1 1 1\r\n",
    "IPv4 as TCP6": b"PROXY TCP6 1.1.1.1 1.1.1.1 1 1\r\n",
    "mixed": b"PROXY TCP6 ::1 1.1.1.1 1 1\r\n",
    "bad address": b"PROXY TCP4 1.1.1.256 1.1.1.1 1 1\r\n",
    "leading zero": b"PROXY TCP4 1.1.1.01 1.1.1.1 1 1\r\n",
    "port too large": b"PROXY TCP4 1.1.1.1 1.1.1.1 65536 1\r\n",
    "destination port too large": b"PROXY TCP4 1.1.1.1 1.1.1.1 1 65536\r\n",
    "port with a zero": b"PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n",
    "port missing": b"PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n",
    "no end": b"PROXY UNKNOWN " + b"x" * 94,
    "end too late": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "NUL": b"PROXY UNKNOWN \0\r\n",
    "v2 version 1": binary(0x11, 0x11, addresses("1.1.1.1", "1.1.1.1")),
    "v2 version 3": binary(0x31, 0x11, addresses("1.1.1.1", "1.1.1.1")),
    "v2 command": binary(0x22, 0x11, addresses("1.1.1.1", "1.1.1.1")),
    "v2 datagram": binary(0x21, 0x12, addresses("1.1.1.1", "1.1.1.1")),
    "v2 family": binary(0x21, 0x41, addresses("1.1.1.1", "1.1.1.1")),
    "v2 addresses cut": binary(0x21, 0x11, addresses("1.1.1.1", "1.1.1.1")[:11]),
    "v2 IPv6 cut": binary(0x21, 0x21, addresses("::1", "::1")[:35]),
    "v2 unix cut": binary(0x21, 0x31, bytes(215)),
    "v2 too long": binary(0x21, 0x11, addresses("1.1.1.1", "1.1.1.1"), 4_081),
    "v2 longest": binary(0x21, 0x11, b"", 65_535),
    "v2 extension cut": binary(0x21, 0x11, addresses("1.1.1.1", "1.1.1.1") + b"\x02\0"),
    "v2 extension beyond the end": binary(0x21, 0x11, addresses("1.1.1.1", "1.1.1.1") + b"\x02\0\x06abcde"),
}


@pytest.mark.parametrize("header", BAD.values(), ids=BAD)
def test_anything_else_is_refused_however_it_is_cut(header: bytes) -> None:
    with pytest.raises(ValueError):
        parse_proxy_header(header)
    for size in range(len(header)):
        try:
            assert parse_proxy_header(header[:size]) is None, f"cut at {size}"
        except ValueError:
            break


def test_longest_headers_are_read() -> None:
    line = b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n"
    assert len(line) == 107
    assert parse_proxy_header(line) == ProxyHeader(107)
    filled = addresses("1.1.1.1", "1.1.1.1") + b"\x04" + struct.pack("!H", 4_080 - 12 - 3) + bytes(4_080 - 12 - 3)
    assert len(filled) == 4_080
    assert parse_proxy_header(binary(0x21, 0x11, filled)) == ProxyHeader(4_096, "1.1.1.1", 5678)


@given(
    st.binary(max_size=64) | st.binary(max_size=64).map(SIGNATURE.__add__) | st.binary(max_size=100).map(b"PROXY TCP4 ".__add__)
)
def test_random_bytes_are_refused_or_read_the_same_with_more_behind(block: bytes) -> None:
    try:
        read = parse_proxy_header(block)
    except ValueError:
        with pytest.raises(ValueError):
            parse_proxy_header(block + b"\r\n more")
        return
    if read is not None:
        assert read.size <= len(block)
        assert parse_proxy_header(block + b"\r\n more") == read
        assert parse_proxy_header(block[: read.size - 1]) is None
