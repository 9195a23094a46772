"""The parts of the HTTP grammar that more than one module needs, and what RFC 9110 says of methods and status codes.

Patterns here have no possessive groups (`(...)*+`): Python 3.11.2, which is Debian 12's, matches nested ones wrongly. Possessive
single characters (`x*+`) are right.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Final

__all__ = [
    "BODILESS_STATUSES",
    "CONTENTLESS_STATUSES",
    "IDEMPOTENT_METHODS",
    "SAFE_METHODS",
    "TCHAR",
    "bracket_host",
    "environ_key",
    "is_token",
    "unbracket_host",
    "valid_host",
]

TCHAR: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
"""The pattern of one character of a token (RFC 9110 §5.6.2), for patterns over bytes."""

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110 §9.2.1), but for TRACE, which rgate does not forward."""
IDEMPOTENT_METHODS: Final = SAFE_METHODS | {"PUT", "DELETE"}
"""Methods whose effect is the same when the request is sent twice (RFC 9110 §9.2.2)."""

BODILESS_STATUSES: Final = frozenset({204, 304})
"""Final statuses whose response ends with its head, whatever the head announces (RFC 9112 §6.3)."""
CONTENTLESS_STATUSES: Final = BODILESS_STATUSES | {205}
"""Final statuses that must not have content. A 205 still has the framing of a body, of length 0 (RFC 9110 §15.3.6)."""

_TOKEN = re.compile(TCHAR.decode() + "+")
# The comma is left out although a reg-name may have one: in a Host it joins several values, of which only one is allowed.
# A DNS name has at most 253 bytes and a final dot (RFC 1035 §2.3.4).
_HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+;=-]{1,255}|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{1,5}))?")


def is_token(text: str) -> bool:
    """Whether `text` is a token (RFC 9110 §5.6.2), as a method, a header's name or a cookie's name must be."""
    return _TOKEN.fullmatch(text) is not None


def environ_key(name: str) -> str:
    """The key under which a WSGI environ has the header `name`: HTTP_X_NAME, but CONTENT_TYPE and CONTENT_LENGTH (PEP 3333)."""
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key


def valid_host(value: str) -> bool:
    """Whether this is a host with an optional port (RFC 9110 §7.2)."""
    match = _HOST.fullmatch(value)
    if match is None or (match[2] is not None and int(match[2]) > 65_535):
        return False
    try:
        return match[1] is None or bool(IPv6Address(match[1]))
    except ValueError:
        return False


def bracket_host(host: str) -> str:
    """`host` as it stands before a port: an IPv6 address in brackets (RFC 3986 §3.2.2), anything else unchanged."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def unbracket_host(host: str) -> str:
    """`host` without the brackets of an IPv6 address."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host
