"""The request target: one view of it for routing, the bytes for the backend, and the other ways in which a backend may read it.

RFC 3986, RFC 9112 §3.2. A target without a valid reading is refused: a path that a backend might resolve to another one, a
malformed escape, a control byte. Two things are repaired, as clients rely on it: UTF-8 is percent-encoded (RFC 3987 §3.1), and
`.` segments are removed (RFC 3986 §6.2.2.3). Everything else is forwarded byte for byte.

Some targets that are forwarded have more than one reading: `%2F` is a letter to one server and a slash to another. Routing
decides on `Target.normalized_path`, and gets the other readings from `Target.readings()`.
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
# NUL also in the two bytes that Java encodes it in.
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00|%[cC]0%80")


def _overlong(character: str) -> str:
    """An ASCII character in UTF-8 of more bytes than it needs, escaped: invalid (RFC 3629 §3), but decoders have accepted it."""
    high, low = 0xC0 | ord(character) >> 6, 0x80 | ord(character) & 0x3F
    middle = 0x80 | ord(character) >> 6
    return f"%{high:x}%{low:x}|%e0%{middle:x}%{low:x}|%f0%80%{middle:x}%{low:x}"


_OVERLONG_SLASH: Final = f"{_overlong('/')}|{_overlong(chr(92))}"
# A dot segment in any spelling: between "/", "%2F", "\" or "%5C", with or without ";parameters", or before a "?" or "#"
# that appears only when a backend decodes before it cuts. The overlong spellings are treated as the characters that they stand
# for, and are refused only where these are: the same bytes are common letters in EUC-JP, GBK and EUC-KR.
_DOT = rf"(?:\.|%2e|{_overlong('.')})"
_SLASH = rf"(?:/|%2f|%5c|{_OVERLONG_SLASH})"
_DOT_SEGMENT = re.compile(rf"{_SLASH}{_DOT}{{1,2}}(?:$|;|%3b|%3f|%23|{_SLASH})", re.IGNORECASE)
_HERE = re.compile(r"/(?:\.|%2[Ee])(?=/|$)")  # the segment "this directory", in its two plain spellings
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_NOT_CANONICAL = re.compile(r"%(?:2[DdEe]|3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa]|5[Ff]|7[Ee]|[0-9A-Fa-f][a-f]|[a-f][0-9A-F])")
_SLASHES = re.compile(r"//+")
_UNRESERVED: Final = frozenset("-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def _spellings(decoded: Iterator[int]) -> dict[str, str]:
    """The replacement of each escape, in capitals or not: its character for those of `decoded`, else the escape in capitals."""
    characters = set(decoded)
    return {
        f"%{one}{other}": chr(code) if (code := int(one + other, 16)) in characters else f"%{code:02X}"
        for one in "0123456789ABCDEFabcdef"
        for other in "0123456789ABCDEFabcdef"
    }


_CANONICAL: Final = _spellings(map(ord, _UNRESERVED))
_VISIBLE: Final = _spellings(iter(range(0x21, 0x7F)))

# Signs that a backend may read a path in another way than routing does; Target.readings() lists the servers.
_AMBIGUOUS = re.compile(rf";|//|%(?:2[1-9A-C]|2F|3[A-F]|40|5[B-E]|60|7[B-D])|{_OVERLONG_SLASH}", re.IGNORECASE)
_OVERLONG = re.compile(rf"({_overlong('/')})|{_overlong(chr(92))}", re.IGNORECASE)
_PARAMETERS = re.compile(r";[^/]*")
_QUERY = re.compile(r"[?#]")
_AUTHORITY = re.compile(r"//+[^/]*")
_RUNS = re.compile(r"///+")
_TWICE_DOT = re.compile(r"%252[Ee]")
_WINDOW: Final = 256  # more than a reading removes from the front of a path
_MAX_SPELLINGS: Final = 8  # the plain path without parameters, decoded, and twice, and with "\\" for "/"


class Target(NamedTuple):
    """A request target.

    raw              path and query: what the backend gets
    normalized_path  the path that routing decides on: unreserved escapes decoded, the others in capitals, and runs of "/" merged
                     (RFC 3986 §6.2.2)
    path             the path decoded, as WSGI's PATH_INFO has it (latin-1)
    query            the part after the "?"
    host             the authority of an absolute-form target, else ""
    ambiguous        a backend may read the path in another way; see readings()
    is_normalized    the client has sent the path as `normalized_path` has it
    """

    raw: str
    normalized_path: str
    path: str
    query: str
    host: str = ""
    ambiguous: bool = False
    is_normalized: bool = True

    def readings(self, longest: int, prefix: str = "") -> set[str] | None:
        """The paths that backends may take this one for, in the form of `normalized_path`, perhaps with itself among them.

        Only as much of a path is read as decides between routes: `longest` is the length of the longest path_prefix. None when
        the readings cannot be told: one of them leaves next to nothing of the beginning of the path, or there are signs of so
        many kinds as only an attack has. `prefix` is a path_prefix that has ambiguous signs itself: this part is read literally.
        The readings, and the servers that have them:

        - `%2F` and all other escapes decoded: WSGI and ASGI servers, PHP, nginx, IIS, Go;
        - then `\\` (`%5C`) taken for a slash: IIS, and programs that open files on Windows;
        - decoded twice: proxies and applications that decode what a server in front has decoded;
        - `;parameters` cut from each segment, before decoding or after it: Tomcat, Jetty, Spring;
        - everything after the first `;` cut: Apache Shiro;
        - what follows a decoded `?` or `#` cut: rewriting proxies (CVE-2024-38474, Apache);
        - overlong UTF-8 of a slash decoded: old Java, IIS and PHP;
        - runs of `/` kept: most that do not merge them;
        - `//name` taken for a host, so the path begins after it: `new URL(request.url, base)` in JavaScript, parse_url() in
          PHP, urlsplit() in Python.

        Not included, because a path without any of these signs has them too, or because no server is known to do so: letters
        without regard to case, dots and spaces dropped from the end of a segment (both Windows), three decodings.
        """
        path = self.normalized_path[len(prefix) :] if prefix else self.raw.partition("?")[0]
        if "///" in path:
            path = _RUNS.sub("//", path)  # a long run must not push the rest out of the window
        window = _WINDOW + 5 * longest  # decoding twice turns five characters into one
        partial = len(path) > window
        if partial and "%25" in path and _TWICE_DOT.search(_canonical(path)):
            return None  # a dot segment after the window could lead anywhere
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
        """The same target with runs of "/" in its path merged, for the backend too."""
        path, mark, query = self.raw.partition("?")
        return parse_target("GET", _SLASHES.sub("/", path) + mark + query)._replace(host=self.host)


def parse_target(method: str, text: str) -> Target:
    """The target of a request line, whose bytes `text` has as Latin-1. Raises ValueError when it has no valid reading."""
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
    sent = normalized = decoded = path
    ambiguous = ";" in path or "//" in path
    if "%" in path or "/." in path:
        if _HERE.search(path):
            normalized = decoded = path = without_dot_segments(path)
            text = path if query is None else f"{path}?{query}"
        if "%" in path:
            if _BAD_ESCAPE.search(path):
                raise ValueError("malformed escape in the path")
            normalized = _canonical(path)
            decoded = unquote_to_bytes(path).decode("latin-1")
            ambiguous = ambiguous or _AMBIGUOUS.search(path) is not None
        if _DOT_SEGMENT.search(path):
            raise ValueError("dot segment in the path")
    if "//" in normalized:
        normalized = _SLASHES.sub("/", normalized)
    return Target(text, normalized, decoded, query or "", host, ambiguous, normalized == sent)


def without_dot_segments(path: str) -> str:
    """A path without its `.` segments: `/./a/.` becomes `/a/` (RFC 3986 §5.2.4). `..` is kept, for callers to refuse."""
    return _HERE.sub(lambda here: "" if here.end() < len(path) else "/", path)


def target_from_environ_path(path: str, query: str) -> str:
    """A raw target from WSGI's decoded path, for servers that do not keep the one that was sent."""
    safe = frozenset(b"/!$&'()*+,-.0123456789:;=@ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~")
    raw = "".join(chr(b) if b in safe else f"%{b:02X}" for b in path.encode("latin-1"))
    return f"{raw or '/'}?{query}" if query else raw or "/"


def _check_utf8(text: str) -> None:
    """Bytes above ASCII must be UTF-8, as clients send them today. Any other coding could only be guessed."""
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
    """A path with its slashes unchanged, merged, and after an authority. Dot segments, which only a path that was decoded twice
    can have, are resolved."""
    read = {path}
    if "//" in path:
        read |= {_SLASHES.sub("/", path), _SLASHES.sub("/", _AUTHORITY.sub("", path, count=1))}
    return {_resolved(_SLASHES.sub("/", one)) if "/." in one else one for one in read}


def _resolved(path: str) -> str:
    """A path without dot segments, and with the slash at its end if it has one."""
    resolved = normpath(path)
    return f"{resolved}/" if path.endswith("/") and resolved != "/" else resolved
