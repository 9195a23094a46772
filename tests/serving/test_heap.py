"""Memory of closed connections is freed immediately, and free memory is returned to the system."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from rgate.serving.connection import Connection
from rgate.serving.heap import BUSY_SECONDS, IDLE_SECONDS, Heap

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
def test_closed_connection_is_freed_without_the_garbage_collector(kind: type[RawClient]) -> None:
    """OpenSSL holds tens of kilobytes for each, and thousands would wait for the collector."""

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
            eventually(lambda: left() <= before, "all are freed")
        finally:
            gc.enable()


def test_heap_is_trimmed_when_idle_and_every_minute_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []
    limits: list[tuple[int, int]] = []
    library = SimpleNamespace(malloc_trim=trimmed.append, mallopt=lambda *limit: limits.append(limit))
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    monkeypatch.setattr("rgate.serving.heap.monotonic", lambda: 0.0)
    heap = Heap()
    assert limits == [(-8, 2)]
    heap.trim_if_due(IDLE_SECONDS, idle=True)
    assert not trimmed, "there was no traffic"
    heap.trim_if_due(IDLE_SECONDS, idle=False)
    heap.trim_if_due(BUSY_SECONDS - 1, idle=False)
    assert not trimmed
    heap.trim_if_due(BUSY_SECONDS - 1, idle=True)
    assert trimmed == [0]
    heap.trim_if_due(BUSY_SECONDS, idle=False)
    heap.trim_if_due(2 * BUSY_SECONDS - 2, idle=False)
    assert trimmed == [0]
    heap.trim_if_due(2 * BUSY_SECONDS - 1, idle=False)
    assert trimmed == [0, 0]


def test_nothing_happens_with_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace())
    heap = Heap()
    heap.trim_if_due(1e9, idle=False)
    heap.trim_if_due(2e9, idle=True)
