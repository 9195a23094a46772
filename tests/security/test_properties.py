"""Whatever a client sends, in whatever pieces: what a backend receives is strictly valid, and the client gets whole responses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rgate.testing import ScriptedBackend

from ..support.forwarding import Forwarding, forwarding
from ..support.raw_client import RawClient
from .strict import StrictBackend

LINES = st.sampled_from(
    [
        b"GET / HTTP/1.1", b"POST /a%2Fb?q HTTP/1.1", b"PATCH //x;y HTTP/1.1", b"PUT / HTTP/1.0", b"OPTIONS * HTTP/1.1",
        b"GET http://real.example/x HTTP/1.1", b"POST http://x HTTP/1.1", b"GET /../x HTTP/1.1", b"G\xffT / HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b"OPTIONS /x HTTP/1.1", b"DELETE /x HTTP/1.1", b"CONNECT x:1 HTTP/1.1", b"GET /x HTTP/0.9", b"", b"x",
    ]
)  # fmt: skip
HEADERS = st.sampled_from(
    [
        b"Content-Length: 0", b"Content-Length: 5", b"Content-Length: 05", b"Content-Length: 5, 5", b"Content-Length: +5",
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: Chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding:",
        b"Connection: close", b"Connection: keep-alive", b"Connection: Host, Content-Length, X-Forwarded-For, Via",
        b"Connection: X",
        b"Host: y", b"Host:", b"X: 1", b"X:\t2 ", b"X : 3", b" folded", b"X\x00: 1", b"X: a\rb", b"X_Y: z", b"Cookie: a=1",
        b"Expect: 100-continue", b"Expect: x", b"Upgrade: h2c", b"HTTP2-Settings: AAA", b"TE: trailers", b"Trailer: X",
        b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-Proto: https", b"Forwarded: for=x", b"Via: 1.0 a", b"Max-Forwards: 0",
        b"Max-Forwards: 5", b"Keep-Alive: 5", b"Proxy-Connection: close", b"X: caf\xe9", b"no colon",
    ]
)  # fmt: skip
BODIES = st.sampled_from(
    [
        b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"5;x=y\r\nhello\r\n0\r\nT: 1\r\n\r\n", b"0\r\n\r\n", b"5\nhello\n0\n\n",
        b"5\r\nhello0\r\n\r\n", b"fffffffffffffff\r\nx", b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
)  # fmt: skip
ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r"])


MARKS = (b"%04d" % number for number in itertools.count())


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request, more or less."""
    lines = [
        draw(LINES),
        b"X-Mark: MARK",
        *draw(st.sampled_from([[b"Host: x"]] * 8 + [[]])),
        *draw(st.lists(HEADERS, max_size=4)),
    ]
    return b"".join(line + draw(ENDS) for line in lines) + draw(ENDS) + draw(BODIES)


@pytest.fixture(scope="module")
def strict() -> StrictBackend:
    return StrictBackend()


@pytest.fixture(scope="module")
def live(strict: StrictBackend) -> Iterator[Forwarding]:
    with ScriptedBackend(strict) as backend, forwarding(backend) as running:
        yield running


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(requests(), min_size=1, max_size=3), st.lists(st.integers(1, 400), max_size=4))
def test_backend_receives_only_what_is_strictly_valid(
    live: Forwarding, strict: StrictBackend, sent: list[bytes], cuts: list[int]
) -> None:
    mark = next(MARKS)
    whole = b"".join(sent).replace(b"MARK", mark)
    with RawClient(live.url) as client:
        ends = sorted({cut for cut in cuts if cut < len(whole)})
        with suppress(OSError):  # it may have ended
            client.send(*[whole[start:end] for start, end in zip([0, *ends], [*ends, len(whole)], strict=True)])
            client.half_close()
        statuses = []
        while client.unread or client._more():
            response = client.response()
            assert response.complete, f"{response} for {whole!r}"
            statuses += [response.status] if response.status >= 200 else []
    assert not strict.invalid, f"for {whole!r}"
    got = [request for request in strict.requests if request.values("X-Mark") == [mark.decode()]]
    assert len(got) <= len(statuses), f"a request that the client did not send: {whole!r}"
    assert len(statuses) <= whole.count(b"HTTP/") + 1, f"more answers than requests: {whole!r}"
