"""Bodies that come slowly: they cost no thread, have a lowest rate, and never get in anybody's way."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rgate import RequestTimeout
from rgate.serving.body_buffer import SPILL_BYTES
from rgate.serving.connection import MAX_EMPTY_LINES
from rgate.serving.connection_state import State
from rgate.serving.server import Server
from rgate.testing import make_gateway

from ..support.raw_client import RawClient
from ..support.serving import connection_of, echo, send_apart, serving
from ..support.waiting import eventually, passed

HEAD = b"POST /x HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


class Uploads:
    """An app that keeps bodies and what the environ says of them, and holds requests to /held until it is let go."""

    def __init__(self) -> None:
        self.calls: list[tuple[str | None, str | None, bytes]] = []
        self.kinds: list[type] = []
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.begun.release()
        self.kinds.append(type(environ["wsgi.input"]))
        if environ["PATH_INFO"] == "/held":
            passed(self.go_on)
        body = environ["wsgi.input"].read()
        self.calls.append((environ.get("CONTENT_LENGTH"), environ.get("HTTP_TRANSFER_ENCODING"), body))
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]


def chunks(body: bytes, size: int) -> bytes:
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


# Small ones


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_small_body_is_collected_to_its_end_without_a_thread(framing: str) -> None:
    app = Uploads()
    with serving(app, threads=1, max_in_flight=1) as server, ExitStack() as stack:
        slow = [stack.enter_context(RawClient(server.url)) for _ in range(20)]
        for client in slow:
            send_apart(server, client, CHUNKED + b"2\r\nhe\r" if framing == "chunked" else HEAD + b"Content-Length: 5\r\n\r\nhe")
        assert (app.calls, server.threads) == ([], 1)
        with RawClient(server.url) as quick:
            quick.send(HEAD + b"Content-Length: 1\r\n\r\n!")
            assert quick.response().body == b"ok"
        for client in slow:
            client.send(b"\n3\r\nllo\r\n0\r\n\r\n" if framing == "chunked" else b"llo")
            assert client.response().body == b"ok"
            assert client.get("/next").body == b"ok", "the connection goes on"
    assert app.calls.count(("5", None, b"hello")) == 20


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 70_000, 1_000_000])
@pytest.mark.parametrize("chunk", [None, 7, 5_000])
def test_body_of_any_size_is_the_same_however_it_comes(size: int, chunk: int | None) -> None:
    app = Uploads()
    body = os.urandom(size)
    coded = body if chunk is None else chunks(body, chunk) + b"0\r\n\r\n"
    head = HEAD + b"Content-Length: %d\r\n\r\n" % size if chunk is None else CHUNKED
    next_request = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving(app) as server, RawClient(server.url) as client:
        client.send(head + coded + next_request)
        assert [client.response().body, client.response().body] == [b"ok", b"ok"]
        send_apart(server, client, head + coded[:10], coded[10:20], coded[20:] + next_request)
        assert [client.response().body, client.response().body] == [b"ok", b"ok"]
    assert [call[2] for call in app.calls] == [body, b"", body, b""]
    if size < 65_536:
        assert app.calls[0][:2] == app.calls[2][:2] == (str(size), None), "collected whole, its length is known"


def test_body_of_16_byte_chunks_may_be_long() -> None:
    app = Uploads()
    body = b"a line of a log\n" * 20_000
    with serving(app) as server, RawClient(server.url) as client:
        client.send(CHUNKED + chunks(body, 16) + b"0\r\n\r\n")
        assert client.response().body == b"ok"
    assert app.calls[0][2] == body


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_body_of_tiny_chunks_without_an_end_is_400(size: int) -> None:
    with serving(make_gateway({}), body_buffer_bytes=1_000_000) as server, RawClient(server.url) as client:
        client.send(CHUNKED + chunks(b"x" * size * 16_000, size))  # 64 KiB of framing more than payload is allowed
        client.send(chunks(b"x" * size * 70_000, size))
        response = client.response()
        assert (response.status, response.value("Connection")) == (400, "close")


# How fast


def test_body_slower_than_the_lowest_rate_is_408_however_steadily_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.serving.server.BEAT_SECONDS", 0.02)
    limits = {"body_seconds": 0.3, "min_body_bytes_per_second": 1_000_000}
    with serving(make_gateway({}), **limits) as server, RawClient(server.url) as client:
        client.send(HEAD + b"Content-Length: 60000\r\n\r\n")
        connection = connection_of(server, client)
        pause = threading.Event()

        def trickle() -> bool:
            pause.wait(0.001)
            client.send(b"x")
            return connection.state in (State.EXPIRED, State.LINGERING)

        eventually(trickle, "it is given up")
        response = client.response()
        assert (response.status, response.value("Connection")) == (408, "close")
        assert b'"request_timeout"' in response.body


def test_body_that_streams_slower_than_the_lowest_rate_is_a_timeout() -> None:
    seen: list[Exception] = []
    over = threading.Event()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            environ["wsgi.input"].read()
        except RequestTimeout as error:
            seen.append(error)
        over.set()
        start_response("408 Request Timeout", [("Content-Length", "0")])
        return []

    limits = {"body_seconds": 0.3, "min_body_bytes_per_second": 1_000_000, "body_buffer_bytes": 0}
    with serving(app, **limits) as server, RawClient(server.url) as client:
        client.send(HEAD + b"Content-Length: 60000\r\n\r\n")
        while not over.wait(0.005):
            client.send(b"x")
        assert client.response().status == 408
    assert len(seen) == 1


def test_body_faster_than_the_lowest_rate_may_take_longer_than_body_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.serving.server.BEAT_SECONDS", 0.02)
    app = Uploads()
    with serving(app, body_seconds=0.5, min_body_bytes_per_second=10) as server, RawClient(server.url) as client:
        client.send(HEAD + b"Content-Length: 12000\r\n\r\n")
        pause = threading.Event()
        for _ in range(12):
            pause.wait(0.1)
            client.send(b"x" * 1_000)
        assert client.response().body == b"ok"


def test_body_without_a_lowest_rate_has_body_seconds_for_each_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.serving.server.BEAT_SECONDS", 0.02)
    app = Uploads()
    for buffered in (0, 65_536):
        limits = {"body_seconds": 0.5, "min_body_bytes_per_second": 0, "body_buffer_bytes": buffered}
        with serving(app, **limits) as server, RawClient(server.url) as client:
            client.send(HEAD + b"Content-Length: 12\r\n\r\n")
            pause = threading.Event()
            for _ in range(12):
                pause.wait(0.1)
                client.send(b"x")
            assert client.response().body == b"ok"


# Large ones


def take_every_thread_for_uploads(server: Server, app: Uploads, stack: ExitStack) -> list[RawClient]:
    clients = []
    for _ in range(server.config.threads):
        client = stack.enter_context(RawClient(server.url))
        client.send(HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 70_000)
        assert app.begun.acquire(timeout=10)
        clients.append(client)
    eventually(lambda: len(server.uploads) == server.config.threads)
    return clients


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_large_body_is_spooled_while_others_have_the_threads(framing: str) -> None:
    app = Uploads()
    body = os.urandom(1_000_000)
    coded = body if framing == "length" else chunks(body, 9_999) + b"0\r\n\r\n"
    with serving(app) as server, ExitStack() as stack:
        upstream_body = take_every_thread_for_uploads(server, app, stack)
        client = stack.enter_context(RawClient(server.url))
        client.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) if framing == "length" else CHUNKED)
        client.send(coded[:-100_000])
        connection = connection_of(server, client)
        eventually(lambda: connection.buffering and connection.buffering.size > 800_000, "it is spooled")
        assert server.spool.files == 1 and server.spool.bytes > 700_000
        assert app.calls == [] and connection.body is None
        client.send(coded[-100_000:] + b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [client.response().body, client.response().body] == [b"ok", b"ok"]
        assert app.calls[0] == (str(len(body)), None, body)
        for other in upstream_body:
            other.send(b"x" * 30_000)
            assert other.response().body == b"ok"


def test_large_body_goes_on_with_a_thread_when_there_is_one() -> None:
    app = Uploads()
    body = os.urandom(1_000_000)
    with serving(app) as server, ExitStack() as stack:
        upstream_body = take_every_thread_for_uploads(server, app, stack)
        client = stack.enter_context(RawClient(server.url))
        client.send(HEAD + b"Content-Length: 1000000\r\n\r\n" + body[:500_000])
        eventually(lambda: server.spool.bytes > 400_000)
        upstream_body[0].send(b"x" * 30_000)
        assert upstream_body[0].response().body == b"ok"
        client.send(body[500_000:600_000])
        eventually(lambda: connection_of(server, client).body is not None, "it streams")
        client.send(body[600_000:])
        assert client.response().body == b"ok"
        assert app.calls[-1] == ("1000000", None, body)


@pytest.mark.parametrize("limit", ["max_spooled_body_bytes", "max_spooled_bytes"])
def test_large_body_over_the_room_for_it_takes_a_thread(limit: str) -> None:
    app = Uploads()
    body = os.urandom(1_000_000)
    with serving(app, **{limit: 2 * SPILL_BYTES}) as server, ExitStack() as stack:
        take_every_thread_for_uploads(server, app, stack)
        client = stack.enter_context(RawClient(server.url))
        client.send(HEAD + b"Content-Length: 1000000\r\n\r\n" + body[:500_000])
        eventually(lambda: connection_of(server, client).body is not None, "it streams")
        assert server.spool.bytes <= 2 * SPILL_BYTES
        client.send(body[500_000:])
        assert client.response().body == b"ok"
        assert app.calls[-1] == ("1000000", None, body)


def no_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    return {"spool_directory": str(tmp_path / "missing")}


def full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    def pwrite(fd: int, block: bytes, at: int) -> int:
        if at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, block[:30_000], at)

    write = os.pwrite
    monkeypatch.setattr("os.pwrite", pwrite)
    return {"spool_directory": str(tmp_path)}


@pytest.mark.parametrize("trouble", [no_directory, full_disk])
def test_large_body_that_cannot_be_spooled_takes_a_thread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: Callable[..., dict[str, Any]]
) -> None:
    app = Uploads()
    body = os.urandom(1_000_000)
    with serving(app, **trouble(monkeypatch, tmp_path)) as server, ExitStack() as stack:
        take_every_thread_for_uploads(server, app, stack)
        with RawClient(server.url) as client:
            client.send(HEAD + b"Content-Length: 1000000\r\n\r\n" + body)
            assert client.response().body == b"ok"
        assert app.calls[-1] == ("1000000", None, body)
        assert server.spool.bytes == 0
    assert "cannot spool request bodies in " in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_large_body_whose_client_leaves_gives_its_room_back() -> None:
    app = Uploads()
    with serving(app) as server, ExitStack() as stack:
        take_every_thread_for_uploads(server, app, stack)
        with RawClient(server.url) as client:
            client.send(HEAD + b"Content-Length: 1000000\r\n\r\n" + b"x" * 500_000)
            eventually(lambda: server.spool.bytes > 400_000)
        eventually(lambda: not server.spool.bytes and not server.spool.files)
        assert app.calls == [(None, None, b"")], "only that a request has ended within itself, for the log"


def test_large_bodies_that_trickle_take_no_more_than_the_base_threads() -> None:
    app = Uploads()
    with serving(app, threads=3, max_in_flight=100) as server, ExitStack() as stack:
        slow = [stack.enter_context(RawClient(server.url)) for _ in range(60)]
        for client in slow:
            client.send(HEAD + b"Content-Length: 1000000\r\n\r\n" + b"x" * 70_000)
        eventually(lambda: len(server.uploads) == 3)
        for client in slow:
            client.send(b"x")
        with RawClient(server.url) as quick:
            for _ in range(5):
                assert quick.get().body == b"ok"
        assert len(server.uploads) == 3
        assert server.threads <= 12


def test_expect_of_a_large_body_is_answered_at_once_while_others_have_the_threads() -> None:
    app = Uploads()
    with serving(app) as server, ExitStack() as stack:
        take_every_thread_for_uploads(server, app, stack)
        with RawClient(server.url) as client:
            client.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 100000\r\n\r\n")
            assert client.response().status == 100
            assert len(app.kinds) == server.config.threads, "no app has been asked"
            client.send(b"x" * 100_000)
            assert client.response().body == b"ok"


# Empty lines


def test_empty_lines_before_a_request_are_skipped_a_few_of_them() -> None:
    with serving(echo) as server, RawClient(server.url) as client:
        for _ in range(3):
            client.send(b"\r\n" * MAX_EMPTY_LINES + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.response().body == b"GET / "
        send_apart(server, client, b"\r\n", b"\r", b"\n", b"\r\nGET /", b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.response().body == b"GET / "


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "one by one"])
def test_empty_lines_without_an_end_are_400(apart: bool) -> None:
    with serving(make_gateway({})) as server, RawClient(server.url) as client:
        if apart:
            send_apart(server, client, *[b"\r\n"] * (MAX_EMPTY_LINES + 1))
        else:
            client.send(b"\r\n" * 30_000)
        response = client.response()
        assert (response.status, response.value("Connection")) == (400, "close")


def test_connection_that_is_being_closed_for_its_idleness_ends_although_the_client_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.serving.server.BEAT_SECONDS", 0.02)
    monkeypatch.setattr("rgate.serving.connection.MAX_EMPTY_LINES", 10**9)
    with serving(echo, head_seconds=0.1) as server, RawClient(server.url) as client:

        def is_over() -> bool:
            try:
                client.send(b"\r\n" * 100)
            except ConnectionError:
                return True
            return not server.connections

        eventually(is_over, "the connection is over")


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHost: x\r\nX: ", HEAD + b"Content-Length: 60000\r\n\r\n"])
def test_request_that_is_late_is_408_although_the_client_still_sends(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr("rgate.serving.server.BEAT_SECONDS", 0.02)
    limits = {"head_seconds": 0.2, "body_seconds": 0.2, "min_body_bytes_per_second": 1_000_000}
    with serving(make_gateway({}), **limits) as server, RawClient(server.url) as client:
        client.send(sent)
        connection = connection_of(server, client)

        def trickle() -> bool:
            client.send(b"x")
            return connection.state in (State.BUSY, State.LINGERING)

        eventually(trickle, "it has its answer")
        assert client.response().status == 408
