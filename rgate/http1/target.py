"""The request target: one view of it for routing, the bytes for the backend, and how else a backend may read them.

RFC 3986, RFC 9112 §3.2. What has no valid reading at all is refused: a path that a backend might resolve to another one,
an escape that is none, a control byte. Two things are made good, as clients rely
on it: UTF-8 is percent-encoded (RFC 3987 §3.1), and `.` segments are removed (RFC 3986 §6.2.2.3). Everything else is passed on
byte for byte.

Some of what is passed on is read in more than one way: `%2F` is a letter to one server and a slash to another. Routing
decides on `Target.route`, and asks `Target.readings()` for the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from posixpath import normpath
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

__all__ = ["Target", "parse_target", "target_from_environ_path", "without_dot_segments"]

# Visible ASCII without "#" (a fragment never travels) and, in the path, without "\" (some servers read it as "/").
_ORIGIN = re.compile(r"(/[!-\"$->@-\[\]-~]*)(?:\?([!-\"$-~]*))?")
_ABSOLUTE = re.compile(r"(?i:https?)://([^/?#@\\]+)([/?].*)?", re.DOTALL)
_ABOVE_ASCII = re.compile(r"[\x80-\xff]")
# NUL also in the two bytes that Java has for it.
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00|%[cC]0%80")


def _overlong(character: str) -> str:
    """An ASCII character in UTF-8 of more bytes than it needs, escaped: no UTF-8 (RFC 3629 §3), but decoders have read it."""
    high, low = 0xC0 | ord(character) >> 6, 0x80 | ord(character) & 0x3F
    middle = 0x80 | ord(character) >> 6
    return f"%{high:x}%{low:x}|%e0%{middle:x}%{low:x}|%f0%80%{middle:x}%{low:x}"


_OVERLONG_SLASH: Final = f"{_overlong('/')}|{_overlong(chr(92))}"
# A dot segment in any spelling: between "/", "%2F", "\" or "%5C", with or without ";parameters", or before a "?" or "#"
# that shows only when a backend decodes first and cuts then. The overlong spellings count as what they stand for, and
# are no more refused elsewhere than that is: the same bytes are common letters in EUC-JP, GBK and EUC-KR.
_DOT = rf"(?:\.|%2e|{_overlong('.')})"
_SLASH = rf"(?:/|%2f|%5c|{_OVERLONG_SLASH})"
_DOT_SEGMENT = re.compile(rf"{_SLASH}{_DOT}{{1,2}}(?:$|;|%3b|%3f|%23|{_SLASH})", re.IGNORECASE)
_HERE = re.compile(r"/(?:\.|%2[Ee])(?=/|$)")  # the segment that says "this directory", in its two plain spellings
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_NOT_CANONICAL = re.compile(r"%(?:2[DdEe]|3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa]|5[Ff]|7[Ee]|[0-9A-Fa-f][a-f]|[a-f][0-9A-F])")
_SLASHES = re.compile(r"//+")
_UNRESERVED: Final = frozenset("-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def _spellings(decoded: Iterator[int]) -> dict[str, str]:
    """What becomes of every escape, in capitals or not: a character for those of `decoded`, capitals for the others."""
    characters = set(decoded)
    return {
        f"%{one}{other}": chr(code) if (code := int(one + other, 16)) in characters else f"%{code:02X}"
        for one in "0123456789ABCDEFabcdef"
        for other in "0123456789ABCDEFabcdef"
    }


_CANONICAL: Final = _spellings(map(ord, _UNRESERVED))
_VISIBLE: Final = _spellings(iter(range(0x21, 0x7F)))

# How a backend may read a path in another way than routing does; Target.readings() says who does so.
_AMBIGUOUS = re.compile(rf";|//|%(?:2[1-9A-C]|2F|3[A-F]|40|5[B-E]|60|7[B-D])|{_OVERLONG_SLASH}", re.IGNORECASE)
_OVERLONG = re.compile(rf"({_overlong('/')})|{_overlong(chr(92))}", re.IGNORECASE)
_PARAMETERS = re.compile(r";[^/]*")
_QUERY = re.compile(r"[?#]")
_AUTHORITY = re.compile(r"//+[^/]*")
_RUNS = re.compile(r"///+")
_TWICE_DOT = re.compile(r"%252[Ee]")
_WINDOW: Final = 256  # more than what is cut out of the front of a path takes there
_MAX_SPELLINGS: Final = 8  # the plain path without parameters, decoded, and twice, and with "\\" for "/"


class Target(NamedTuple):
    """A request target.

    raw        path and query: what the backend gets
    route      the path that routing decides on: unreserved escapes decoded, the others in capitals, and runs of "/" taken
               as one (RFC 3986 §6.2.2)
    path       the path decoded, as WSGI's PATH_INFO has it (latin-1)
    query      what stands after the "?"
    host       the authority of an absolute-form target, else ""
    ambiguous  a backend may read the path in another way; see readings()
    plain      the client has spelled the path as `route` has it
    """

    raw: str
    route: str
    path: str
    query: str
    host: str = ""
    ambiguous: bool = False
    plain: bool = True

    def readings(self, longest: int, prefix: str = "") -> set[str] | None:
        """How backends may read the path, in the form of `route` and each in one way, `route` itself maybe among them.

        Only as much of it as decides between routes: `longest` is the length of the longest path_prefix, and a path that is
        much longer is not read to its end. None when there is no telling: a reading leaves next to nothing of its beginning,
        or there are signs of so many kinds as only an attack has. `prefix` is a path_prefix that has ambiguous signs itself:
        that part is read as it is written. Who reads so:

        - `%2F` and all other escapes decoded: WSGI and ASGI servers, PHP, nginx, IIS, Go;
        - then `\\` (`%5C`) taken for a slash: IIS, and whatever opens files on Windows;
        - decoded twice: proxies and applications that decode what a server in front has decoded;
        - `;parameters` cut from each segment, before decoding or after it: Tomcat, Jetty, Spring;
        - everything behind the first `;` cut: Apache Shiro;
        - what follows a decoded `?` or `#` cut: rewriting proxies (CVE-2024-38474, Apache);
        - overlong UTF-8 of a slash decoded: old Java, IIS and PHP;
        - runs of `/` kept: most that do not merge them;
        - `//name` taken for a host, so the path begins behind it: `new URL(request.url, base)` in JavaScript, parse_url() in
          PHP, urlsplit() in Python.

        Not among them, because a path without any of these signs has them too, or because nobody is known to do it: letters
        without regard to case, dots and spaces dropped from the end of a segment (both Windows), three decodings.
        """
        path = self.route[len(prefix) :] if prefix else self.raw.partition("?")[0]
        if "///" in path:
            path = _RUNS.sub("//", path)  # what is behind them must not be pushed out of sight
        window = _WINDOW + 5 * longest  # decoding twice makes one character of five
        partial = len(path) > window
        if partial and "%25" in path and _TWICE_DOT.search(_canonical(path)):
            return None  # it leads back from somewhere
        texts = {_canonical(path[:window]), _canonical(_PARAMETERS.sub("", path)[:window])}
        if "%" in path:
            texts |= {_OVERLONG.sub(_slash, text) for text in texts}
            once = {_ESCAPE.sub(_decoded, text) for text in texts}
            texts |= once | {_ESCAPE.sub(_decoded, text) for text in once if "%" in text}
            texts |= {text.replace("\\", "/") for text in texts}
            if len(texts) > _MAX_SPELLINGS:
                return None
        found: set[str] = set()
        for text in texts | {_PARAMETERS.sub("", text) for text in texts}:
            for read in _in_slashes(prefix + text):
                if partial and len(read) <= longest:
                    return None
                found.add(read)
            before_query = _QUERY.split(text, maxsplit=1)[0]
            for cut in {before_query, before_query.partition(";")[0]}:
                if len(cut) < len(text):
                    found |= _in_slashes(prefix + cut)
        return found

    def merged(self) -> Target:
        """The same target with every run of "/" in its path taken as one, for backends too."""
        path, mark, query = self.raw.partition("?")
        return parse_target("GET", _SLASHES.sub("/", path) + mark + query)._replace(host=self.host)


def parse_target(method: str, text: str) -> Target:
    """The target of a request line, its bytes as Latin-1. Raises ValueError when it has no valid reading."""
    if not text.isascii():
        _check_utf8(text)
        text = _ABOVE_ASCII.sub(_encoded, text)
    host = ""
    if not text.startswith("/"):
        if text == "*" and method == "OPTIONS":
            return Target("*", "*", "*", "")
        absolute = _ABSOLUTE.fullmatch(text)
        if absolute is None:
            raise ValueError("malformed request target")
        host, text = absolute[1], absolute[2] or "/"
        if text.startswith("?"):
            text = "/" + text
    origin = _ORIGIN.fullmatch(text)
    if origin is None:
        raise ValueError("malformed request target")
    path, query = origin.groups()
    sent = route = decoded = path
    ambiguous = ";" in path or "//" in path
    if "%" in path or "/." in path:
        if _HERE.search(path):
            route = decoded = path = without_dot_segments(path)
            text = path if query is None else f"{path}?{query}"
        if "%" in path:
            if _BAD_ESCAPE.search(path):
                raise ValueError("malformed escape in the path")
            route = _canonical(path)
            decoded = unquote_to_bytes(path).decode("latin-1")
            ambiguous = ambiguous or _AMBIGUOUS.search(path) is not None
        if _DOT_SEGMENT.search(path):
            raise ValueError("dot segment in the path")
    if "//" in route:
        route = _SLASHES.sub("/", route)
    return Target(text, route, decoded, query or "", host, ambiguous, route == sent)


def without_dot_segments(path: str) -> str:
    """A path without its `.` segments: `/./a/.` becomes `/a/` (RFC 3986 §5.2.4). `..` is left, for others to refuse."""
    return _HERE.sub(lambda here: "" if here.end() < len(path) else "/", path)


def target_from_environ_path(path: str, query: str) -> str:
    """A raw target from WSGI's decoded path, for servers that do not keep the one that was sent."""
    safe = frozenset(b"/!$&'()*+,-.0123456789:;=@ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~")
    raw = "".join(chr(b) if b in safe else f"%{b:02X}" for b in path.encode("latin-1"))
    return f"{raw or '/'}?{query}" if query else raw or "/"


def _check_utf8(text: str) -> None:
    """Bytes above ASCII are UTF-8, as clients send them today. In any other coding it would be a guess what they mean."""
    try:
        text.encode("latin-1").decode()
    except UnicodeError:
        raise ValueError("bytes in the request target that are not UTF-8") from None


def _canonical(path: str) -> str:
    """Unreserved escapes decoded, the others in capitals (RFC 3986 §6.2.2.1, §6.2.2.2)."""
    return _NOT_CANONICAL.sub(_capitals, path)


def _capitals(escape: re.Match[str]) -> str:
    return _CANONICAL[escape[0]]


def _decoded(escape: re.Match[str]) -> str:
    return _VISIBLE[escape[0]]


def _encoded(byte: re.Match[str]) -> str:
    return f"%{ord(byte[0]):02X}"


def _slash(overlong: re.Match[str]) -> str:
    return "/" if overlong[1] else "\\"


def _in_slashes(path: str) -> set[str]:
    """A path with its slashes as they are, merged, and behind an authority. With dot segments resolved: only what is decoded
    twice can have them."""
    read = {path}
    if "//" in path:
        read |= {_SLASHES.sub("/", path), _SLASHES.sub("/", _AUTHORITY.sub("", path, count=1))}
    return {normpath(_SLASHES.sub("/", one)) if "/." in one else one for one in read}
