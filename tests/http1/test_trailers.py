"""Trailer fields: what may be passed on, and what would change how a message is read."""

from __future__ import annotations

import pytest

from rgate.http1.trailers import announced_trailers, read_trailers

PASSED = [
    "X-Sum", "grpc-status", "Grpc-Message", "Server-Timing", "ETag", "Content-Digest", "Content-MD5", "Repr-Digest",
    "x-amz-checksum-crc32", "Authentication-Info",
]  # fmt: skip
DROPPED = [
    # framing, routing, modifiers of the request, authentication, and how content is processed (RFC 9110 §6.5.1)
    "Transfer-Encoding", "Content-Length", "Host", "Cache-Control", "Expect", "Max-Forwards", "Pragma", "Range", "TE", "If-Match",
    "if-none-match", "Authorization", "Proxy-Authorization", "WWW-Authenticate", "Set-Cookie", "Cookie", "Age", "Expires", "Date",
    "Location", "Retry-After", "Vary", "Content-Type", "Content-Encoding", "Content-Range", "Trailer", "Accept-Encoding",
    # of the connection
    "Connection", "Keep-Alive", "Upgrade", "Proxy-Connection", "HTTP2-Settings",
    # what a client may not say, and what a page may not
    "X-Forwarded-For", "X-Forwarded-User", "x-forwarded-client-cert", "X-Real-IP", "Forwarded", "Via", "X-Original-URL", "Proxy",
    "X_Forwarded_For", "X_Sum", "Origin", "Sec-Fetch-Site", "Access-Control-Allow-Origin", "X-HTTP-Method-Override",
]  # fmt: skip


@pytest.mark.parametrize("name", PASSED)
def test_trailer_is_passed_on(name: str) -> None:
    assert read_trailers([f"{name}: \tcaf\xe9 ".encode("latin-1")]) == [(name, "caf\xe9")]
    assert announced_trailers(f"Host, {name}") == name


@pytest.mark.parametrize("name", DROPPED)
def test_trailer_that_decides_how_a_message_is_read_is_dropped(name: str) -> None:
    for spelling in (name, name.lower(), name.upper()):
        assert read_trailers([f"{spelling}: x".encode()]) == []
        assert announced_trailers(f"{spelling}, X-Sum,") == "X-Sum"


def test_trailers_keep_order_and_count() -> None:
    assert read_trailers([b"X: 1", b"Host: x", b"Y:", b"x: 2"]) == [("X", "1"), ("Y", ""), ("x", "2")]
