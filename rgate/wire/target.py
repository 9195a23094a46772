"""The request target: one view of it for routing, and the very same bytes for the backend (RFC 3986, RFC 9112 §3.2).

What has no single reading is refused: a path that a backend might resolve, cut or decode to something else than the
route was chosen for. What is merely odd (`%2F`, `//`, `;`, an empty query) is passed on byte for byte.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

__all__ = ["Target", "read_target", "target_from_environ_path"]

# Visible ASCII without "#" (a fragment never travels) and, in the path, without "\" (some servers read it as "/").
_ORIGIN = re.compile(r"(/[!-\"$->@-\[\]-~]*)(?:\?([!-\"$-~]*))?")
_ABSOLUTE = re.compile(r"(?i:https?)://([^/?#@\\]+)([/?].*)?", re.DOTALL)
# NUL also in the two bytes that Java has for it.
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00|%[cC]0%80")


def _overlong(character: str) -> str:
    """An ASCII character in UTF-8 of more bytes than it needs, escaped: no UTF-8 (RFC 3629 §3), but decoders have read it."""
    high, low = 0xC0 | ord(character) >> 6, 0x80 | ord(character) & 0x3F
    middle = 0x80 | ord(character) >> 6
    return f"%{high:x}%{low:x}|%e0%{middle:x}%{low:x}|%f0%80%{middle:x}%{low:x}"


# A dot segment in any spelling: between "/", "%2F", "\" or "%5C", with or without ";parameters", or before a "?" or "#"
# that shows only when a backend decodes first and cuts then. The overlong spellings count as what they stand for, and
# are no more refused elsewhere than that is: the same bytes are common letters in EUC-JP, GBK and EUC-KR.
_DOT = rf"(?:\.|%2e|{_overlong('.')})"
_SLASH = rf"(?:/|%2f|%5c|{_overlong('/')}|{_overlong(chr(92))})"
_DOT_SEGMENT = re.compile(rf"{_SLASH}{_DOT}{{1,2}}(?:$|;|%3b|%3f|%23|{_SLASH})", re.IGNORECASE)
_UNRESERVED_ESCAPE = re.compile(r"%(?:2[DdEe]|3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa]|5[Ff]|7[Ee])")
_SLASHES = re.compile(r"//+")


class Target(NamedTuple):
    """A request target.

    raw      path and query as the client sent them: what the backend gets
    route    the path that routing decides on: unreserved escapes decoded and runs of "/" taken as one (RFC 3986 §6.2.2.2)
    path     the path decoded, as WSGI's PATH_INFO has it (latin-1)
    query    what stands after the "?", as sent
    host     the authority of an absolute-form target, else ""
    """

    raw: str
    route: str
    path: str
    query: str
    host: str = ""


def read_target(method: str, text: str) -> Target:
    """The target of a request line. Raises ValueError when it has no single valid reading."""
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
    route = decoded = path
    if "%" in path:
        if _BAD_ESCAPE.search(path):
            raise ValueError("malformed escape in the path")
        route = _UNRESERVED_ESCAPE.sub(lambda m: chr(int(m[0][1:], 16)), path)
        decoded = unquote_to_bytes(path).decode("latin-1")
    if _DOT_SEGMENT.search(path):
        raise ValueError("dot segment in the path")
    if "//" in route:
        route = _SLASHES.sub("/", route)
    return Target(text, route, decoded, query or "", host)


def target_from_environ_path(path: str, query: str) -> str:
    """A raw target from WSGI's decoded path, for servers that do not keep the one that was sent."""
    safe = frozenset(b"/!$&'()*+,-.0123456789:;=@ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~")
    raw = "".join(chr(b) if b in safe else f"%{b:02X}" for b in path.encode("latin-1"))
    return f"{raw or '/'}?{query}" if query else raw or "/"
