"""A response: whatever is accepted can be given to a client, with one framing, and is read the same the next time."""

from __future__ import annotations

from rgate.errors import BadResponse
from rgate.http1.response import ResponseParser
from rgate.serving.head_encoder import HeadEncoder

_remembering = ResponseParser()
_writer = HeadEncoder()


def one(data: bytes) -> None:
    """Judge one input: the head of a response, up to its empty line."""
    head = data.partition(b"\r\n\r\n")[0]
    try:
        response = ResponseParser().read(head)
    except BadResponse:
        try:
            _remembering.read(head)
        except BadResponse:
            return
        raise AssertionError("what was refused is accepted by a reader that has read other heads before") from None
    for _ in range(2):
        other = _remembering.head_cache.get(head) or _remembering.read(head)
        mine, theirs = ((r.code, r.status, r.headers, r.length, r.chunked, r.keep_alive, r.upgrade) for r in (response, other))
        assert mine == theirs, f"{mine} is read as {theirs} the next time"
    assert not (response.chunked and response.length is not None)
    assert 100 <= response.code <= 599
    if response.code >= 200:
        lines, length, _ = _writer.encode(response.status, response.headers)
        assert length == response.length
        written = b"".join(lines)
        assert b"\r\n\r\n" not in written and written.endswith(b"\r\n")
        assert written.count(b"\n") == written.count(b"\r\n") == written.count(b"\r") == len(lines)
        for line in lines:
            name = line.partition(b":")[0].lower()
            assert name not in (b"connection", b"transfer-encoding", b"keep-alive", b"content-length", b"proxy-connection")
