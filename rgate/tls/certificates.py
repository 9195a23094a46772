"""Certificates, keys and revocation lists from PEM files, and error messages that say what is wrong with one."""

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
_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME; the ssl module does not export it


class PemError(RgateError):
    """A file cannot be used. `option` is the config key that names it: certificate, key, key_password, ca or crl."""

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"{option}: {problem}")
        self.option = option
        self.problem = problem


def load_cert_chain(context: ssl.SSLContext, certificate: str, key: str | None, password: str | None) -> None:
    """Load the certificate in a file, with the chain after it, into `context`. Its key is in the file `key` or in the same file.

    Raises PemError. Never prompts for a password on the terminal, as OpenSSL would.
    """
    chain, secret = _read("certificate", certificate), _read("key", key) if key is not None else None
    if not _CERTIFICATE.search(chain):
        raise PemError("certificate", f"{certificate} contains no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
    if b"PRIVATE KEY-----" not in (chain if secret is None else secret):
        if secret is None:
            raise PemError(
                "certificate", f"{certificate} contains no private key next to the certificate; name its file under 'key'"
            )
        raise PemError("key", f"{key} contains no private key in PEM form (-----BEGIN PRIVATE KEY-----)")
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
        # OpenSSL reports the last one for a certificate and a key of different types.
        if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
            raise PemError(option, f"the private key in {file} does not belong to the certificate in {certificate}") from None
        if asked and not password:
            raise PemError(option, f"the private key in {file} is encrypted; set its password under 'key_password'") from None
        if asked:
            raise PemError("key_password", f"does not decrypt the private key in {file}") from None
        if reason == "EE_KEY_TOO_SMALL":
            raise PemError("certificate", f"the key of {certificate} is too small to be safe; RSA needs 2,048 bits") from None
        if not _is_sound(chain):
            raise PemError("certificate", f"{certificate} is damaged: {reason or 'not a valid certificate'}") from None
        raise PemError(option, f"the private key in {file} cannot be used: {reason or 'damaged, or of another kind'}") from None
    except OSError as error:
        raise PemError("certificate", f"{certificate} cannot be read: {error.strerror or error}") from None


def load_ca(context: ssl.SSLContext, file: str) -> None:
    """Make `context` trust certificates issued by those in a file. Raises PemError."""
    text = _read("ca", file)
    if not _CERTIFICATE.search(text):
        raise PemError("ca", f"{file} contains no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
    try:
        context.load_verify_locations(cadata=_certificates(text))
    except (ssl.SSLError, ValueError) as error:
        raise PemError("ca", f"{file} is damaged: {getattr(error, 'reason', None) or 'not a valid certificate'}") from None


def load_crl(context: ssl.SSLContext, file: str) -> None:
    """Make `context` refuse certificates revoked by the lists in a file, and all those of an authority without a list there.

    Every certificate of a chain is checked up to the root, so a certificate whose intermediate has been revoked is refused, too.
    Each authority that issues checked certificates therefore needs a list: the root, for its intermediates, as well. Raises
    PemError.
    """
    if b"-----BEGIN X509 CRL-----" not in _read("crl", file):
        raise PemError("crl", f"{file} contains no revocation list in PEM form (-----BEGIN X509 CRL-----)")
    try:
        context.load_verify_locations(cafile=file)
    except (ssl.SSLError, ValueError) as error:
        raise PemError("crl", f"{file} is damaged: {getattr(error, 'reason', None) or 'not a revocation list'}") from None
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


def authorities_without_list(ca: str, crl: str) -> tuple[str, ...]:
    """The names of the authorities in `ca` that have no revocation list in `crl`. Raises PemError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load_ca(context, ca)
    lists = [_from_pem(block, b"X509 CRL") for block in _REVOCATION_LIST.findall(_read("crl", crl))]
    issuers = {_name_in(der, 1) for der in lists}
    found = zip(context.get_ca_certs(binary_form=True), context.get_ca_certs(), strict=True)
    return tuple(_subject(certificate) for der, certificate in found if _name_in(der, 3) not in issuers)


def _subject(certificate: dict[str, Any]) -> str:
    parts = [value for part in certificate.get("subject", ()) for _, value in part]
    return ", ".join(map(str, parts)) or "an authority without a name"


def _from_pem(block: bytes, kind: bytes) -> bytes:
    return base64.b64decode(block.removeprefix(b"-----BEGIN %b-----" % kind).removesuffix(b"-----END %b-----" % kind))


def _name_in(der: bytes, skipped: int) -> bytes:
    """The DER bytes of the SEQUENCE that follows `skipped` others in the signed part: the issuer of a list after the algorithm
    (RFC 5280 §5.1), the subject of a certificate after algorithm, issuer and validity (§4.1). OpenSSL finds lists by these bytes.
    b"" when it is missing."""
    try:
        at = _value(der, _value(der, 0)[0])[0]  # inside the signed part
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
    """Start and end of the value of the DER element at `at`."""
    length, start = der[at + 1], at + 2
    if length >= 0x80:
        start += length - 0x80
        length = int.from_bytes(der[at + 2 : start], "big")
    return start, start + length


def dns_names(certificate: str, key: str | None, password: str | None) -> tuple[str, ...]:
    """The host names in a certificate, lower-case, including wildcards. Raises PemError."""
    content = _decoded(certificate, key, password)
    names = [name for kind, name in content.get("subjectAltName", ()) if kind == "DNS"]
    if not names:
        names = [value for part in content.get("subject", ()) for kind, value in part if kind == "commonName"]
    return tuple(dict.fromkeys(name.lower() for name in names))


def not_after(certificate: str, key: str | None, password: str | None) -> int:
    """The time at which a certificate expires, in seconds since 1970. Raises PemError."""
    return ssl.cert_time_to_seconds(_decoded(certificate, key, password)["notAfter"])


def _decoded(certificate: str, key: str | None, password: str | None) -> dict[str, Any]:
    """The contents of a certificate, as SSLSocket.getpeercert() returns them.

    The ssl module decodes a certificate only when a peer sends it. So a client and a server do a handshake in memory, which also
    proves that a server can use the pair.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load_cert_chain(server, certificate, key, password)
    leaf = _CERTIFICATE.findall(_read("certificate", certificate))[0]
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    try:
        client.load_verify_locations(cadata=_certificates(leaf))
        return _peer_certificate(server, client)
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", None) or error.reason
        raise PemError("certificate", f"{certificate} cannot be used by a server: {why}") from None


def _peer_certificate(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any]:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server)
    steps: list[Callable[[], object]] = [theirs.do_handshake, ours.do_handshake]
    for step in steps * 4:  # more steps than any version of the protocol takes
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
    # Without the text around them: tools write comments there, in any encoding.
    return "\n".join(block.decode("ascii", "replace") for block in _CERTIFICATE.findall(text))


def _is_sound(chain: bytes) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=_certificates(chain))
    except (ssl.SSLError, ValueError):
        return False
    return True
