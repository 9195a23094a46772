"""How much a backend may make the gateway read before it answers: more is 502, too slow is 504, and none of it is passed on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import pytest

from rgate.forwarding.connection import MAX_INTERIM_RESPONSES
from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.forwarding import Forwarding, forwarding
from ..support.raw_client import RawClient, RawResponse

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"


@contextmanager
def before(script: bytes | Callable[[ScriptedConnection], object], **server: Any) -> Iterator[Forwarding]:
    with ScriptedBackend(script) as backend, forwarding(backend, **server) as live:
        yield live


def answer_of(live: Forwarding) -> RawResponse:
    with RawClient(live.url) as client:
        return client.get("/")


def head_of(size_bytes: int) -> bytes:
    """A response with a head of so many bytes, up to its empty line."""
    return OK + b"X: " + b"a" * (size_bytes - len(OK) - 3) + b"\r\n\r\nok"


@pytest.mark.parametrize(("size_bytes", "status"), [(9_000, 200), (9_001, 502), (200_000, 502)])
def test_response_head_over_max_response_head_bytes_is_502(size_bytes: int, status: int) -> None:
    with before(head_of(size_bytes), max_response_head_bytes=9_000) as live:
        answer = answer_of(live)
    assert answer.status == status
    assert status == 200 or b'"bad_response"' in answer.body


@pytest.mark.parametrize(("count", "status"), [(20, 200), (21, 502)])
def test_response_headers_over_max_response_headers_are_502(count: int, status: int) -> None:
    response = OK + b"".join(b"X-%d: 1\r\n" % number for number in range(count - 1)) + b"\r\nok"
    with before(response, max_response_headers=20) as live:
        assert answer_of(live).status == status


def test_response_of_200_headers_and_one_of_16_kib_pass_by_default() -> None:
    headers = [(f"X-{number}", "1") for number in range(199)] + [("X-Long", "a" * 16_384)]
    with before(http_response(b"ok", headers=headers)) as live:
        answer = answer_of(live)
    assert answer.status == 200
    assert len(answer.value("X-Long") or "") == 16_384


def endless(block: bytes) -> Callable[[ScriptedConnection], None]:
    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        while True:
            connection.send(block)

    return script


ENDLESS = {
    "head": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1_000,
    "status line": b"HTTP/1.1 200 " + b"a" * 10_000,
    "header line": b"X" * 10_000,
    "empty": b"\0" * 10_000,
    "interim responses": b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
    "interim responses of another kind": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
    "empty lines": b"\r\n" * 100,
}


@pytest.mark.parametrize("block", ENDLESS.values(), ids=ENDLESS)
def test_backend_that_never_comes_to_its_response_is_502(block: bytes) -> None:
    with before(endless(block)) as live:
        assert answer_of(live).status == 502


def test_interim_responses_are_borne_up_to_a_number() -> None:
    for count, status in ((MAX_INTERIM_RESPONSES - 1, 200), (MAX_INTERIM_RESPONSES, 502)):
        with before(b"HTTP/1.1 100 Continue\r\n\r\n" * count + http_response(b"ok")) as live:
            assert answer_of(live).status == status, f"{count} interim responses"


def test_response_head_that_comes_ever_so_slowly_is_504() -> None:
    """Each wait is short, but the head as a whole must come in the time of one."""
    stop = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 200 OK\r\nX: ")
        while not stop.wait(0.05):
            connection.send(b"a")

    began = monotonic()
    with ScriptedBackend(script) as backend, forwarding(backend, route={"timeouts": {"read_seconds": 0.5}}) as live:
        answer = answer_of(live)
        stop.set()
    assert (answer.status, b'"response_timeout"' in answer.body) == (504, True)
    assert monotonic() - began < 5


def test_response_that_stalls_is_cut_after_response_seconds() -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        connection.wait_closed()

    with ScriptedBackend(script) as backend, forwarding(backend, route={"timeouts": {"read_seconds": 0.2}}) as live:
        answer = answer_of(live)
    assert (answer.status, answer.body, answer.complete) == (200, b"hello", False)
