"""Certificates and keys out of PEM files, and in plain words what keeps one from being used."""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Callable
from typing import Any, Final

from ..errors import RgateError

__all__ = [
    "PemError",
    "authorities_without_list",
    "dns_names",
    "load_ca",
    "load_cert_chain",
    "load_crl",
    "not_after",
]

MAX_FILE_BYTES: Final = 8 * 1024 * 1024
_REVOCATION_LIST: Final = re.compile(rb"-----BEGIN X509 CRL-----[^-]+-----END X509 CRL-----")
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")
_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which the ssl module has no name for


class PemError(RgateError):
    """A file cannot be used. `option` is the config key whose value it is: certificate, key, key_password, ca or crl."""

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"{option}: {problem}")
        self.option = option
        self.problem = problem


def load_cert_chain(context: ssl.SSLContext, certificate: str, key: str | None, password: str | None) -> None:
    """Let `context` show the certificate (and the chain after it) in a file, whose key is in `key` or in the same file.

    Raises PemError. Never asks for a password at the terminal, as OpenSSL would.
    """
    chain, secret = _read("certificate", certificate), _read("key", key) if key is not None else None
    if not _CERTIFICATE.search(chain):
        raise PemError("certificate", f"{certificate} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
    if b"PRIVATE KEY-----" not in (chain if secret is None else secret):
        if secret is None:
            raise PemError("certificate", f"{certificate} holds no private key beside the certificate; give its file under 'key'")
        raise PemError("key", f"{key} holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)")
    asked = False

    def answer() -> str:
        nonlocal asked
        asked = True
        return password or ""

    option, file = ("key", key) if key is not None else ("certificate", certificate)
    try:
        context.load_cert_chain(certificate, key, answer)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None)
        # The last is what OpenSSL says of a certificate for one kind of key beside a key of another.
        if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
            raise PemError(option, f"the private key in {file} does not belong to the certificate in {certificate}") from None
        if asked and not password:
            raise PemError(option, f"the private key in {file} is encrypted; give its password under 'key_password'") from None
        if asked:
            raise PemError("key_password", f"does not open the private key in {file}") from None
        if reason == "EE_KEY_TOO_SMALL":
            raise PemError("certificate", f"the key of {certificate} is too small to be safe; RSA needs 2,048 bits") from None
        if not _is_sound(chain):
            raise PemError("certificate", f"{certificate} is damaged: {reason or 'not a valid certificate'}") from None
        raise PemError(option, f"the private key in {file} cannot be used: {reason or 'damaged, or of another kind'}") from None
    except OSError as error:
        raise PemError("certificate", f"{certificate} cannot be read: {error.strerror or error}") from None


def load_ca(context: ssl.SSLContext, file: str) -> None:
    """Let `context` accept certificates that have been issued by the ones in a file. Raises PemError."""
    text = _read("ca", file)
    if not _CERTIFICATE.search(text):
        raise PemError("ca", f"{file} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
    try:
        context.load_verify_locations(cadata=_certificates(text))
    except (ssl.SSLError, ValueError) as error:
        raise PemError("ca", f"{file} is damaged: {getattr(error, 'reason', None) or 'not a valid certificate'}") from None


def load_crl(context: ssl.SSLContext, file: str) -> None:
    """Let `context` refuse what the lists in a file revoke, and all of an authority that has no list there. Raises PemError.

    That holds for every certificate of a chain up to the root: one whose intermediate has been revoked is refused too. So
    each authority but those that issue nothing to be checked needs a list, the root for its intermediates.
    """
    if b"-----BEGIN X509 CRL-----" not in _read("crl", file):
        raise PemError("crl", f"{file} holds no revocation list in PEM form (-----BEGIN X509 CRL-----)")
    try:
        context.load_verify_locations(cafile=file)
    except (ssl.SSLError, ValueError) as error:
        raise PemError("crl", f"{file} is damaged: {getattr(error, 'reason', None) or 'not a revocation list'}") from None
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


def authorities_without_list(ca: str, crl: str) -> tuple[str, ...]:
    """The authorities in `ca` that have no revocation list in `crl`, by name. Raises PemError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load_ca(context, ca)
    lists = [_from_pem(block, b"X509 CRL") for block in _REVOCATION_LIST.findall(_read("crl", crl))]
    issuers = {_name_in(der, 1) for der in lists}
    found = zip(context.get_ca_certs(binary_form=True), context.get_ca_certs(), strict=True)
    return tuple(_readable(shown) for der, shown in found if _name_in(der, 3) not in issuers)


def _readable(shown: dict[str, Any]) -> str:
    parts = [value for part in shown.get("subject", ()) for _, value in part]
    return ", ".join(map(str, parts)) or "one without a name"


def _from_pem(block: bytes, kind: bytes) -> bytes:
    return base64.b64decode(block.removeprefix(b"-----BEGIN %b-----" % kind).removesuffix(b"-----END %b-----" % kind))


def _name_in(der: bytes, skipped: int) -> bytes:
    """The name that is the sequence after so many others in what is signed: the issuer of a list (RFC 5280 §5.1) after the
    algorithm; the subject of a certificate (§4.1) after algorithm, issuer and validity. As it is encoded, which is how OpenSSL
    finds a list. b"" when it is not there."""
    try:
        at = _value(der, _value(der, 0)[0])[0]  # inside of the signed part of the whole
        sequences = 0
        while True:
            end = _value(der, at)[1]
            if der[at] == 0x30:
                if sequences == skipped:
                    return der[at:end]
                sequences += 1
            at = end
    except IndexError:
        return b""


def _value(der: bytes, at: int) -> tuple[int, int]:
    """Where the value of the element at a place begins and ends."""
    length, start = der[at + 1], at + 2
    if length >= 0x80:
        start += length - 0x80
        length = int.from_bytes(der[at + 2 : start], "big")
    return start, start + length


def dns_names(certificate: str, key: str | None, password: str | None) -> tuple[str, ...]:
    """The host names in a certificate, lower-case, wildcards too. Raises PemError."""
    content = _content(certificate, key, password)
    names = [name for kind, name in content.get("subjectAltName", ()) if kind == "DNS"]
    if not names:
        names = [value for part in content.get("subject", ()) for kind, value in part if kind == "commonName"]
    return tuple(dict.fromkeys(name.lower() for name in names))


def not_after(certificate: str, key: str | None, password: str | None) -> int:
    """The last second of a certificate's life, in seconds since 1970. Raises PemError."""
    return ssl.cert_time_to_seconds(_content(certificate, key, password)["notAfter"])


def _content(certificate: str, key: str | None, password: str | None) -> dict[str, Any]:
    """What stands in a certificate.

    The ssl module reads a certificate only when a peer shows it. So two of our own shake hands, in memory, which also
    proves that a server can use the pair.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load_cert_chain(server, certificate, key, password)
    leaf = _CERTIFICATE.findall(_read("certificate", certificate))[0]
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    try:
        client.load_verify_locations(cadata=_certificates(leaf))
        return _shown(server, client)
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", None) or error.reason
        raise PemError("certificate", f"{certificate} is no certificate for a server: {why}") from None


def _shown(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any]:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server)
    steps: list[Callable[[], object]] = [theirs.do_handshake, ours.do_handshake]
    for step in steps * 4:  # more than any version of the protocol takes
        try:
            step()
        except ssl.SSLWantReadError:
            continue
    return theirs.getpeercert() or {}


def _read(option: str, file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        raise PemError(option, f"{file}: no such file") from None
    except IsADirectoryError:
        raise PemError(option, f"{file} is a directory, not a file") from None
    except PermissionError:
        raise PemError(option, f"{file} cannot be read: no permission") from None
    except (OSError, ValueError) as error:
        raise PemError(option, f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _certificates(text: bytes) -> str:
    # Without what stands around them: tools write comments there, in whatever encoding.
    return "\n".join(block.decode("ascii", "replace") for block in _CERTIFICATE.findall(text))


def _is_sound(chain: bytes) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=_certificates(chain))
    except (ssl.SSLError, ValueError):
        return False
    return True
