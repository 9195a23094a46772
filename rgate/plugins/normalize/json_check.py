"""Whether bytes are one JSON value (RFC 8259), told in bounded steps.

json.loads() would tell too, but in one call beside which no other thread runs (130 ms for a hostile MiB), with every value
made and thrown away, and on a stack that grows with the depth. Here a step is one match of a regular expression that takes
2,048 values at most, other threads run between two steps, and nothing is made. It takes about as long. All quantifiers are
possessive, so a step never goes back.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["MAX_DEPTH", "is_json"]

MAX_DEPTH: Final = 500
STEPS: Final = 2_000  # that any text may take; a microsecond or two each
BYTES_A_STEP: Final = 6  # and for as many bytes one more, so that a MiB of nothing but brackets is given up after some 0.2 s
VALUES_A_RUN: Final = b"127"
VALUES_OF_FLAT: Final = b"15"

_SPACE = rb"[ \t\r\n]*+"
_STRING = rb'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})[^"\\\x00-\x1f]*+)*+"'
_NUMBER = rb"-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?+[0-9]++)?+"
_SCALAR = rb"(?:%b|%b|true|false|null)" % (_STRING, _NUMBER)
_NAME = _SPACE + _STRING + _SPACE + rb":"


def _several(one: bytes, most: bytes) -> bytes:
    """`one` and up to `most` more, with commas between."""
    return rb"(?>%b(?:,%b){0,%b}+)" % (one, one, most)


_ITEM = _SPACE + _SCALAR + _SPACE
# Short arrays and objects without others in them; what is longer or has others takes steps of its own.
_FLAT = rb"(?:\[(?:%b|%b)\]|\{(?:%b|%b)\})" % (
    *(_several(_ITEM, VALUES_OF_FLAT), _SPACE),
    *(_several(_NAME + _ITEM, VALUES_OF_FLAT), _SPACE),
)
_VALUE = _SPACE + rb"(?:%b|%b)" % (_SCALAR, _FLAT) + _SPACE
_TOP, _ARRAY, _OBJECT = b"\0[{"
_RUN = {
    _TOP: re.compile(_VALUE),
    _ARRAY: re.compile(_several(_VALUE, VALUES_A_RUN)),
    _OBJECT: re.compile(_several(_NAME + _VALUE, VALUES_A_RUN)),
}
_OPEN = {_OBJECT: re.compile(_NAME + _SPACE + rb"[\[{]")}
_OPEN[_TOP] = _OPEN[_ARRAY] = re.compile(_SPACE + rb"[\[{]")
_CLOSE = {_TOP: 0, _ARRAY: ord("]"), _OBJECT: ord("}")}
_AFTER = re.compile(_SPACE)
_COMMA: Final = ord(",")


def is_json(text: bytes) -> bool:
    """Whether `text` is JSON in UTF-8. False also for what is nested over MAX_DEPTH deep, or has little in it but brackets."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    whole = text + b"\0"  # which is nowhere else in JSON
    at, around = 0, [_TOP]
    for _ in range(STEPS + len(text) // BYTES_A_STEP):
        inside = around[-1]
        run = _RUN[inside].match(whole, at)
        if run is None:
            opened = _OPEN[inside].match(whole, at)
            if opened is None or len(around) >= MAX_DEPTH:
                return False
            at = opened.end()
            around.append(whole[at - 1])
            continue
        at = run.end()
        while whole[at] == _CLOSE[around[-1]]:
            around.pop()
            at += 1
            if not around:
                return at == len(whole)
            at = _AFTER.match(whole, at).end()  # type: ignore[union-attr]
        if whole[at] != _COMMA or len(around) == 1:
            return False
        at += 1
    return False
