"""The TLS listener: what it offers, whom it shows which certificate, and that a handshake costs what an idle connection does."""

from __future__ import annotations

import shutil
import socket
import ssl
import struct
import subprocess
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rgate.config.models import TLSConfig
from rgate.serving.connection import LINGER_BYTES, RECEIVE_BYTES
from rgate.serving.server import Server
from rgate.testing import make_gateway
from rgate.tls.server_context import ServerTLS

from ..support.certificates import authority
from ..support.raw_client import RawClient
from ..support.serving import connection_of, echo, send_apart, serving
from ..support.tls_client import SHOP, TLS, MemoryClient, SecureClient, address
from ..support.waiting import eventually

MIB = 1024 * 1024
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def context(**settings: Any) -> ssl.SSLContext:
    made = authority().client_context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old versions of the protocol
        for name, value in settings.items():
            setattr(made, name, value)
    return made


def names(client: SecureClient) -> set[str]:
    """The host names of the certificate that a client has been shown."""
    certificate: dict[str, Any] = client.tls.getpeercert() or {}
    return {name for kind, name in certificate["subjectAltName"] if kind == "DNS"}


# Versions and ciphers


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_version_that_is_safe_is_spoken(version: str) -> None:
    wanted = ssl.TLSVersion[version]
    only = context(minimum_version=wanted, maximum_version=wanted)
    with serving(echo, **TLS) as server, SecureClient(server.url, context=only) as client:
        assert client.tls.version() == version.replace("_", ".")
        assert client.get().body == b"GET / "


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_version_that_is_not_safe_is_refused(version: str) -> None:
    wanted = ssl.TLSVersion[version]
    old = context(minimum_version=wanted, maximum_version=wanted)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with serving(echo, **TLS) as server, pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        SecureClient(server.url, context=old)


def test_newest_version_is_preferred() -> None:
    with serving(echo, **TLS) as server, SecureClient(server.url) as client:
        assert client.tls.version() == "TLSv1.3"


@pytest.mark.parametrize(
    "ciphers", ["ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "AES128-GCM-SHA256", "aNULL", "eNULL"]
)
def test_cipher_that_is_not_safe_is_refused(ciphers: str) -> None:
    old = context(maximum_version=ssl.TLSVersion.TLSv1_2, check_hostname=False, verify_mode=ssl.CERT_NONE)
    old.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    with serving(echo, **TLS) as server, pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
        SecureClient(server.url, context=old)


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["h2", "http/1.1"], "http/1.1"), (["h2"], None), (["http/1.0", "h3"], None), ([], None)]
)
def test_protocol_is_http_1_1_and_nothing_else(offered: list[str], chosen: str | None) -> None:
    offering = context()
    if offered:
        offering.set_alpn_protocols(offered)
    with serving(echo, **TLS) as server, SecureClient(server.url, context=offering) as client:
        assert client.tls.selected_alpn_protocol() == chosen
        assert client.get().status == 200


def test_session_is_taken_up_again() -> None:
    with serving(echo, **TLS) as server:
        same = context()
        with SecureClient(server.url, context=same) as client:
            client.get()
            session = client.tls.session
        with SecureClient(server.url, context=same, session=session) as client:
            assert client.tls.session_reused
            assert client.get().status == 200


def test_environ_says_that_it_is_tls() -> None:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.update(environ)
        return echo(environ, start_response)

    with serving(app, **TLS) as server, SecureClient(server.url) as client:
        assert server.url == f"https://127.0.0.1:{server.port}"
        client.get()
    assert (seen["wsgi.url_scheme"], seen["HTTPS"], seen["SSL_PROTOCOL"]) == ("https", "on", "TLSv1.3")
    assert (seen["SERVER_PORT"], seen["SSL_CLIENT_VERIFY"]) == (str(server.port), "NONE")
    assert seen["SSL_CIPHER"].startswith("TLS_")


# Which certificate


def several(*more: dict[str, Any]) -> dict[str, Any]:
    return {"tls": {"certificate": SHOP.both, "certificates": more}}


ADMIN = authority().issue("admin.example", "*.admin.example")
OLD = authority().issue("old.example", common_name="old.example")


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("shop.example", "shop.example"),
        ("admin.example", "admin.example"),
        ("ADMIN.Example", "admin.example"),
        ("x.admin.example", "admin.example"),
        ("x.y.admin.example", "shop.example"),
        ("old.example", "shop.example"),
        ("new.example", "old.example"),
        ("nobody.example", "shop.example"),
        (None, "shop.example"),
    ],
)
def test_certificate_is_the_one_for_the_host(asked: str | None, shown: str) -> None:
    options = several({"certificate": ADMIN.both}, {"certificate": OLD.certificate, "key": OLD.key, "hosts": ["new.example"]})
    with serving(echo, **options) as server, SecureClient(server.url, asked, context=context(check_hostname=False)) as client:
        assert shown in names(client)
        assert client.get().status == 200


def test_certificates_can_be_exchanged_while_it_serves() -> None:
    with serving(echo, **TLS) as server, SecureClient(server.url) as before:
        server.reconfigure(echo, server.config, ServerTLS(TLSConfig(certificate=ADMIN.both)))
        with SecureClient(server.url, "admin.example") as after:
            assert (before.get().status, after.get().status) == (200, 200)
            assert "admin.example" in names(after)


# Handshakes


def begun(server: Server, count: int, sent: bytes) -> list[RawClient]:
    clients = [RawClient(server.url) for _ in range(count)]
    for client in clients:
        send_apart(server, client, sent)
    return clients


@pytest.mark.parametrize(
    "sent", [b"", MemoryClient().to_send()[:1], MemoryClient().to_send()[:-1]], ids=["nothing", "a byte", "most"]
)
def test_handshake_that_is_slow_holds_no_thread(sent: bytes) -> None:
    with serving(echo, threads=1, **TLS) as server:
        slow = begun(server, 30, sent)
        with SecureClient(server.url) as client:
            assert client.get().status == 200
            assert server.threads == 1
        for raw in slow:
            raw.close()
        eventually(lambda: not server.connections, "those that left are forgotten")


def test_handshake_has_head_seconds() -> None:
    with serving(echo, head_seconds=0.1, **TLS) as server:
        (client,) = begun(server, 1, MemoryClient().to_send()[:100])
        with client:
            assert client.is_closed()


def test_first_head_has_head_seconds_after_the_handshake() -> None:
    with serving(echo, head_seconds=5, **TLS) as server, RawClient(server.url) as raw:
        connection = connection_of(server, raw)
        connection.deadline = server.now + 0.5  # nearly over
        MemoryClient().shake_hands_over(raw.sock)
        eventually(lambda: connection.deadline > server.now + 4)


def test_handshake_byte_by_byte_ends_well() -> None:
    with serving(echo, **TLS) as server, RawClient(server.url) as raw:
        client = MemoryClient()
        send_apart(server, raw, *(bytes([byte]) for byte in client.to_send()))
        client.shake_hands_over(raw.sock)
        client.tls.write(GET)
        raw.send(client.to_send())
        assert client.read_over(raw.sock).startswith(b"HTTP/1.1 200 OK\r\n")


def test_request_that_comes_with_the_end_of_the_handshake_is_answered() -> None:
    with serving(echo, **TLS) as server, RawClient(server.url) as raw:
        client = MemoryClient()
        raw.send(client.to_send())
        while not client.do_handshake():
            client.take(raw.sock.recv(65_536))
        client.tls.write(GET)
        raw.send(client.to_send())
        assert client.read_over(raw.sock).startswith(b"HTTP/1.1 200 OK\r\n")


def test_handshake_longer_than_the_socket_takes_holds_no_thread() -> None:
    chain = SHOP.both.replace("both", "long-chain")
    Path(chain).write_text(Path(SHOP.both).read_text() + Path(authority().file).read_text() * 150)
    with serving(echo, threads=1, tls={"certificate": chain}) as server, socket.socket() as sock:
        sock.settimeout(10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        server.listeners.main[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        sock.connect(address(server.url))
        client = MemoryClient()
        sock.sendall(client.to_send())
        eventually(lambda: any(c._stream.wants_write for c in server.connections), "the socket is full")  # type: ignore[attr-defined]
        with SecureClient(server.url) as other:
            assert other.get().status == 200
        client.shake_hands_over(sock)
        client.tls.write(GET)
        sock.sendall(client.to_send())
        assert client.read_over(sock).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x00\x05hello", b"\x00" * 1_000, b"\xff" * 100_000], ids=["short", "zeros", "long"]
)
def test_garbage_ends_the_connection_and_harms_nobody(garbage: bytes) -> None:
    with serving(echo, **TLS) as server, SecureClient(server.url) as other:
        assert other.get().status == 200
        with RawClient(server.url) as client:
            try:
                client.send(garbage)
                answer = client.rest()
            except ConnectionError:
                answer = b""
            assert answer == b"" or answer.startswith(b"\x15\x03"), "neither silence nor an alert"
        assert other.get().status == 200


def test_client_that_does_not_believe_us_is_only_logged_quietly(caplog: pytest.LogCaptureFixture) -> None:
    with serving(echo, **TLS) as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            SecureClient(server.url, context=ssl.create_default_context(cafile=authority("stranger").file))
        eventually(lambda: not server.connections)
    assert not [record for record in caplog.records if record.levelname not in ("DEBUG", "INFO")]


# HTTP in it


def test_connection_is_kept_and_pipelined_requests_are_answered_in_order() -> None:
    with serving(echo, **TLS) as server, SecureClient(server.url) as client:
        for number in range(3):
            assert client.get(f"/{number}").body == b"GET /%d " % number
        client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(200)))
        assert [client.response().body for _ in range(200)] == [b"GET /%d " % number for number in range(200)]


def test_head_and_small_body_come_byte_by_byte() -> None:
    request = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    with serving(echo, **TLS) as server, SecureClient(server.url) as client:
        send_apart(server, client, *(bytes([byte]) for byte in request))
        assert client.response().body == b"POST /x hello"


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_large_bodies_go_both_ways(chunked: bool) -> None:
    whole = bytes(range(256)) * 4 * 8_192

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        assert environ["wsgi.input"].read() == whole
        start_response("200 OK", [] if chunked else [("Content-Length", str(len(whole)))])
        return iter([whole[:100], whole[100:70_000], whole[70_000:]])

    with serving(app, **TLS) as server, SecureClient(server.url) as client:
        for _ in range(2):
            if chunked:
                client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(whole))
                client.send(whole, b"\r\n0\r\n\r\n")
            else:
                client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(whole), whole)
            response = client.response()
            assert response.complete and response.body == whole


def test_request_after_a_large_body_is_not_forgotten() -> None:
    body = b"x" * 200_000
    with serving(echo, **TLS) as server, SecureClient(server.url) as client:
        client.send(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body + GET)
        assert client.response().body == b"POST /a " + body
        assert client.response().body == b"GET / "


def test_handshake_that_is_refused_is_the_end_however_much_is_sent() -> None:
    with serving(echo, **TLS) as server, RawClient(server.url) as client:
        connection = connection_of(server, client)
        client.send(b"\x16\x03\x01\x00\x05hello")
        with suppress(ConnectionError):
            for _ in range(500):  # 32 MB
                client.send(b"x" * 65_536)
        eventually(lambda: not server.connections, "the connection is over")
    assert 0 < connection._discarded_bytes <= LINGER_BYTES + RECEIVE_BYTES


def test_slow_body_has_body_seconds() -> None:
    with serving(make_gateway({}), body_seconds=0.1, **TLS) as server, SecureClient(server.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nhello")
        assert client.response().status == 408
        assert client.is_closed() and not client.was_cut


def test_reader_that_does_not_read_is_cut_after_write_seconds() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return iter([b"x" * 65_536] * 2_000)

    with serving(app, write_seconds=0.2, **TLS) as server, SecureClient(server.url) as client:
        client.send(GET)
        eventually(lambda: not server.connections, "the connection is cut")
        client.rest()
        assert client.was_cut or client.was_reset


# Ends


def test_end_after_a_response_is_one_that_tls_knows() -> None:
    with serving(echo, **TLS) as server:
        with SecureClient(server.url) as client:
            assert client.get("/", "Connection: close").status == 200
            assert client.is_closed() and not client.was_cut
        with SecureClient(server.url) as client:
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            assert client.response().body == b"GET / "
            assert client.is_closed() and not client.was_cut


def test_response_that_breaks_off_has_no_such_end() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        yield b"first"
        raise RuntimeError("gone")

    for version in (b"1.0", b"1.1"):
        with serving(app, **TLS) as server, SecureClient(server.url) as client:
            client.send(b"GET / HTTP/%s\r\nHost: x\r\n\r\n" % version)
            client.until(b"first")
            client.rest()
            assert client.was_cut or client.was_reset


def test_idle_connection_is_ended_properly() -> None:
    with serving(echo, keep_alive_seconds=0.1, **TLS) as server, SecureClient(server.url) as client:
        assert client.get().status == 200
        assert client.is_closed() and not client.was_cut


def test_stopping_ends_idle_connections_properly() -> None:
    with serving(echo, **TLS) as server, SecureClient(server.url) as client:
        assert client.get().status == 200
        server.stop()
        assert client.is_closed() and not client.was_cut


def test_refusal_reaches_a_client_that_is_still_sending() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("413 Content Too Large", [("Content-Length", "3")])
        return [b"no\n"]

    with serving(app, **TLS) as server, SecureClient(server.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 500_000)
        assert client.response().body == b"no\n"
        assert client.is_closed() and not client.was_cut and not client.was_reset


def test_client_that_says_goodbye_with_its_request_gets_the_answer() -> None:
    with serving(echo, **TLS) as server, RawClient(server.url) as raw:
        client = MemoryClient()
        client.shake_hands_over(raw.sock)
        client.tls.write(GET)
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.unwrap()
        raw.send(client.to_send())
        assert client.read_over(raw.sock).startswith(b"HTTP/1.1 200 OK\r\n")
        eventually(lambda: not server.connections, "the connection is closed")


def test_client_that_is_reset_is_forgotten() -> None:
    with serving(echo, **TLS) as server, RawClient(server.url) as raw:
        MemoryClient().shake_hands_over(raw.sock)
        raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()
        eventually(lambda: not server.connections)


def test_renegotiation_is_refused() -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command, which can ask for one")
    with serving(echo, head_seconds=0.5, **TLS) as server:  # the refusal comes with whatever is sent next, here the end
        command = [openssl, "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_2"]
        asking = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        with asking:
            assert asking.stdin and asking.stdout
            said: list[str] = []
            for line in asking.stdout:
                said.append(line)
                if "Verify return code" in line:
                    asking.stdin.write("R\n")
                    asking.stdin.flush()
                if "no renegotiation" in line:
                    break
            asking.kill()
        assert "no renegotiation" in said[-1], said
