"""What connections have had in memory is free when they are over, and free memory goes back to the system."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from rgate.serving.connection import Connection
from rgate.serving.heap import BUSY_SECONDS, QUIET_SECONDS, Heap

from ..support.raw_client import RawClient
from ..support.serving import serving
from ..support.tls_client import TLS, SecureClient
from ..support.waiting import eventually

CHUNKED_POST = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


@pytest.mark.parametrize("kind", [RawClient, SecureClient])
def test_connection_that_is_over_needs_no_collector(kind: type[RawClient]) -> None:
    """OpenSSL has tens of kilobytes for each, which would be there until the collector comes, in thousands."""

    def left() -> int:
        return sum(isinstance(each, Connection) for each in gc.get_objects())

    with serving(app, **(TLS if kind is SecureClient else {})) as server:
        gc.collect()
        before = left()
        gc.disable()
        try:
            for _ in range(5):
                with kind(server.url) as client:
                    assert client.get().body == b"ok"
                    client.send(CHUNKED_POST)
                    assert client.response().body == b"ok"
            eventually(lambda: left() <= before, "all are gone")
        finally:
            gc.enable()


def test_memory_is_given_back_when_traffic_has_ceased_and_now_and_then_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []
    limits: list[tuple[int, int]] = []
    library = SimpleNamespace(malloc_trim=trimmed.append, mallopt=lambda *limit: limits.append(limit))
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    monkeypatch.setattr("rgate.serving.heap.monotonic", lambda: 0.0)
    heap = Heap()
    assert limits == [(-8, 2)]
    heap.look(QUIET_SECONDS, quiet=True)
    assert not trimmed, "nothing has happened"
    heap.look(QUIET_SECONDS, quiet=False)
    heap.look(BUSY_SECONDS - 1, quiet=False)
    assert not trimmed
    heap.look(BUSY_SECONDS - 1, quiet=True)
    assert trimmed == [0]
    heap.look(BUSY_SECONDS, quiet=False)
    heap.look(2 * BUSY_SECONDS - 2, quiet=False)
    assert trimmed == [0]
    heap.look(2 * BUSY_SECONDS - 1, quiet=False)
    assert trimmed == [0, 0]


def test_memory_is_left_alone_with_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace())
    heap = Heap()
    heap.look(1e9, quiet=False)
    heap.look(2e9, quiet=True)
