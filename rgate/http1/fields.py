"""Header field lines, each parsed once.

Most header lines that a gateway sees are byte for byte lines that it has seen before. A line that repeats is not parsed and
checked again; its Field is cached: the common case is one dict look-up (0.05 µs instead of some 2 µs a line). The cache is
bounded. Lines that may contain credentials, and long ones, never enter it.

Rules of this file: a field line is `token ":" OWS value OWS` and nothing else (RFC 9112 §5): no space before the
colon, no folding, no empty name, no CR, LF, NUL or other control byte inside (RFC 9110 §5.5). obs-text is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from .cache import RepeatCache
from .grammar import TCHAR, environ_key, valid_host

__all__ = [
    "CONNECTION",
    "CONNECTION_PROTECTED",
    "CONTENT_LENGTH",
    "COOKIE",
    "EXPECT",
    "FORWARDED",
    "FORWARDING_KEYS",
    "HOP_BY_HOP",
    "HOST",
    "ORDINARY",
    "PROXY_ONLY",
    "TE",
    "TRAILER",
    "TRANSFER_ENCODING",
    "UNDERSCORE",
    "UPGRADE",
    "VIA",
    "Field",
    "FieldParser",
    "Fields",
    "connection_nominated",
    "encode_field",
    "has_credentials",
    "is_secret",
]

# The spaces before the value are possessive ("*+"): given back one by one, a long run of them would take quadratic time.
_LINE = re.compile(
    rb"(" + TCHAR + rb"+):[ \t]*+((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*"
)

_LENGTH = re.compile(r"[0-9]{1,18}")  # 1*DIGIT, and within 63 bit (RFC 9110 §8.6)

# The kinds of fields that the gateway treats differently. ORDINARY is falsy so that the common case is one truth test.
ORDINARY: Final = 0
HOST: Final = 1
CONTENT_LENGTH: Final = 2
TRANSFER_ENCODING: Final = 3
CONNECTION: Final = 4
EXPECT: Final = 5
UPGRADE: Final = 6
HOP_BY_HOP: Final = 7  # never forwarded (RFC 9110 §7.6.1)
FORWARDED: Final = 8  # about the proxies before this one: written again by the forwarder
PROXY_ONLY: Final = 9  # the same, but forwarded unchanged from a trusted proxy and dropped from any other peer
VIA: Final = 10
COOKIE: Final = 11  # several are joined by "; ", never by "," (RFC 6265 §5.4)
UNDERSCORE: Final = 12  # X_Auth and X-Auth have the same environ key, so a name with "_" is dropped
TE: Final = 13
TRAILER: Final = 14

_KINDS: Final = {
    "host": HOST,
    "content-length": CONTENT_LENGTH,
    "transfer-encoding": TRANSFER_ENCODING,
    "connection": CONNECTION,
    "expect": EXPECT,
    "upgrade": UPGRADE,
    "keep-alive": HOP_BY_HOP,
    "proxy-connection": HOP_BY_HOP,
    "te": TE,
    "trailer": TRAILER,
    "http2-settings": HOP_BY_HOP,
    "proxy": HOP_BY_HOP,  # not a registered header, and CGI turns it into HTTP_PROXY (CVE-2016-5385)
    "forwarded": FORWARDED,
    "x-forwarded-for": FORWARDED,
    "x-forwarded-proto": FORWARDED,
    "x-forwarded-host": FORWARDED,
    "x-forwarded-port": FORWARDED,
    "x-forwarded-prefix": FORWARDED,
    "via": VIA,
    "cookie": COOKIE,
}
# X-Forwarded-User, -Email, -Client-Cert, …: what a proxy says of the client must not come from the client itself.
_PROXY_ONLY_PREFIX = "x-forwarded-"
# Other names for the client's address and for the URL of the original request. Given the latter, a backend may serve another
# path than the one that was routed.
_PROXY_ONLY_NAMES: Final = frozenset(
    {"x-forwarded", "x-original-forwarded-for", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "client-ip", "true-client-ip"}
    | {"cf-connecting-ip", "cf-connecting-ipv6", "fastly-client-ip", "x-azure-clientip", "x-envoy-external-address"}
    | {"x-remote-ip", "x-remote-addr", "x-originating-ip", "x-proxyuser-ip"}
    | {"x-original-url", "x-original-uri", "x-rewrite-url", "x-original-host", "x-script-name"}
    | {"x-scheme", "x-url-scheme", "front-end-https"}
)
FORWARDING_KEYS: Final = frozenset(map(environ_key, (*_PROXY_ONLY_NAMES, "forwarded", "via", "cdn-loop")))
"""The environ keys of headers that show that a proxy has sent the request; so does every key that begins with
HTTP_X_FORWARDED_."""
# Connection cannot remove these (CVE-2024-45410 and similar): the client must not decide about them.
CONNECTION_PROTECTED: Final = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "cookie", "authorization", "close", "keep-alive"}
    | {"forwarded", "via"}
    | _PROXY_ONLY_NAMES
)
# Words in the name of a field that carries credentials: X-Auth-Token, Ocp-Apim-Subscription-Key, Set-Cookie, ….
_SECRET_WORDS: Final = tuple(
    "token key secret auth session jwt passw signature credential assertion cookie".split()  # noqa: SIM905 - it is a list of words
)
_LONGEST_NAME: Final = 64  # a longer name is not searched for these words, and its line is never cached
_NEVER_REPEATS: Final = frozenset({"sec-websocket-accept"})
# The same for the name of a URL parameter, in a request line, a Location or a Referer.
_PARAMETER = re.compile(rb"[?&;#]([^=&;#\s]+)=")
_SECRET_PARAMETER = re.compile(
    rb"token|key|secret|auth|session|jwt|passw|signature|credential|assertion|^(?:code|otp|pass|pin|pwd|sid|sig)$", re.IGNORECASE
)


class _FieldName(NamedTuple):
    """The properties of a field that depend on its name alone."""

    name: str
    key: str
    kind: int
    uncacheable: bool


class Field:
    """One parsed header field.

    pair         (name as sent, value)
    name         lower-case
    key          its WSGI environ key
    line         the bytes that forward it, with CRLF
    kind         one of the constants above
    number       the value of a valid Content-Length, else None
    valid        for Host: whether the value is valid (RFC 9110 §7.2)
    uncacheable  the name says that the value is a credential, or that it never repeats
    tokens       the lower-case members of Connection and TE, else empty
    """

    # Defaults are class attributes: few fields have any of these.
    number: int | None = None
    valid = False
    tokens: frozenset[str] = frozenset()

    def __init__(self, name: str, value: str) -> None:
        self.pair = (name, value)
        self.value = value
        self.name, self.key, self.kind, self.uncacheable = _names.get(name) or _parse_name(name)
        self.line = f"{name}: {value}\r\n".encode("latin-1")
        if self.kind == HOST:
            self.valid = valid_host(value)
        elif self.kind == CONTENT_LENGTH:
            self.number = int(value) if _LENGTH.fullmatch(value) else None
        elif self.kind == CONNECTION or self.kind == TE:
            self.tokens = frozenset(token.strip(" \t").lower() for token in value.split(","))

    @property
    def size_bytes(self) -> int:
        """Its approximate memory: with its line, and with the line once more as the key of a dict."""
        return 450 + 3 * len(self.line) + 130 * len(self.tokens)


_names: RepeatCache[str, _FieldName] = RepeatCache("header names", 524_288)


def _parse_name(name: str) -> _FieldName:
    lower = name.lower()
    kind = UNDERSCORE if "_" in name else _KINDS.get(lower, ORDINARY)
    if not kind and (lower.startswith(_PROXY_ONLY_PREFIX) or lower in _PROXY_ONLY_NAMES):
        kind = PROXY_ONLY
    uncacheable = (
        len(lower) > _LONGEST_NAME
        or (not lower.startswith("access-control-") and any([word in lower for word in _SECRET_WORDS]))
        or lower in _NEVER_REPEATS
    )
    parsed = _FieldName(lower, environ_key(name), kind, uncacheable)
    if _names.admits(name):
        _names.add(name, parsed, 200 + 3 * len(name))
    return parsed


def is_secret(name: str) -> bool:
    """Whether a field of this name may carry credentials. Also true for names over 64 characters, and for values that never
    repeat."""
    return (_names.get(name) or _parse_name(name)).uncacheable


def has_credentials(text: bytes) -> bool:
    """Whether a URL in `text` has a parameter whose name says that it is a credential."""
    return any(map(_SECRET_PARAMETER.search, _PARAMETER.findall(text)))


class Fields(list[Field]):
    """The header fields of one request that are forwarded, in order.

    proxy_fields  the other fields that say who the client is and through which proxies the request came, whether they are true
                  or not (kinds FORWARDED and PROXY_ONLY)
    """

    __slots__ = ("_lines", "proxy_fields")

    def __init__(self, fields: Iterable[Field] = (), proxy_fields: Iterable[Field] = ()) -> None:
        super().__init__(fields)
        self.proxy_fields = list(proxy_fields)

    def without(self, key: str) -> Fields:
        """A copy without the fields of this WSGI environ key."""
        return Fields((field for field in self if field.key != key), self.proxy_fields)

    @property
    def lines(self) -> bytes:
        """All lines as they go to the backend; joined once."""
        try:
            return self._lines
        except AttributeError:
            self._lines: bytes = b"".join([field.line for field in self])
            return self._lines


class FieldParser:
    """Parses field lines and caches the fields that repeat; `name` is the name of the cache. Thread-safe."""

    MAX_BYTES: Final = 2_097_152
    MAX_LINE_BYTES: Final = 512

    def __init__(self, name: str = "header lines") -> None:
        self.cache: RepeatCache[bytes, Field] = RepeatCache(name, self.MAX_BYTES)

    def parse(self, line: bytes) -> Field:
        """The field in `line` (without its CRLF). Raises ValueError. Callers look into `cache` first."""
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError("malformed header line")
        name, value = match.groups()
        field = Field(name.decode("latin-1"), value.decode("latin-1"))
        if len(line) <= self.MAX_LINE_BYTES and not field.uncacheable and self.cache.admits(line) and not has_credentials(line):
            self.cache.add(line, field, field.size_bytes)
        return field


def connection_nominated(nominated: Iterable[str]) -> set[str]:
    """The fields that a Connection header removes, of those that it names (lower-case tokens)."""
    return {name for name in nominated if name not in CONNECTION_PROTECTED and not name.startswith(_PROXY_ONLY_PREFIX)}


def encode_field(name: str, value: str) -> bytes:
    """A header line, with CRLF. Raises ValueError for a name or value that a header cannot have."""
    line = f"{name}: {value}".encode("latin-1")
    if _LINE.fullmatch(line) is None or ":" in name:
        raise ValueError(f"not a header: {name!r}: {value!r}")
    return line + b"\r\n"
