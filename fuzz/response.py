"""A response: if accepted, it can be sent to a client with one framing, and is parsed the same the next time."""

from __future__ import annotations

from rgate.errors import BadResponse
from rgate.http1.response import ResponseParser
from rgate.serving.head_encoder import HeadEncoder

_caching = ResponseParser()
_encoder = HeadEncoder()


def one(data: bytes) -> None:
    """Check one input: the head of a response, up to its empty line."""
    head = data.partition(b"\r\n\r\n")[0]
    try:
        response = ResponseParser().parse(head)
    except BadResponse:
        try:
            _caching.parse(head)
        except BadResponse:
            return
        raise AssertionError("refused by a new parser, accepted by one that has parsed other heads") from None
    for _ in range(2):
        other = _caching.head_cache.get(head) or _caching.parse(head)
        mine, theirs = ((r.code, r.status, r.headers, r.length, r.chunked, r.keep_alive, r.upgrade) for r in (response, other))
        assert mine == theirs, f"{mine} is parsed as {theirs} the next time"
    assert not (response.chunked and response.length is not None)
    assert 100 <= response.code <= 599
    if response.code >= 200:
        lines, length, _ = _encoder.encode(response.status, response.headers)
        assert length == response.length
        written = b"".join(lines)
        assert b"\r\n\r\n" not in written and written.endswith(b"\r\n")
        assert written.count(b"\n") == written.count(b"\r\n") == written.count(b"\r") == len(lines)
        for line in lines:
            name = line.partition(b":")[0].lower()
            assert name not in (b"connection", b"transfer-encoding", b"keep-alive", b"content-length", b"proxy-connection")
