"""A request target: accepted ones have one canonical view, and no server can resolve them to a path outside of their route."""

from __future__ import annotations

import re
from urllib.parse import unquote, unquote_to_bytes

from rgate.http1.environ import edited_target
from rgate.http1.grammar import valid_host
from rgate.http1.target import parse_target, target_from_environ_path, without_dot_segments

_SEPARATORS = re.compile(r"[/\\]")
_PARAMETERS = re.compile(r"[;?#]")


def one(data: bytes) -> None:
    """Check one input: a request target."""
    text = data.decode("latin-1")
    try:
        target = parse_target("OPTIONS" if text == "*" else "GET", text)
    except ValueError:
        return
    if text == "*":
        return
    assert re.fullmatch(r"/[!-~]*", target.raw), "the forwarded target is not visible ASCII"
    assert "#" not in target.raw and "\\" not in target.raw.partition("?")[0]
    encoded = re.sub(r"[\x80-\xff]", lambda byte: f"%{ord(byte[0]):02X}", text)
    sent, mark, query = encoded.partition("?")
    assert target.raw == "/" or any(
        whole.endswith(target.raw) or (target.raw.startswith("/?") and whole.endswith(target.raw[1:]))
        for whole in (encoded, without_dot_segments(sent) + mark + query)
    ), "more was changed than bytes above ASCII and dot segments"
    assert not target.host or not valid_host(target.host) or target.host in text
    again = parse_target("GET", target.normalized_path)
    assert again.normalized_path == target.normalized_path and again.is_normalized, "the canonical path is not canonical"
    assert parse_target("GET", target.raw)._replace(host=target.host, is_normalized=target.is_normalized) == target, (
        "the forwarded target is parsed differently"
    )
    readings = target.readings(20)
    if not target.ambiguous:
        assert readings is not None and {reading[:20] for reading in readings} == {target.normalized_path[:20]}, "it is ambiguous"
    merged = target.merged()
    assert merged.normalized_path == target.normalized_path and "//" not in merged.raw.partition("?")[0]
    assert "//" not in target.normalized_path
    path = target.raw.partition("?")[0]
    assert target.path == unquote_to_bytes(path).decode("latin-1")
    for view in (path, target.normalized_path, target.path, unquote(target.path, "latin-1")):
        if view is not path and "%" in target.path and view not in (target.path, target.normalized_path):
            continue  # decoded twice, which a server must not do
        names = {_PARAMETERS.split(segment)[0] for segment in _SEPARATORS.split(view)}
        assert not names & {".", ".."}, f"a dot segment in {view!r}"
    names = {_PARAMETERS.split(segment)[0] for segment in _SEPARATORS.split(carelessly_decoded(unquote_to_bytes(path)))}
    assert not names & {".", ".."}, f"a dot segment for decoders that accept overlong UTF-8: {path!r}"
    raw = target_from_environ_path(target.path, target.query)
    assert parse_target("GET", raw).path == target.path
    environ = {"rgate.target": target, "PATH_INFO": target.path, "QUERY_STRING": target.query}
    assert edited_target(environ) is target


def carelessly_decoded(octets: bytes) -> str:
    """UTF-8 as decoded by those that accept characters with more bytes than needed (RFC 3629 §10)."""
    text, at = "", 0
    while at < len(octets):
        first = octets[at]
        size = 2 if first & 0xE0 == 0xC0 else 3 if first & 0xF0 == 0xE0 else 4 if first & 0xF8 == 0xF0 else 1
        following = octets[at + 1 : at + size]
        if len(following) < size - 1 or any(octet & 0xC0 != 0x80 for octet in following):
            size, following = 1, b""
        value = first if size == 1 else first & (0x7F >> size)
        for octet in following:
            value = value << 6 | octet & 0x3F
        text += chr(min(value, 0x10FFFF))
        at += size
    return text
