"""https backends by the options that the config has for them."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from rgate import TLSFailed
from rgate.testing import ScriptedBackend, ScriptedConnection, http_response, running_gateway

from ..forwarding.test_faults import is_fault
from ..support.certificates import PASSWORD, Pair, authority
from ..support.raw_client import RawClient
from ..support.serving import serving
from ..support.waiting import eventually, passed

TRUSTED = authority()
LEDGER = TRUSTED.issue("ledger.internal")
HERE = TRUSTED.issue("127.0.0.1")
GATEWAY = TRUSTED.issue("gateway.internal", common_name="gateway")

Script = Callable[[ScriptedConnection], object]


def respond_with(connection: ScriptedConnection) -> None:
    while (request := connection.read_request()) is not None:
        connection.send(http_response(request.body or b"ok"))


class SecureBackend(ScriptedBackend):
    """A backend that speaks TLS. `failures` are the handshakes that have come to nothing, `shown` what clients are."""

    def __init__(self, pair: Pair, script: Script = respond_with, *, clients: str | None = None, **settings: Any) -> None:
        self.failures: list[Exception] = []
        self.shown: list[Any] = []
        self.asked_for: list[str | None] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.both)
        context.sni_callback = lambda sock, name, _: self.asked_for.append(name)
        if clients is not None:
            context.load_verify_locations(clients)
            context.verify_mode = ssl.CERT_REQUIRED
        for name, value in settings.items():
            setattr(context, name, value)

        def over_tls(connection: ScriptedConnection) -> None:
            try:
                secure = context.wrap_socket(connection.sock, server_side=True)
            except (OSError, ssl.SSLError) as error:
                self.failures.append(error)
                return
            self.shown.append(secure.getpeercert())
            connection.sock = secure
            try:
                script(connection)
            except ssl.SSLError as error:
                self.failures.append(error)

        super().__init__(over_tls)
        self.url = f"https://127.0.0.1:{self.port}"

    def __enter__(self) -> SecureBackend:
        super().__enter__()
        return self


@contextmanager
def forwarding(*backends: tuple[str, Mapping[str, Any]], route: Mapping[str, Any] | None = None) -> Iterator[RawClient]:
    """A client of a gateway with backends, each a URL and its `tls`; "/0" leads to the first, "/1" to the second."""
    config = {
        "backends": [{"name": f"b{n}", "endpoints": [url], "tls": dict(tls)} for n, (url, tls) in enumerate(backends)],
        "routes": [{"path_prefix": f"/{n}", "backend": f"b{n}", **(route or {})} for n, _ in enumerate(backends)],
    }
    with running_gateway(config, {}) as gateway, serving(gateway) as server, RawClient(server.url) as client:
        yield client


OWN_CA = {"ca": TRUSTED.file}


def test_own_authority_and_server_name_verify() -> None:
    with SecureBackend(LEDGER) as backend, forwarding((backend.url, {**OWN_CA, "server_name": "ledger.internal"})) as client:
        assert client.get("/0").body == b"ok"
        assert backend.asked_for == ["ledger.internal"]
        assert backend.requests[0].values("Host") == ["x"]


def test_address_in_the_certificate_verifies() -> None:
    with SecureBackend(HERE) as backend, forwarding((backend.url, OWN_CA)) as client:
        assert client.get("/0").body == b"ok"


@pytest.mark.parametrize(
    ("pair", "options", "why"),
    [
        (HERE, {}, "unable to get local issuer certificate"),
        (HERE, {"ca": authority("stranger").file}, "certificate verify failed"),
        (LEDGER, OWN_CA, "IP address mismatch"),
        (LEDGER, {**OWN_CA, "server_name": "other.internal"}, "Hostname mismatch"),
    ],
    ids=["system's authorities", "another authority", "another address", "another name"],
)
def test_certificate_that_does_not_verify_is_502_and_the_log_says_why(
    pair: Pair, options: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with SecureBackend(pair) as backend, forwarding((backend.url, options)) as client:
        response = client.get("/0")
        is_fault(response, 502, "tls_failed")
        assert why.encode() not in response.body
        assert why in caplog.text
        eventually(lambda: backend.failures, "the backend is told")
        assert backend.requests == []


def test_nothing_is_verified_when_the_config_says_so() -> None:
    with SecureBackend(LEDGER) as backend, forwarding((backend.url, {"verify": False})) as client:
        assert client.get("/0").body == b"ok"


@pytest.mark.parametrize(
    "files",
    [
        {"certificate": GATEWAY.both},
        {"certificate": GATEWAY.certificate, "key": GATEWAY.key},
        {"certificate": GATEWAY.certificate, "key": GATEWAY.locked, "key_password": PASSWORD},
    ],
    ids=["one file", "two files", "password"],
)
def test_own_certificate_is_shown_to_a_backend_that_asks(files: dict[str, str]) -> None:
    with SecureBackend(HERE, clients=TRUSTED.file) as backend, forwarding((backend.url, {**OWN_CA, **files})) as client:
        assert client.get("/0").body == b"ok"
        assert (("commonName", "gateway"),) in backend.shown[0]["subject"]


def test_backend_that_wants_a_certificate_and_gets_none_is_no_backend() -> None:
    with SecureBackend(HERE, clients=TRUSTED.file) as backend, forwarding((backend.url, OWN_CA)) as client:
        assert client.get("/0").status == 502
        assert backend.requests == []


def test_options_of_one_backend_are_not_those_of_another_at_the_same_address() -> None:
    with SecureBackend(HERE) as backend, forwarding((backend.url, OWN_CA), (backend.url, {})) as client:
        for _ in range(2):
            assert client.get("/0").status == 200
            is_fault(client.get("/1"), 502, "tls_failed")
        assert len(backend.shown) == 1, "the connection has not been used again"


def test_version_that_is_not_safe_is_refused() -> None:
    with pytest.warns(DeprecationWarning):
        old = SecureBackend(HERE, maximum_version=ssl.TLSVersion.TLSv1_1)
    with old as backend, forwarding((backend.url, OWN_CA)) as client:
        is_fault(client.get("/0"), 502, "tls_failed")


def test_session_tickets_are_no_early_answer() -> None:
    go_on = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        passed(go_on)
        respond_with(connection)

    body = b"x" * 300_000
    with SecureBackend(HERE, script) as backend, forwarding((backend.url, OWN_CA)) as client:
        client.send(b"POST /0 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:100_000])
        eventually(lambda: backend.shown, "the handshake is over")
        go_on.set()
        client.send(body[100_000:])
        assert client.response().body == body


def test_early_answer_reaches_a_client_that_has_not_sent_its_body() -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        connection.send(http_response(b"too large", "413 Content Too Large"))
        connection.wait_closed()

    with SecureBackend(HERE, script) as backend, forwarding((backend.url, OWN_CA)) as client:
        client.send(b"POST /0 HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + b"x" * 100_000)
        response = client.response()
        assert (response.status, response.body) == (413, b"too large")


@pytest.mark.parametrize("ending", ["goodbye", "close", "reset"])
@pytest.mark.parametrize("size", [60_000, 3_000_000])
def test_early_answer_of_a_backend_that_closes_then_is_passed_on(ending: str, size: int) -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        connection.send(http_response(b"too large", "413 Content Too Large"))
        if ending == "goodbye":
            connection.sock.setblocking(False)
            with suppress(OSError):
                connection.sock.unwrap()  # type: ignore[attr-defined]
        if ending == "reset":
            connection.reset()

    with SecureBackend(HERE, script) as backend, forwarding((backend.url, OWN_CA)) as client:
        client.send(b"POST /0 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        sending = threading.Thread(target=send_until_it_fails, args=(client.sock, b"x" * size))
        sending.start()
        response = client.response()
        assert (response.status, response.body) == (413, b"too large")
        client.sock.shutdown(socket.SHUT_RDWR)
        sending.join()


def test_early_answer_comes_although_the_backend_takes_nothing() -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_head()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.send(http_response(b"too large", "413 Content Too Large"))
        passed(answered)

    answered = threading.Event()
    with SecureBackend(HERE, script) as backend, forwarding((backend.url, OWN_CA)) as client:
        client.send(b"POST /0 HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        sending = threading.Thread(target=send_until_it_fails, args=(client.sock, b"x" * 1_000_000))
        sending.start()
        assert client.response().status == 413
        answered.set()
        client.sock.shutdown(socket.SHUT_RDWR)
        sending.join()


def send_until_it_fails(sock: socket.socket, block: bytes) -> None:
    with suppress(OSError):
        while True:
            sock.sendall(block)


@pytest.mark.parametrize("goodbye", [True, False], ids=["with", "without"])
def test_response_that_ends_with_the_connection_needs_the_end_that_tls_has(goodbye: bool) -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        if goodbye:
            assert isinstance(connection.sock, ssl.SSLSocket)
            connection.sock.unwrap()

    with SecureBackend(HERE, script) as backend, forwarding((backend.url, OWN_CA)) as client:
        response = client.get("/0")
        assert (response.body, response.complete) == (b"hello", goodbye)


def test_connection_that_the_backend_has_ended_is_not_used_again() -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(http_response(b"%d" % connection.number))
        assert isinstance(connection.sock, ssl.SSLSocket)
        connection.sock.unwrap()

    with SecureBackend(HERE, script) as backend, forwarding((backend.url, OWN_CA)) as client:
        assert [client.get("/0").body for _ in range(3)] == [b"0", b"1", b"2"]


def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    sent = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        while connection.read_request() is not None:
            connection.send(http_response(b"%d" % connection.number))
            connection.send(http_response(b"poison"))
            sent.set()

    with SecureBackend(HERE, script) as backend, forwarding((backend.url, OWN_CA)) as client:
        assert client.get("/0").body == b"0"
        passed(sent)
        assert client.get("/0").body in (b"1",)


def test_client_that_leaves_ends_the_connection_to_the_backend() -> None:
    begun, ended = threading.Event(), threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        begun.set()
        with suppress(ssl.SSLError):
            connection.wait_closed()
        ended.set()

    with SecureBackend(HERE, script) as backend, forwarding((backend.url, OWN_CA)) as client:
        client.send(b"GET /0 HTTP/1.1\r\nHost: x\r\n\r\n")
        passed(begun)
        client.close()
        passed(ended)


def test_goodbye_is_said_when_the_gateway_ends() -> None:
    said: list[bool] = []

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(http_response(b"ok"))
        connection.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        said.append(connection.sock.recv(1) == b"")

    with SecureBackend(HERE, script) as backend:
        with forwarding((backend.url, OWN_CA)) as client:
            assert client.get("/0").status == 200
        eventually(lambda: said or backend.failures)
        assert said == [True]


def test_probe_speaks_tls_by_the_options_of_the_backend() -> None:
    with SecureBackend(LEDGER, clients=TRUSTED.file) as backend:
        certificates = {"ca": TRUSTED.file, "certificate": GATEWAY.both, "server_name": "ledger.internal"}
        config = {
            "backends": [
                {"name": "known", "endpoints": [backend.url], "tls": certificates},
                {"name": "strange", "endpoints": [backend.url + "/"], "tls": {**certificates, "server_name": "other.internal"}},
            ]
        }
        with running_gateway(config, {}) as gateway:
            (endpoint,), (strange,) = (gateway.table.snapshot.endpoints[name] for name in ("known", "strange"))
            assert gateway.probe(endpoint, "/health") == 200
            with pytest.raises(TLSFailed):
                gateway.probe(strange)
