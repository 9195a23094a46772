"""https endpoints: certificates are verified, and everything else is as over a plain connection."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.forwarding import forwarding
from ..support.raw_client import RawClient
from ..support.waiting import eventually, passed
from .test_faults import is_fault

CERTIFICATES = Path(__file__).with_name("certificates")
SMALL_POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED_POST = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def over_tls(script: Callable[[ScriptedConnection], object]) -> Callable[[ScriptedConnection], None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "server.pem")

    def wrapped(connection: ScriptedConnection) -> None:
        try:
            connection.sock = context.wrap_socket(connection.sock, server_side=True)
            script(connection)
        except ssl.SSLError:
            pass  # the client does not trust us, or has left without a word

    return wrapped


def respond_with(connection: ScriptedConnection) -> None:
    while (request := connection.read_request()) is not None:
        connection.send(http_response(request.body or b"ok"))


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own trust store has our CA in it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "ca.pem"))


def https(backend: ScriptedBackend, host: str = "localhost") -> str:
    return f"https://{host}:{backend.port}"


def test_tls_certificate_that_nobody_vouches_for_is_502() -> None:
    with ScriptedBackend(over_tls(respond_with)) as backend, forwarding(https(backend)) as live, RawClient(live.url) as client:
        is_fault(client.get(), 502, "tls_failed")
        assert backend.requests == []


@pytest.mark.usefixtures("trusted")
def test_tls_certificate_of_another_name_is_502(monkeypatch: pytest.MonkeyPatch) -> None:
    known = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest: known(host.replace("other.example", "127.0.0.1"), *rest))
    with ScriptedBackend(over_tls(respond_with)) as backend:
        with forwarding(https(backend, "other.example")) as live, RawClient(live.url) as client:
            is_fault(client.get(), 502, "tls_failed")
        assert backend.requests == []


@pytest.mark.usefixtures("trusted")
def test_tls_endpoint_that_speaks_plainly_is_502() -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read(5)
        connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with ScriptedBackend(script) as backend, forwarding(https(backend)) as live, RawClient(live.url) as client:
        is_fault(client.get(), 502, "tls_failed")


@pytest.mark.usefixtures("trusted")
def test_tls_handshake_that_stalls_is_a_connect_timeout() -> None:
    route = {"timeouts": {"connect_seconds": 0.2}}
    done = threading.Event()
    with ScriptedBackend(lambda connection: passed(done)) as backend, forwarding(https(backend), route=route) as live:
        with RawClient(live.url) as client:
            is_fault(client.get(), 503, "connect_timeout")
        done.set()


@pytest.mark.usefixtures("trusted")
def test_tls_requests_of_every_kind_share_connections() -> None:
    with ScriptedBackend(over_tls(respond_with)) as backend, forwarding(https(backend)) as live, RawClient(live.url) as client:
        for _ in range(3):
            assert client.get().body == b"ok"
        client.send(SMALL_POST)
        assert client.response().body == b"hello"
        client.send(CHUNKED_POST + b"5\r\nhello\r\n0\r\n\r\n")
        assert client.response().body == b"hello"
        client.send(CHUNKED_POST + b"40000\r\n" + b"x" * 262_144 + b"\r\n0\r\n\r\n")
        assert client.response().body.count(b"x") == 262_144
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000)
        assert client.response().body == b"x" * 300_000
        assert client.get().body == b"ok"
        assert len(backend.connections) == 3, "a large body is the last on its connection"


@pytest.mark.usefixtures("trusted")
def test_tls_stale_connection_is_nobodys_problem() -> None:
    closed = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        if connection.read_request() is not None:
            connection.send(http_response(b"%d" % connection.number))
            connection.close()
            closed.set()

    with ScriptedBackend(over_tls(script)) as backend, forwarding(https(backend)) as live, RawClient(live.url) as client:
        assert client.get().body == b"0"
        passed(closed)
        eventually(lambda: live.upstream_connections == 1)
        assert client.get().body == b"1"


@pytest.mark.usefixtures("trusted")
def test_tls_response_that_streams_and_breaks_off_never_looks_complete() -> None:
    upstream_body = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        passed(upstream_body)

    with ScriptedBackend(over_tls(script)) as backend, forwarding(https(backend)) as live, RawClient(live.url) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        head = client.until(b"hello\r\n")
        upstream_body.set()
        client.unread = head
        assert not client.response().complete


@pytest.mark.usefixtures("trusted")
def test_tls_response_timeout_is_504() -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.wait_closed()

    route = {"timeouts": {"read_seconds": 0.1}}
    with (
        ScriptedBackend(over_tls(script)) as backend,
        forwarding(https(backend), route=route) as live,
        RawClient(live.url) as client,
    ):
        is_fault(client.get(), 504, "response_timeout")


@pytest.mark.usefixtures("trusted")
def test_tls_early_answer_reaches_a_client_whose_upload_is_not_taken() -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        connection.send(http_response(b"too large", "413 Content Too Large"))

    with ScriptedBackend(over_tls(script)) as backend, forwarding(https(backend)) as live, RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n")
        try:
            for _ in range(300):
                client.send(b"x" * 100_000)
        except ConnectionError:
            pass
        response = client.response()
        assert response.status in (413, 502), "closing with unread bytes may destroy the answer, which is the backend's fault"
