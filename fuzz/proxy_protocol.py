"""A PROXY header: refused or parsed the same whatever follows, and never before it is complete."""

from __future__ import annotations

from ipaddress import ip_address

from rgate.http1.proxy_protocol import MAX_HEADER_BYTES, ProxyHeader, parse_proxy_header


def one(data: bytes) -> None:
    """Check one input: the first bytes of a connection."""
    read = attempt(data)
    if isinstance(read, ProxyHeader):
        assert 0 < read.size <= min(len(data), MAX_HEADER_BYTES)
        assert attempt(data[: read.size]) == attempt(data + b"GET / HTTP/1.1\r\n") == read
        for end in range(read.size):
            assert attempt(data[:end]) is None, f"decided after {end} bytes of {read.size}"
        if read.address is not None:
            assert str(ip_address(read.address)) == read.address and 0 <= read.port <= 65_535
    elif read is ValueError:
        assert attempt(data + b"\r\n\0") is ValueError, "more bytes make it valid"
    else:
        assert len(data) < MAX_HEADER_BYTES, "a header without an end"


def attempt(data: bytes) -> ProxyHeader | type[ValueError] | None:
    """The header, None when it is incomplete, ValueError when it is refused."""
    try:
        return parse_proxy_header(data)
    except ValueError:
        return ValueError
