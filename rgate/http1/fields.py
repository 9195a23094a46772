"""Header field lines, each read once.

Most header lines that a gateway sees are byte for byte lines that it has seen before. So a line that comes again is read and
judged by the strict grammar no more, and what it means is remembered: the common case is one dict look-up (0.05 µs instead of
some 2 µs a line). The memory is bounded, and lines that look as if they had credentials, or are long, never enter it.

Rules of this file: a field line is `token ":" OWS value OWS` and nothing else (RFC 9112 §5): no space before the
colon, no folding, no empty name, no CR, LF, NUL or other control byte inside (RFC 9110 §5.5). obs-text is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv6Address
from typing import Final, NamedTuple

from .cache import RepeatCache

__all__ = [
    "CLAIM",
    "CONNECTION",
    "CONTENT_LENGTH",
    "COOKIE",
    "EXPECT",
    "FORWARDED",
    "FORWARDING_KEYS",
    "HOP_BY_HOP",
    "HOST",
    "NEVER_NOMINATED",
    "ORDINARY",
    "TE",
    "TRAILER",
    "TRANSFER_ENCODING",
    "UNDERSCORE",
    "UPGRADE",
    "VIA",
    "Field",
    "FieldParser",
    "Fields",
    "forward_line",
    "has_credentials",
    "is_secret",
    "removable",
    "valid_host",
]

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# The spaces before the value are possessive ("*+"): given back one by one, a long run of them would take quadratic time.
_LINE = re.compile(
    rb"(" + _TOKEN + rb"):[ \t]*+((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*"
)

# Without the comma, although a reg-name may have one: where several Hosts are joined, it is one Host too many.
# A name of DNS has 253 bytes and maybe a dot behind it (RFC 1035 §2.3.4).
_HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+;=-]{1,255}|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{1,5}))?")
_LENGTH = re.compile(r"[0-9]{1,18}")  # 1*DIGIT, and within 63 bit (RFC 9110 §8.6)

# What a field means to the gateway. ORDINARY is false so that the common case is one truth test.
ORDINARY: Final = 0
HOST: Final = 1
CONTENT_LENGTH: Final = 2
TRANSFER_ENCODING: Final = 3
CONNECTION: Final = 4
EXPECT: Final = 5
UPGRADE: Final = 6
HOP_BY_HOP: Final = 7  # never passed on (RFC 9110 §7.6.1)
FORWARDED: Final = 8  # says which way the request came: written anew by the forwarder
CLAIM: Final = 9  # the same, but passed on as it is from a trusted proxy, and from nobody else
VIA: Final = 10
COOKIE: Final = 11  # several are joined by "; ", never by "," (RFC 6265 §5.4)
UNDERSCORE: Final = 12  # X_Auth and X-Auth are one environ key, so a name with "_" is dropped
TE: Final = 13
TRAILER: Final = 14

_MEANING: Final = {
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
    "proxy": HOP_BY_HOP,  # no such header is registered, and CGI makes HTTP_PROXY of it (CVE-2016-5385)
    "forwarded": FORWARDED,
    "x-forwarded-for": FORWARDED,
    "x-forwarded-proto": FORWARDED,
    "x-forwarded-host": FORWARDED,
    "x-forwarded-port": FORWARDED,
    "x-forwarded-prefix": FORWARDED,
    "via": VIA,
    "cookie": COOKIE,
}
# X-Forwarded-User, -Email, -Client-Cert, …: whatever a proxy in front says of the client, a client must not say itself.
_CLAIMS = "x-forwarded-"
# Under other names too: the client's address, and the URL that it is said to have asked for. The latter lets a backend serve
# another path than the one that was routed.
_OTHER_CLAIMS: Final = frozenset(
    {"x-forwarded", "x-original-forwarded-for", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "client-ip", "true-client-ip"}
    | {"cf-connecting-ip", "cf-connecting-ipv6", "fastly-client-ip", "x-azure-clientip", "x-envoy-external-address"}
    | {"x-remote-ip", "x-remote-addr", "x-originating-ip", "x-proxyuser-ip"}
    | {"x-original-url", "x-original-uri", "x-rewrite-url", "x-original-host", "x-script-name"}
    | {"x-scheme", "x-url-scheme", "front-end-https"}
)
FORWARDING_KEYS: Final = frozenset(
    "HTTP_" + name.upper().replace("-", "_") for name in (*_OTHER_CLAIMS, "forwarded", "via", "cdn-loop")
)
"""The environ keys of headers that a request has because a proxy has sent it; so has every one that begins with
HTTP_X_FORWARDED_."""
# Connection cannot take these away (CVE-2024-45410 and its kin): they are not the client's to remove.
NEVER_NOMINATED: Final = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "cookie", "authorization", "close", "keep-alive"}
    | {"forwarded", "via"}
    | _OTHER_CLAIMS
)
# A field whose name says so has credentials, whoever has made it up: X-Auth-Token, Ocp-Apim-Subscription-Key, Set-Cookie, ….
_SECRET_WORDS: Final = tuple(
    "token key secret auth session jwt passw signature credential assertion cookie".split()  # noqa: SIM905 - it is a list of words
)
_LONGEST_NAME: Final = 64  # of those that are looked at; a longer one is not remembered in any case
_NEVER_AGAIN: Final = frozenset({"sec-websocket-accept"})  # another one each time
# And so has a parameter of a URL: in a request line, a Location, a Referer.
_PARAMETER = re.compile(rb"[?&;#]([^=&;#\s]+)=")
_SECRET_PARAMETER = re.compile(
    rb"token|key|secret|auth|session|jwt|passw|signature|credential|assertion|^(?:code|otp|pass|pin|pwd|sid|sig)$", re.IGNORECASE
)


class _Name(NamedTuple):
    """What a field's name says."""

    name: str
    key: str
    meaning: int
    secret: bool


class Field:
    """One header field, read.

    pair     (name as sent, value)
    name     lower-case
    key      its WSGI environ key
    line     the bytes that pass it on, with CRLF
    meaning  one of the constants above
    number   the value of a valid Content-Length, else None
    valid    for Host: whether it is one (RFC 9110 §7.2)
    secret   by its name it carries credentials, or what never comes again, so it is never remembered
    tokens   the lower-case members of Connection and TE, else empty
    """

    # Defaults stand on the class: few fields have any of them.
    number: int | None = None
    valid = False
    tokens: frozenset[str] = frozenset()

    def __init__(self, name: str, value: str) -> None:
        self.pair = (name, value)
        self.value = value
        self.name, self.key, self.meaning, self.secret = _names.get(name) or _read_name(name)
        self.line = f"{name}: {value}\r\n".encode("latin-1")
        if self.meaning == HOST:
            self.valid = valid_host(value)
        elif self.meaning == CONTENT_LENGTH:
            self.number = int(value) if _LENGTH.fullmatch(value) else None
        elif self.meaning == CONNECTION or self.meaning == TE:
            self.tokens = frozenset(token.strip(" \t").lower() for token in value.split(","))

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory, with its line, and the line once more as the key of a dict."""
        return 450 + 3 * len(self.line) + 130 * len(self.tokens)


_names: RepeatCache[str, _Name] = RepeatCache("header names", 524_288)


def _read_name(name: str) -> _Name:
    lower = name.lower()
    meaning = UNDERSCORE if "_" in name else _MEANING.get(lower, ORDINARY)
    if not meaning and (lower.startswith(_CLAIMS) or lower in _OTHER_CLAIMS):
        meaning = CLAIM
    upper = name.upper().replace("-", "_")
    key = upper if upper in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + upper
    secret = (
        len(lower) > _LONGEST_NAME
        or (not lower.startswith("access-control-") and any([word in lower for word in _SECRET_WORDS]))
        or lower in _NEVER_AGAIN
    )
    read = _Name(lower, key, meaning, secret)
    if _names.comes_again(name):
        _names.keep(name, read, 200 + 3 * len(name))
    return read


def is_secret(name: str) -> bool:
    """Whether a field of this name carries credentials, or what never comes again."""
    return (_names.get(name) or _read_name(name)).secret


def has_credentials(text: bytes) -> bool:
    """Whether a URL in it has a parameter that by its name is a credential."""
    return any(map(_SECRET_PARAMETER.search, _PARAMETER.findall(text)))


class Fields(list[Field]):
    """The header fields of one request that may be passed on, in order.

    claims  those beside them that say who the client is and which way it came, whether they are true or not
    """

    __slots__ = ("_lines", "claims")

    def __init__(self, fields: Iterable[Field] = (), claims: Iterable[Field] = ()) -> None:
        super().__init__(fields)
        self.claims = list(claims)

    @property
    def lines(self) -> bytes:
        """All of them as they go to the backend; put together once."""
        try:
            return self._lines
        except AttributeError:
            self._lines: bytes = b"".join([field.line for field in self])
            return self._lines


class FieldParser:
    """Reads field lines and remembers most of them, under a `name`. Safe to share between threads: dict look-ups are atomic."""

    MAX_BYTES: Final = 2_097_152
    MAX_LINE_BYTES: Final = 512

    def __init__(self, name: str = "header lines") -> None:
        self.known: RepeatCache[bytes, Field] = RepeatCache(name, self.MAX_BYTES)

    def read(self, line: bytes) -> Field:
        """The field in `line` (without its CRLF). Raises ValueError. Callers look into `known` first."""
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError("malformed header line")
        name, value = match.groups()
        field = Field(name.decode("latin-1"), value.decode("latin-1"))
        if len(line) <= self.MAX_LINE_BYTES and not field.secret and self.known.comes_again(line) and not has_credentials(line):
            self.known.keep(line, field, field.size_bytes)
        return field


def removable(nominated: Iterable[str]) -> set[str]:
    """What Connection takes away, of all that it names (lower-case tokens)."""
    return {name for name in nominated if name not in NEVER_NOMINATED and not name.startswith(_CLAIMS)}


def valid_host(value: str) -> bool:
    """Whether this is a host with an optional port (RFC 9110 §7.2)."""
    match = _HOST.fullmatch(value)
    if match is None or (match[2] is not None and int(match[2]) > 65_535):
        return False
    try:
        return match[1] is None or bool(IPv6Address(match[1]))
    except ValueError:
        return False


def forward_line(name: str, value: str) -> bytes:
    """A header line that rgate writes itself. Raises ValueError for a name or value that no header may have."""
    line = f"{name}: {value}".encode("latin-1")
    if _LINE.fullmatch(line) is None or ":" in name:
        raise ValueError(f"not a header: {name!r}: {value!r}")
    return line + b"\r\n"
