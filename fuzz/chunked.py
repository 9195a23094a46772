"""The chunked coding: decoded as the grammar says, in whatever pieces it arrives."""

from __future__ import annotations

import re

from rgate.http1.chunked import ChunkedDecoder

_NAME = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_EXTENSION = rb"[ \t]*;[ \t]*" + _NAME + rb"(?:[ \t]*=[ \t]*(?:" + _NAME + rb"|" + _QUOTED + rb"))?"
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:" + _EXTENSION + rb")*\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n")


def one(data: bytes) -> None:
    """Check one input: the first byte says where to cut it, the rest is the coded body."""
    if not data:
        return
    step, coded = data[0] or 1, data[1:]
    whole = read([coded])
    assert read([coded[at : at + step] for at in range(0, len(coded), step)]) == whole, "the result depends on the pieces"
    if whole is not None and len(coded) < ChunkedDecoder.MAX_LINE_BYTES:
        payload, complete, rest = whole
        assert by_the_grammar(coded) == ((payload, rest) if complete else None), "not the reading of the grammar"


def read(blocks: list[bytes]) -> tuple[bytes, bool, bytes] | None:
    """The payload, whether it is complete, and the bytes after it; None when it is refused."""
    decoder = ChunkedDecoder()
    payload = b""
    for number, block in enumerate(blocks):
        try:
            payload += decoder.feed(block)
        except ValueError:
            return None
        if decoder.complete:
            return payload, True, decoder.trailing_data + b"".join(blocks[number + 1 :])
    return payload, False, b""


def by_the_grammar(coded: bytes) -> tuple[bytes, bytes] | None:
    """Payload of a complete body, and the bytes after it (RFC 9112 §7.1); else None."""
    payload, at = b"", 0
    while match := _SIZE.match(coded, at):
        at, size = match.end(), int(match[1], 16)
        if not size:
            while trailer := _TRAILER.match(coded, at):
                at = trailer.end()
            return (payload, coded[at + 2 :]) if coded[at : at + 2] == b"\r\n" else None
        payload += coded[at : at + size]
        at += size + 2
        if coded[at - 2 : at] != b"\r\n":
            return None
    return None
