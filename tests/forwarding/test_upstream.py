"""Connections and pools by themselves: error translation, timeouts, sending on a connection that breaks."""

from __future__ import annotations

import inspect
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import pytest
import urllib3.exceptions
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NameResolutionError, NewConnectionError, ReadTimeoutError

from rgate import (
    Address,
    BadGateway,
    BadResponse,
    ConnectionRefused,
    ConnectTimeout,
    GatewayError,
    ResponseTimeout,
    Timeouts,
    TLSFailed,
    Unreachable,
    UpstreamClosed,
)
from rgate.forwarding import connection as connection_module
from rgate.forwarding import upstream
from rgate.forwarding.connecting import ConnectQueue
from rgate.forwarding.connection import StaleConnection, UpstreamConnection, to_gateway_error
from rgate.forwarding.upstream import UpstreamPools
from rgate.http1.response import ResponseParser
from rgate.testing import ScriptedBackend, http_response

POOL: Any = None
CONNECTION = HTTPConnection("example.com")


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


TRANSLATIONS: dict[str, tuple[BaseException, type[GatewayError]]] = {
    "name": (NameResolutionError("example.com", CONNECTION, socket.gaierror()), Unreachable),
    "new connection": (NewConnectionError(CONNECTION, "no route"), Unreachable),
    "new connection, refused": (caused(NewConnectionError(CONNECTION, "x"), ConnectionRefusedError()), ConnectionRefused),
    "new connection, no route": (caused(NewConnectionError(CONNECTION, "x"), OSError(113, "No route to host")), Unreachable),
    "connect timeout": (ConnectTimeoutError(), ConnectTimeout),
    "read timeout": (ReadTimeoutError(POOL, "/", "x"), ResponseTimeout),
    "urllib3's TLS": (urllib3.exceptions.SSLError("x"), TLSFailed),
    "TLS": (ssl.SSLError("x"), TLSFailed),
    "certificate": (ssl.SSLCertVerificationError("x"), TLSFailed),
    "protocol": (urllib3.exceptions.ProtocolError("x"), UpstreamClosed),
    "refused": (ConnectionRefusedError(), ConnectionRefused),
    "reset": (ConnectionResetError(), UpstreamClosed),
    "broken pipe": (BrokenPipeError(), UpstreamClosed),
    "timeout": (TimeoutError(), ConnectTimeout),
    "no route": (OSError(113, "No route to host"), Unreachable),
    "other of urllib3": (HTTPError("x"), BadGateway),
    "anything else": (ValueError("x"), BadGateway),
}


@pytest.mark.parametrize(("error", "fault"), TRANSLATIONS.values(), ids=TRANSLATIONS)
def test_to_gateway_error_is_the_fault_that_the_client_gets(error: BaseException, fault: type[GatewayError]) -> None:
    assert type(to_gateway_error(error)) is fault


def test_to_gateway_error_has_a_row_for_every_exception_of_urllib3() -> None:
    rows = tuple(kind for kinds, _ in connection_module._FAULTS for kind in kinds)
    every = [kind for _, kind in inspect.getmembers(urllib3.exceptions, inspect.isclass) if issubclass(kind, HTTPError)]
    assert len(every) > 20
    assert not [kind for kind in every if not issubclass(kind, rows)]


def test_to_gateway_error_checks_the_most_specific_first() -> None:
    seen: list[type[BaseException]] = []
    for kinds, _ in connection_module._FAULTS:
        for kind in kinds:
            assert not [earlier for earlier in seen if issubclass(kind, earlier)], f"{kind} is never reached"
            seen.append(kind)


# One connection


def opened(backend: ScriptedBackend, timeouts: Timeouts | None = None) -> UpstreamConnection:
    at = UpstreamPools().get(Address("http", "127.0.0.1", backend.port))
    connection = at.pool.connect_new(timeouts or Timeouts())
    connection.set_io_timeout(10)
    return connection


class Broken:
    """A socket that takes no more, and has these blocks to read."""

    def __init__(self, *blocks: bytes | OSError) -> None:
        self.blocks = list(blocks)

    def sendall(self, block: bytes) -> None:
        raise BrokenPipeError("Broken pipe")

    def recv(self, most: int) -> bytes:
        block = self.blocks.pop(0) if self.blocks else b""
        if isinstance(block, OSError):
            raise block
        return block

    def close(self) -> None:
        pass


def reading(*blocks: bytes | OSError) -> UpstreamConnection:
    connection = UpstreamConnection("127.0.0.1", 1)
    connection.sock = Broken(*blocks)  # type: ignore[assignment]
    connection.response_parser = ResponseParser()
    connection.connect_queue = ConnectQueue()
    connection._wait_seconds = 10
    return connection


def broken(*blocks: bytes | OSError, used: bool = False) -> UpstreamConnection:
    connection = reading(*blocks)
    connection.reused = used
    connection.send_bytes(b"POST / HTTP/1.1\r\n\r\n")
    return connection


def test_write_error_after_a_response_does_not_hide_it() -> None:
    connection = broken(http_response(b"no", "413 Content Too Large"))
    head, body = connection.read_head()
    assert (head.code, body) == (413, b"no")
    assert connection.write_error == "Broken pipe"


@pytest.mark.parametrize("last", [b"", ConnectionResetError("reset")], ids=["end", "reset"])
def test_write_error_without_a_response_is_stale_only_if_reused(last: bytes | OSError) -> None:
    with pytest.raises(UpstreamClosed):
        broken(last).read_head()
    with pytest.raises(StaleConnection):
        broken(last, used=True).read_head()


def test_connection_with_a_write_error_is_not_released_to_the_pool() -> None:
    pool = UpstreamPools().get(Address("http", "127.0.0.1", 1)).pool
    pool.release(broken())
    assert not pool.idle


class Paused:
    """An upload that waits for what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def release(self) -> None:
        self.calls.append("release")

    def pump(self) -> None:
        self.calls.append("pump")


def test_upload_continues_between_interim_and_final_head() -> None:
    upload = Paused()
    blocks = (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nX: y\r\n", b"\r\n" + http_response(b"ok"))
    connection = reading(*blocks)
    head, body = connection.read_head(None, upload)  # type: ignore[arg-type]
    assert (head.code, body, upload.calls) == (200, b"ok", ["release", "pump"])


def test_read_head_that_ends_after_an_interim_response_is_closed() -> None:
    connection = reading(b"HTTP/1.1 100 Continue\r\n\r\n")
    with pytest.raises(UpstreamClosed):
        connection.read_head()


def test_set_io_timeout_limits_every_wait() -> None:
    release = threading.Event()
    with ScriptedBackend(lambda connection: release.wait(10)) as backend:
        connection = opened(backend)
        connection.set_io_timeout(0.05)
        with pytest.raises(ResponseTimeout):
            connection.read_head()
        with pytest.raises(ResponseTimeout):
            connection.receive()
        with pytest.raises(ResponseTimeout):
            connection.send_bytes(b"x" * 50_000_000)
        release.set()
        connection.close()


def test_abort_wakes_a_blocked_thread() -> None:
    release = threading.Event()
    raised: list[Exception] = []

    def wait(connection: UpstreamConnection) -> None:
        try:
            connection.read_head()
        except Exception as error:
            raised.append(error)

    with ScriptedBackend(lambda connection: release.wait(10)) as backend:
        connection = opened(backend)
        thread = threading.Thread(target=wait, args=(connection,))
        thread.start()
        connection.abort()
        thread.join(10)
        assert connection.aborted
        assert [type(error) for error in raised] == [UpstreamClosed]
        connection.close()
        connection.abort()
        release.set()


def test_open_that_is_refused_says_so() -> None:
    with ScriptedBackend() as backend:
        port = backend.port
    with pytest.raises(ConnectionRefused):
        UpstreamPools().get(Address("http", "127.0.0.1", port)).pool.connect_new(Timeouts())


# Pools


def test_pool_limits_its_idle_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "MAX_IDLE_CONNECTIONS", 2)
    with ScriptedBackend() as backend:
        at = UpstreamPools().get(Address("http", "127.0.0.1", backend.port))
        connections = [at.pool.connect_new(Timeouts()) for _ in range(3)]
        for connection in connections:
            at.pool.release(connection)
        assert list(at.pool.idle) == connections[:2]
        at.pool.close()
        assert not at.pool.idle


def test_pool_returns_the_newest_and_closes_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(upstream, "monotonic", lambda: now[0])
    with ScriptedBackend() as backend:
        at = UpstreamPools().get(Address("http", "127.0.0.1", backend.port))
        old, new = at.pool.connect_new(Timeouts()), at.pool.connect_new(Timeouts())
        at.pool.release(old)
        now[0] += 3
        at.pool.release(new)
        now[0] += 2
        at.pool.close_expired()
        assert list(at.pool.idle) == [new], "four seconds are too long, two are not"
        assert at.pool.acquire(Timeouts()) is new
        at.pool.close_expired()
        new.close()


def test_there_is_one_upstream_for_each_address() -> None:
    upstreams = UpstreamPools()
    address = Address("http", "127.0.0.1", 1)
    assert upstreams.get(address) is upstreams.get(Address("http", "127.0.0.1", 1))
    assert upstreams.get(Address("https", "127.0.0.1", 1)).pool is not upstreams.get(address).pool
    upstreams.close()
    assert not upstreams._upstreams


def test_acquire_with_unusable_connections_only_opens_a_new_one() -> None:
    script: Callable[[Any], object] = lambda connection: connection.number < 3 or connection.wait_closed()  # noqa: E731
    with ScriptedBackend(script) as backend:
        at = UpstreamPools().get(Address("http", "127.0.0.1", backend.port))
        for connection in [at.pool.connect_new(Timeouts()) for _ in range(3)]:
            assert connection.sock.recv(1) == b""
            at.pool.release(connection)
        fresh = at.pool.acquire(Timeouts())
        assert not fresh.reused
        assert not at.pool.idle
        fresh.close()


def test_bad_response_is_not_a_stale_connection() -> None:
    connection = reading(b"nonsense\r\n\r\n")
    connection.reused = True
    with pytest.raises(BadResponse):
        connection.read_head()
