"""What is said about the files of TLS, each at its line."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rgate.tls.certificates import PemError, _name_in, dns_names

from ..support.certificates import PASSWORD, authority
from .configs import ONE_BACKEND, loaded, problems

TRUSTED, OTHER_AUTHORITY = authority(), authority("revoking")
SHOP, OTHER = TRUSTED.issue("shop.example", "*.shop.example"), TRUSTED.issue("other.example")


CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")


def self_signed(pem: Path, *options: str) -> str:
    """A certificate of a kind that no authority issues; its key is beside it, with `.key` at the end."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    files = ("-keyout", f"{pem}.key", "-out", str(pem))
    subprocess.run([openssl, "req", "-x509", "-nodes", "-subj", "/CN=x", *options, *files], check=True, capture_output=True)
    return str(pem)


def told(**options: str) -> str:
    """The only problem of a server with these options, without its place."""
    lines = "".join(f"    {name}: {value}\n" for name, value in options.items())
    (problem,) = problems(f"server:\n  tls:\n{lines}")
    return problem


@pytest.mark.parametrize(
    "options",
    [
        {"certificate": SHOP.certificate, "key": SHOP.key},
        {"certificate": SHOP.both},
        {"certificate": SHOP.certificate, "key": SHOP.locked, "key_password": PASSWORD},
        {"certificate": SHOP.certificate, "key": SHOP.key, "key_password": "needless"},
    ],
    ids=["two files", "one file", "password", "needless password"],
)
def test_certificate_that_can_be_used_is_no_problem(options: dict[str, str]) -> None:
    lines = "".join(f"    {name}: {value}\n" for name, value in options.items())
    assert loaded(f"server:\n  tls:\n{lines}").server.tls is not None


def test_key_of_another_kind_than_the_certificate_is_said_not_to_belong_to_it(tmp_path: Path) -> None:
    curve, rsa = self_signed(tmp_path / "curve.pem", *CURVE), self_signed(tmp_path / "rsa.pem", "-newkey", "rsa:2048")
    for certificate, key in ((curve, f"{rsa}.key"), (rsa, f"{curve}.key")):
        assert told(certificate=certificate, key=key) == (
            f"config.yml:4: server.tls.key: the private key in {key} does not belong to the certificate in {certificate}"
        )


PROBLEMS: list[tuple[dict[str, str], str]] = [
    ({"certificate": "/nowhere.pem"}, "config.yml:3: server.tls.certificate: /nowhere.pem: no such file"),
    (
        {"certificate": SHOP.certificate, "key": "/nowhere.key"},
        "config.yml:4: server.tls.key: /nowhere.key: no such file",
    ),
    ({"certificate": "/"}, "config.yml:3: server.tls.certificate: / is a directory, not a file"),
    (
        {"certificate": SHOP.certificate},
        f"config.yml:3: server.tls.certificate: {SHOP.certificate} contains no private key next to the certificate; "
        "name its file under 'key'",
    ),
    (
        {"certificate": SHOP.key, "key": SHOP.key},
        f"config.yml:3: server.tls.certificate: {SHOP.key} contains no certificate in PEM form (-----BEGIN CERTIFICATE-----)",
    ),
    (
        {"certificate": SHOP.certificate, "key": SHOP.certificate},
        f"config.yml:4: server.tls.key: {SHOP.certificate} contains no private key in PEM form (-----BEGIN PRIVATE KEY-----)",
    ),
    (
        {"certificate": SHOP.certificate, "key": OTHER.key},
        f"config.yml:4: server.tls.key: the private key in {OTHER.key} does not belong to the certificate in "
        f"{SHOP.certificate}",
    ),
    (
        {"certificate": SHOP.certificate, "key": SHOP.locked},
        f"config.yml:4: server.tls.key: the private key in {SHOP.locked} is encrypted; set its password under "
        "'key_password'",
    ),
    (
        {"certificate": SHOP.certificate, "key": SHOP.locked, "key_password": "wrong one"},
        f"config.yml:5: server.tls.key_password: does not decrypt the private key in {SHOP.locked}",
    ),
    ({"key": SHOP.key, "certificates": f"[{{certificate: {SHOP.both}}}]"},
     "config.yml:3: server.tls.key: has no effect unless 'certificate' is also set"),
    ({"redirect_port": "80"}, "config.yml:2: server.tls: needs a certificate"),
    ({"certificate": SHOP.both, "public_port": "443"},
     "config.yml:4: server.tls.public_port: has no effect unless 'redirect_port' is also set"),
    ({"certificate": SHOP.both, "redirect_port": "8080"},
     "config.yml:4: server.tls.redirect_port: 8080 is the port of the TLS listener; choose another, like 80"),
    ({"certificate": SHOP.both, "certificates": f"[{{certificate: {SHOP.both}}}]"},
     "config.yml:4: server.tls.certificates[0].certificate: never used: server.tls.certificate is already for "
     "shop.example, *.shop.example"),
    ({"certificate": SHOP.both, "certificates": f"[{{certificate: {OTHER.both}, hosts: ['[::1]']}}]"},
     "config.yml:4: server.tls.certificates[0].hosts[0]: '[::1]' is an address; TLS clients name only hosts, so the first "
     "certificate is used for it"),
    ({"certificate": SHOP.both, "client_certificates": "{ca: /nowhere}"},
     "config.yml:4: server.tls.client_certificates.ca: /nowhere: no such file"),
    ({"certificate": SHOP.both, "client_certificates": f"{{ca: {TRUSTED.file}, crl: {TRUSTED.file}}}"},
     f"config.yml:4: server.tls.client_certificates.crl: {TRUSTED.file} contains no revocation list in PEM form "
     "(-----BEGIN X509 CRL-----)"),
    ({"certificate": SHOP.both, "client_certificates": f"{{ca: {SHOP.key}}}"},
     f"config.yml:4: server.tls.client_certificates.ca: {SHOP.key} contains no certificate in PEM form "
     "(-----BEGIN CERTIFICATE-----)"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "problem"), PROBLEMS, ids=[" ".join(options) for options, _ in PROBLEMS])
def test_certificate_that_cannot_be_used_is_told_at_its_line(options: dict[str, str], problem: str) -> None:
    assert told(**options) == problem


@pytest.mark.parametrize("damaged", ["certificate", "key"])
def test_damaged_file_is_the_one_that_is_told(damaged: str, tmp_path: Path) -> None:
    files = {"certificate": SHOP.certificate, "key": SHOP.key}
    broken = tmp_path / "broken.pem"
    lines = Path(files[damaged]).read_text().splitlines()
    broken.write_text("\n".join([lines[0], "AAAA" + lines[1][4:], *lines[2:]]))
    problem = told(**{**files, damaged: str(broken)})
    assert f"server.tls.{damaged}: " in problem and str(broken) in problem


def test_unreadable_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("rgate.tls.certificates.open", refuse, raising=False)
    assert told(certificate=SHOP.both).endswith(f"{SHOP.both} cannot be read: no permission")


def test_key_that_is_too_small_is_told(tmp_path: Path) -> None:
    pem = self_signed(tmp_path / "small.pem", "-newkey", "rsa:1024")
    assert told(certificate=pem, key=f"{pem}.key").endswith("small.pem is too small to be safe; RSA needs 2,048 bits")


def test_password_is_never_shown() -> None:
    assert "hunter22" not in told(certificate=SHOP.certificate, key=SHOP.locked, key_password="hunter22")


def test_names_are_those_of_the_certificate() -> None:
    assert dns_names(SHOP.both, None, None) == ("shop.example", "*.shop.example")
    assert dns_names(TRUSTED.issue("127.0.0.1", common_name="Named.example").both, None, None) == ("named.example",)


def test_certificate_for_clients_only_is_no_certificate_for_a_server(tmp_path: Path) -> None:
    pem = self_signed(tmp_path / "client.pem", *CURVE, "-addext", "extendedKeyUsage=clientAuth")
    with pytest.raises(PemError, match="cannot be used by a server"):
        dns_names(pem, f"{pem}.key", None)


def test_expired_certificate_is_read_all_the_same() -> None:
    old = TRUSTED.issue("old.example", not_after=datetime(2001, 1, 1, tzinfo=UTC))
    assert dns_names(old.both, None, None) == ("old.example",)


BACKEND = "backends:\n  - name: ledger\n    endpoints: ['{}']\n    tls: {{{}}}\n"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("ca: /nowhere", "ca: /nowhere: no such file"),
        (f"ca: {TRUSTED.file}, verify: false", "verify: is false, so 'ca' has no effect; leave one of them out"),
        (f"key: {SHOP.key}", "key: has no effect unless 'certificate' is also set"),
        (
            f"certificate: {SHOP.certificate}, key: {OTHER.key}",
            f"key: the private key in {OTHER.key} does not belong to the certificate in {SHOP.certificate}",
        ),
        ("server_name: '*.x'", "server_name: '*.x' is not a host name; write the name alone, without scheme, port or wildcard"),
    ],
    ids=["no authorities", "authorities for nothing", "key alone", "another's key", "wildcard"],
)
def test_backend_option_that_cannot_be_used_is_told(options: str, problem: str) -> None:
    assert problems(BACKEND.format("https://127.0.0.1:9", options)) == [f"config.yml:4: backends[0].tls.{problem}"]


def test_backend_that_has_no_https_endpoint_needs_no_tls() -> None:
    (problem,) = problems(BACKEND.format("http://127.0.0.1:9", f"ca: {TRUSTED.file}"))
    assert problem == "config.yml:4: backends[0].tls: has no effect, because no endpoint of this backend begins with https://"


def test_server_name_may_be_an_address() -> None:
    config = loaded(BACKEND.format("https://127.0.0.1:9", "server_name: '::1'"))
    assert config.backends[0].tls.server_name == "::1"


def test_authority_without_a_revocation_list_is_noticed(tmp_path: Path) -> None:
    office = OTHER_AUTHORITY.intermediate("desk")
    both, lists = tmp_path / "both.pem", tmp_path / "lists.crl"
    both.write_bytes(Path(OTHER_AUTHORITY.file).read_bytes() + Path(office.file).read_bytes())
    config = f"server: {{tls: {{certificate: {SHOP.both}, client_certificates: {{ca: {both}, crl: {lists}}}}}}}\n{ONE_BACKEND}"
    config += "routes: [{path_prefix: /, backend: orders}]"
    lists.write_bytes(Path(office.revoke()).read_bytes())
    (notice,) = map(str, loaded(config).warnings)
    assert notice.startswith("config.yml:1: server.tls.client_certificates.crl: has no revocation list of the authority '")
    assert "revoking" in notice, "the root, by its name"
    lists.write_bytes(Path(office.revoke(SHOP)).read_bytes() + b"# a comment\n" + Path(OTHER_AUTHORITY.revoke()).read_bytes())
    assert loaded(config).warnings == ()


@pytest.mark.parametrize("der", [b"", b"\x30", b"\x30\x82\xff\xff", b"\x30\x80\x30\x80" * 9, b"\x30\x03\x30\x01\x00", bytes(64)])
def test_reading_what_is_no_list_ends(der: bytes) -> None:
    assert isinstance(_name_in(der, 1), bytes)
