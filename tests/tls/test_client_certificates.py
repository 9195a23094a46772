"""Client certificates: which clients need one, which are accepted, and that no other client can claim an identity."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from rgate import Middleware, hookimpl
from rgate.testing import ScriptedBackend
from rgate.tls.client_certificate import MAX_HEADER_BYTES, forwarded_client_cert, ssl_environ

from ..support.certificates import Pair, authority
from ..support.forwarding import forwarding
from ..support.raw_client import RawClient
from ..support.serving import echo, serving
from ..support.tls_client import SHOP, SecureClient
from ..support.waiting import eventually

STAFF = authority("staff")
ALICE = STAFF.issue("alice.example", "alice@example.org", common_name="Alice", organization="Example, Inc.")
HEADER = "X-Forwarded-Client-Cert"


def asking(require: bool) -> dict[str, Any]:
    return {"tls": {"certificate": SHOP.both, "client_certificates": {"ca": STAFF.file, "require": require}}}


def told(backend: ScriptedBackend) -> list[str]:
    """The backend's last request."""
    return backend.requests[-1].values(HEADER)


def ask(client: SecureClient) -> None:
    """Send a request, and wait for a byte in return."""
    with client:
        client.sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        client.sock.recv(1)


def expected(pair: Pair) -> str:
    first = Path(pair.certificate).read_text().partition("-----END")[0]
    der = ssl.PEM_cert_to_DER_cert(f"{first}-----END CERTIFICATE-----\n")
    return f"Hash={sha256(der).hexdigest()};"


def test_client_with_a_certificate_is_told_to_the_backend() -> None:
    with (
        ScriptedBackend() as backend,
        forwarding(backend, **asking(True)) as live,
        SecureClient(live.url, pair=ALICE) as client,
    ):
        for _ in range(2):
            assert client.get().status == 200
            (value,) = told(backend)
            assert value.startswith(expected(ALICE))
            assert 'Subject="CN=Alice,' in value and "O=Example\\2C Inc." in value
            assert ";DNS=alice.example" in value and ";Email=alice@example.org" in value


def revoking(crl: str) -> dict[str, Any]:
    return {"tls": {"certificate": SHOP.both, "client_certificates": {"ca": STAFF.file, "crl": crl}}}


def test_certificate_that_is_revoked_is_refused_and_no_other() -> None:
    bob = STAFF.issue("bob.example", common_name="Bob")
    with serving(echo, **revoking(STAFF.revoke(bob))) as server:
        with pytest.raises(ssl.SSLError, match=r"(?i)revoked"):
            ask(SecureClient(server.url, pair=bob))
        with SecureClient(server.url, pair=ALICE) as client:
            assert client.get().status == 200


def test_certificate_of_an_intermediate_that_is_revoked_is_refused(tmp_path: Path) -> None:
    office = STAFF.intermediate("office")
    carol = office.issue("carol.example", common_name="Carol")
    lists = tmp_path / "lists.crl"
    own = Path(office.revoke()).read_bytes()
    lists.write_bytes(Path(STAFF.revoke()).read_bytes() + own)
    with serving(echo, **revoking(str(lists))) as server, SecureClient(server.url, pair=carol) as client:
        assert client.get().status == 200
    lists.write_bytes(Path(STAFF.revoke(office)).read_bytes() + own)
    with serving(echo, **revoking(str(lists))) as server, pytest.raises(ssl.SSLError, match=r"(?i)revoked"):
        ask(SecureClient(server.url, pair=carol))


def test_certificate_of_an_intermediate_whose_issuer_has_no_list_is_refused() -> None:
    office = STAFF.intermediate("branch")
    with serving(echo, **revoking(office.revoke())) as server, pytest.raises(ssl.SSLError):
        ask(SecureClient(server.url, pair=office.issue("dan.example", common_name="Dan")))


def test_certificate_that_is_refused_is_told_at_info(caplog: pytest.LogCaptureFixture) -> None:
    stranger = authority("stranger").issue("alice.example", common_name="Alice")
    with caplog.at_level(logging.INFO, "rgate.serving"), serving(echo, **asking(True)) as server:
        for pair in (stranger, None):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                ask(SecureClient(server.url, pair=pair))
        assert eventually(lambda: len(caplog.messages) == 2)
    assert all(message.startswith("127.0.0.1: TLS handshake failed: ") for message in caplog.messages)
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.messages[0] and "PEER_DID_NOT_RETURN_A_CERTIFICATE" in caplog.messages[1]
    assert {record.levelname for record in caplog.records} == {"INFO"}


@pytest.mark.parametrize("crl", [STAFF.revoke(days=-1), authority("stranger").revoke()], ids=["out of date", "of another"])
def test_certificate_without_a_list_that_is_good_is_refused(crl: str) -> None:
    with serving(echo, **revoking(crl)) as server, pytest.raises(ssl.SSLError):
        ask(SecureClient(server.url, pair=ALICE))


@pytest.mark.parametrize("require", [True, False], ids=["required", "optional"])
def test_certificate_of_a_stranger_is_refused(require: bool) -> None:
    stranger = authority("stranger").issue("alice.example", common_name="Alice")
    with serving(echo, **asking(require)) as server, pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca"):
        ask(SecureClient(server.url, pair=stranger))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_without_a_certificate_is_refused_where_one_is_required(version: ssl.TLSVersion) -> None:
    context = authority().client_context()
    context.maximum_version = version
    seen: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.append(environ)
        return echo(environ, start_response)

    with serving(app, **asking(True)) as server, pytest.raises((ssl.SSLError, ConnectionError)):
        ask(SecureClient(server.url, context=context))
    assert not seen, "its request has been served"


def test_client_without_a_certificate_is_nobody_where_one_is_optional() -> None:
    with ScriptedBackend() as backend, forwarding(backend, **asking(False)) as live, SecureClient(live.url) as client:
        assert client.get().status == 200
        assert told(backend) == []


@pytest.mark.parametrize("pair", [None, ALICE], ids=["without", "with"])
@pytest.mark.parametrize(
    "forged",
    [
        [f"{HEADER}: Subject=\"CN=Root\""],
        [f"{HEADER.lower()}: Subject=\"CN=Root\"", f"{HEADER}: By=me"],
        ["X_Forwarded_Client_Cert: Subject=\"CN=Root\""],
        [f"Connection: {HEADER}", f"{HEADER}: Subject=\"CN=Root\""],
        ["Connection: close, x-forwarded-client-cert"],
    ],
    ids=["plain", "twice", "underscores", "nominated", "nominated only"],
)  # fmt: skip
def test_client_cannot_say_who_it_is(pair: Pair | None, forged: list[str]) -> None:
    with ScriptedBackend() as backend, forwarding(backend, **asking(False)) as live:
        with SecureClient(live.url, pair=pair) as client:
            assert client.get("/", *forged).status == 200
        request = backend.requests[-1]
        assert b"Root" not in request.head and b"By=me" not in request.head
        assert len(told(backend)) == (pair is not None)
        assert pair is None or told(backend)[0].startswith(expected(pair))


def test_client_over_plain_http_cannot_say_who_it_is() -> None:
    with ScriptedBackend() as backend, forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get("/", f'{HEADER}: Subject="CN=Root"').status == 200
        assert told(backend) == []


def test_client_is_told_after_what_a_trusted_proxy_says() -> None:
    with ScriptedBackend() as backend:
        live_options = {"trusted_proxies": ["127.0.0.1/32"], **asking(True)}
        with forwarding(backend, **live_options) as live, SecureClient(live.url, pair=ALICE) as client:
            assert client.get("/", f'{HEADER}: Subject="CN=Bob"').status == 200
        first, second = told(backend)
        assert first == 'Subject="CN=Bob"' and second.startswith(expected(ALICE))


def test_client_is_told_to_middleware_and_through_edited_requests() -> None:
    seen: list[dict[str, Any]] = []

    class Plugin:
        @hookimpl
        def rgate_middlewares(self, gateway: object) -> Middleware:
            def wrap(app: Any, options: object) -> Any:
                def edit(environ: dict[str, Any], start_response: Any) -> Any:
                    seen.append(dict(environ))
                    environ["HTTP_X_EDITED"] = "yes"
                    return app(environ, start_response)

                return edit

            return Middleware("edit", wrap)

    with ScriptedBackend() as backend:
        more: dict[str, Any] = {"plugins": {"edit": Plugin()}, "options": {"edit": True}, **asking(True)}
        with forwarding(backend, **more) as live, SecureClient(live.url, pair=ALICE) as client:
            assert client.get("/", f'{HEADER}: Subject="CN=Root"').status == 200
        (value,) = told(backend)
        assert backend.requests[-1].values("X-Edited") == ["yes"]
    environ = seen[0]
    assert environ["HTTP_X_FORWARDED_CLIENT_CERT"] == value
    assert (environ["SSL_CLIENT_VERIFY"], environ["SSL_CLIENT_S_DN_CN"]) == ("SUCCESS", "Alice")
    assert environ["SSL_CLIENT_SAN_DNS_0"] == "alice.example"
    assert environ["SSL_CLIENT_CERT"].startswith("-----BEGIN CERTIFICATE-----")


def test_environ_key_cannot_be_sent() -> None:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.update(environ)
        return echo(environ, start_response)

    with serving(app, **asking(False)) as server, SecureClient(server.url) as client:
        client.get("/", "SSL_CLIENT_VERIFY: SUCCESS", "SSL-CLIENT-S-DN-CN: Root", "Ssl_Client_S_Dn_Cn: Root")
    assert seen["SSL_CLIENT_VERIFY"] == "NONE" and "SSL_CLIENT_S_DN_CN" not in seen


class Shown:
    """A connection whose client has shown what no authority of ours would issue."""

    def __init__(self, **certificate: Any) -> None:
        self.certificate = certificate

    def getpeercert(self, binary_form: bool = False) -> Any:
        return b"der" if binary_form else self.certificate

    def cipher(self) -> tuple[str, str, int]:
        return ("TLS_AES_128_GCM_SHA256", "TLSv1.3", 128)

    def version(self) -> str:
        return "TLSv1.3"


NASTY = 'a",\\;=\r\nX: y\0\té😀 #+<>'


def test_no_text_in_a_certificate_gets_out_of_its_place() -> None:
    shown: Any = Shown(
        subject=((("commonName", NASTY),), (("organizationName", " #x "),)),
        subjectAltName=(("DNS", NASTY), ("URI", NASTY), ("email", NASTY), ("IP Address", "::1"), ("DirName", NASTY)),
    )
    value = forwarded_client_cert(shown)
    assert value is not None and value.isascii() and value.isprintable()
    escaped = r"a\22\2C\5C\3B\3D\0D\0AX: y\00\09\C3\A9\F0\9F\98\80 #\2B\3C\3E"
    quoted = "a%22,%5C;=%0D%0AX:%20y%00%09%C3%A9%F0%9F%98%80%20#+<>"
    subject = f"O=\\20#x\\20,CN={escaped}"
    assert value == (
        f'Hash={sha256(b"der").hexdigest()};Subject="{subject}";DNS="{quoted}";URI="{quoted}";Email="{quoted}";IP=::1'
    )
    assert ssl_environ(shown)["SSL_CLIENT_S_DN"] == subject


def test_names_that_do_not_fit_are_left_out() -> None:
    shown: Any = Shown(subject=(), subjectAltName=tuple(("DNS", f"{number:060}.example") for number in range(1_000)))
    value = forwarded_client_cert(shown)
    assert value is not None
    assert MAX_HEADER_BYTES - 100 < len(value) <= MAX_HEADER_BYTES
    assert value.endswith(".example")


def test_certificate_that_has_not_been_verified_is_not_read() -> None:
    shown: Any = Shown()
    assert forwarded_client_cert(shown) is None
    assert ssl_environ(shown)["SSL_CLIENT_VERIFY"] == "NONE"


def test_refused_clients_leave_the_listener_well() -> None:
    with serving(echo, **asking(True)) as server:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                sock.sendall(b"\x16\x03\x01")
        with SecureClient(server.url, pair=ALICE) as client:
            assert client.get().status == 200
