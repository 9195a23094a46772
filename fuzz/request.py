"""A request: if accepted, it is forwarded as one strictly valid request, and parsed the same however it arrives."""

from __future__ import annotations

from typing import Final

from rgate.errors import RequestError
from rgate.http1.client_address import TrustedProxies
from rgate.http1.environ import PEER_KEY
from rgate.http1.request import RequestHead, RequestParser
from tests.security import strict

MAX_HEAD_BYTES: Final = 65_536
_caching = RequestParser()
_proxies = TrustedProxies(["127.0.0.0/8", "10.0.0.0/8"])


def one(data: bytes) -> None:
    """Check one input: the head of a request, up to its empty line."""
    head = data.partition(b"\r\n\r\n")[0]
    try:
        request = RequestParser().parse(head)
    except RequestError as error:
        assert 400 <= error.status < 600
        _never_accepted(head)
        return
    _same_with_a_cache(head, request)
    _accepted_in_pieces(head)
    _valid_when_forwarded(request)
    _known_to_a_trusted_proxy(request)


def _never_accepted(head: bytes) -> None:
    for _ in range(2):
        try:
            _caching.parse(head)
        except RequestError:
            continue
        raise AssertionError("refused by a new parser, accepted by one that has parsed other heads")


def _same_with_a_cache(head: bytes, request: RequestHead) -> None:
    for _ in range(2):
        other = _caching.head_cache.get(head) or _caching.parse(head)
        mine, theirs = (
            (r.method, r.target, r.http_minor, r.content_length, r.chunked, r.keep_alive, r.expects_continue, r.fields.lines)
            for r in (request, other)
        )
        assert mine == theirs, f"{mine} is parsed as {theirs} the next time"


def _accepted_in_pieces(head: bytes) -> None:
    """A valid head must not be refused while it is incomplete, wherever it is cut."""
    reader = RequestParser()
    scanned = 0
    step = 1 + len(head) // 16
    for end in range(step, len(head) + 1, step):
        reader.check_partial(head[:end], scanned, MAX_HEAD_BYTES)
        scanned = end
    for ending in (b"\r", b"\r\n", b"\r\n\r"):
        reader.check_partial(head + ending, scanned, MAX_HEAD_BYTES)


def _valid_when_forwarded(request: RequestHead) -> None:
    lines = request.fields.lines
    if "HTTP_HOST" not in request.environ:
        lines += b"Host: backend\r\n"
    framing = b"Transfer-Encoding: chunked\r\n" if request.chunked else b""
    body = b"3\r\nabc\r\n0\r\n\r\n" if request.chunked else b""
    if request.content_length is not None:
        framing, body = b"Content-Length: %d\r\n" % request.content_length, b"x" * min(request.content_length, 1_000)
    first = f"{request.method} {request.target.raw} HTTP/1.1\r\n".encode("latin-1")
    sent = first + lines + framing + b"\r\n" + body
    read, rest = strict.read(sent + b"GET ")
    if request.content_length is None or request.content_length <= len(body):
        assert read is not None and rest == b"GET ", f"{sent!r} ends elsewhere"
        assert read.line == first.decode("latin-1").removesuffix("\r\n")


def _known_to_a_trusted_proxy(request: RequestHead) -> None:
    environ = {**request.environ, "REMOTE_ADDR": "127.0.0.1", "REMOTE_PORT": "1", "wsgi.url_scheme": "http"}
    _proxies.apply(environ)
    assert environ[PEER_KEY] == "127.0.0.1"
    assert environ["wsgi.url_scheme"] in ("http", "https")
    assert environ["REMOTE_ADDR"] in TrustedProxies([environ["REMOTE_ADDR"]]), "the client is not an address"
