"""A request target: what is accepted has one view, and no server can resolve it to a path outside of its route."""

from __future__ import annotations

import re
from urllib.parse import unquote, unquote_to_bytes

from rgate.wire.environ import edited_target
from rgate.wire.fields import valid_host
from rgate.wire.target import read_target, target_from_environ_path

_SEPARATORS = re.compile(r"[/\\]")
_PARAMETERS = re.compile(r"[;?#]")


def one(data: bytes) -> None:
    """Judge one input: a request target."""
    text = data.decode("latin-1")
    try:
        target = read_target("OPTIONS" if text == "*" else "GET", text)
    except ValueError:
        return
    if text == "*":
        return
    assert re.fullmatch(r"/[!-~]*", target.raw), "what is sent on is not visible ASCII"
    assert "#" not in target.raw and "\\" not in target.raw.partition("?")[0]
    assert text.endswith(target.raw) or (target.raw.startswith("/?") and text.endswith(target.raw[1:])) or target.raw == "/"
    assert not target.host or not valid_host(target.host) or target.host in text
    again = read_target("GET", target.route)
    assert again.route == target.route, "the canonical path is not canonical"
    assert "//" not in target.route
    path = target.raw.partition("?")[0]
    assert target.path == unquote_to_bytes(path).decode("latin-1")
    for view in (path, target.route, target.path, unquote(target.path, "latin-1")):
        if view is not path and "%" in target.path and view not in (target.path, target.route):
            continue  # decoded twice: what a server must not do, and what passes here is refused by none
        names = {_PARAMETERS.split(segment)[0] for segment in _SEPARATORS.split(view)}
        assert not names & {".", ".."}, f"a dot segment in {view!r}"
    raw = target_from_environ_path(target.path, target.query)
    assert read_target("GET", raw).path == target.path
    environ = {"rgate.target": target, "PATH_INFO": target.path, "QUERY_STRING": target.query}
    assert edited_target(environ) is target
