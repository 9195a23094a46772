"""The client's certificate in the environ (as mod_ssl names its parts) and in a header for the backend.

The header is Envoy's X-Forwarded-Client-Cert, which service meshes, Spring and others read:

    X-Forwarded-Client-Cert: Hash=5f1c…;Subject="CN=alice,O=Example";DNS=alice.example;URI=spiffe://example/alice

A certificate may contain any text that its authority has accepted. So every character that would end a value or a line, or is
not visible ASCII, is escaped: in the subject as in RFC 4514 §2.4 (\\2C), elsewhere as in a URI (%3B).
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Final

__all__ = ["HEADER", "forwarded_client_cert", "ssl_environ"]

HEADER: Final = "X-Forwarded-Client-Cert"
MAX_HEADER_BYTES: Final = 8_192  # names that do not fit are left out, from the last

_SHORT: Final = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "emailAddress": "emailAddress",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "serialNumber": "serialNumber",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}
_KINDS: Final = {"DNS": "DNS", "URI": "URI", "email": "Email", "IP Address": "IP"}
_NOT_IN_SUBJECT: Final = re.compile(r"[^ !#-*\-.-:?-\[\]-~]|^[ #]| $")
_NOT_IN_NAME: Final = re.compile(r"[^!#-\[\]-~]")
_NEEDS_QUOTES: Final = re.compile(r"[,;=]")


def ssl_environ(tls: ssl.SSLObject) -> dict[str, Any]:
    """The keys of mod_ssl for a connection: protocol and cipher, and the client's verified certificate, if it has sent one."""
    cipher = tls.cipher()
    environ = {"SSL_PROTOCOL": tls.version() or "", "SSL_CIPHER": cipher[0] if cipher else "", "SSL_CLIENT_VERIFY": "NONE"}
    certificate, der = _certificate(tls)
    if not certificate:
        return environ
    subject = certificate.get("subject", ())
    environ["SSL_CLIENT_VERIFY"] = "SUCCESS"
    environ["SSL_CLIENT_S_DN"] = distinguished_name(subject)
    environ["SSL_CLIENT_I_DN"] = distinguished_name(certificate.get("issuer", ()))
    environ["SSL_CLIENT_M_SERIAL"] = certificate.get("serialNumber", "")
    environ["SSL_CLIENT_V_START"] = certificate.get("notBefore", "")
    environ["SSL_CLIENT_V_END"] = certificate.get("notAfter", "")
    environ["SSL_CLIENT_CERT"] = ssl.DER_cert_to_PEM_cert(der)
    common_names = [value for part in subject for kind, value in part if kind == "commonName"]
    if common_names:
        environ["SSL_CLIENT_S_DN_CN"] = common_names[0]
    for kind in ("DNS", "URI", "email"):
        for number, name in enumerate(_names(certificate, kind)):
            environ[f"SSL_CLIENT_SAN_{kind.capitalize() if kind == 'email' else kind}_{number}"] = name
    return environ


def forwarded_client_cert(tls: ssl.SSLObject) -> str | None:
    """The value of HEADER for the client of this connection; None when it has not sent a certificate."""
    certificate, der = _certificate(tls)
    if not certificate:
        return None
    value = f'Hash={sha256(der).hexdigest()};Subject="{distinguished_name(certificate.get("subject", ()))}"'
    for kind, shown in _KINDS.items():
        for name in _names(certificate, kind):
            safe = _NOT_IN_NAME.sub(_percent, name)
            part = f';{shown}="{safe}"' if _NEEDS_QUOTES.search(safe) else f";{shown}={safe}"
            if len(value) + len(part) <= MAX_HEADER_BYTES:
                value += part
    return value


def distinguished_name(parts: Iterable[Iterable[tuple[str, str]]]) -> str:
    """A name in the form of RFC 4514: the last part in the certificate comes first."""
    joined = ["+".join(f"{_SHORT.get(kind, kind)}={_escaped(value)}" for kind, value in part) for part in parts]
    return ",".join(reversed(joined))


def _escaped(value: str) -> str:
    return _NOT_IN_SUBJECT.sub(lambda match: "".join(f"\\{byte:02X}" for byte in match[0].encode()), value)


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


def _certificate(tls: ssl.SSLObject) -> tuple[dict[str, Any], bytes]:
    """The client's certificate, decoded and as DER. Empty when it has not been verified."""
    return tls.getpeercert() or {}, tls.getpeercert(binary_form=True) or b""


def _names(certificate: dict[str, Any], kind: str) -> list[str]:
    return [name for found, name in certificate.get("subjectAltName", ()) if found == kind]
