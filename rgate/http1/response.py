"""The head of a backend's response: bytes in, a ResponseHead or BadResponse out (RFC 9112 §4 to §6).

What the RFC lets a gateway repair is repaired, because clients that talk to the same backend directly do not notice it: a
space before a colon (§5.1), a folded line (§5.2), a Content-Length repeated with the same value (§6.3). Everything else that
does not match the grammar is refused, even where the RFC lets a recipient be lenient: a bare LF as a line end, an empty line
before the status line.
"""

from __future__ import annotations

import re
from typing import Final

from ..errors import BadResponse
from . import fields
from .cache import RepeatCache
from .fields import Field, FieldParser, has_credentials
from .grammar import TCHAR
from .trailers import announced_trailers

__all__ = ["ResponseHead", "ResponseParser"]

_CONNECTION_PROTECTED = frozenset({"close", "keep-alive", "content-length", "content-type", "set-cookie"})
_START = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")
_BARE_CR_OR_LF = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_FOLD = re.compile(rb"\r\n[ \t]+")
_SPACE_BEFORE_COLON = re.compile(rb"(?m)^(" + TCHAR + rb"++)[ \t]++:")


class ResponseHead:
    """One parsed response head. Responses whose heads are the same byte for byte may share it, so it is never changed.

    code, status     the number, and the number with its phrase as WSGI wants it
    headers          the fields that are forwarded, in order, as (name, value)
    length           bytes of body; None when it is chunked or ends with the connection
    chunked          the body is chunked
    keep_alive       the backend lets the connection stay open
    http_minor       1 for HTTP/1.1, 0 for HTTP/1.0
    trailer          the announced trailers, as in a Trailer header, or ""
    upgrade          the protocol switched to (101), lower-case, or ""
    """

    length: int | None = None
    chunked = False
    trailer = ""
    upgrade = ""

    def __init__(self, code: int, status: str, http_minor: int) -> None:
        self.code = code
        self.status = status
        self.http_minor = http_minor
        self.keep_alive = http_minor == 1
        self.headers: list[tuple[str, str]] = []


class ResponseParser:
    """Parses response heads within limits. A gateway has one; its threads share it.

    `max_head_bytes` is checked by the connection, which must not even buffer more than that. A head of at most 1 KiB that
    repeats byte for byte (a busy service sends the same one many times a second) is found in `head_cache`.
    """

    MAX_LINES_BYTES: Final = 131_072
    MAX_HEADS_BYTES: Final = 3_145_728
    MAX_HEAD_BYTES: Final = 1_024

    def __init__(self, max_headers: int = 500, max_head_bytes: int = 65_536) -> None:
        self.max_headers = max_headers
        self.max_head_bytes = max_head_bytes
        self.head_cache: RepeatCache[bytes, ResponseHead] = RepeatCache("response heads", self.MAX_HEADS_BYTES)
        self._field_parser = FieldParser("response header lines")
        self._line_cache: RepeatCache[bytes, tuple[int, str, int]] = RepeatCache("response status lines", self.MAX_LINES_BYTES)

    def set_limits(self, max_headers: int, max_head_bytes: int) -> None:
        """Apply other limits from now on."""
        if (max_headers, max_head_bytes) != (self.max_headers, self.max_head_bytes):
            self.max_headers, self.max_head_bytes = max_headers, max_head_bytes
            self.head_cache.clear()  # its heads were checked against the old limits

    def parse(self, head: bytes) -> ResponseHead:
        """The response in `head`, which ends before its empty line. Raises BadResponse. Callers look into `head_cache` first."""
        lines = head.split(b"\r\n")
        first = lines[0]
        response = ResponseHead(*(self._line_cache.get(first) or self._parse_first_line(first)))
        if len(lines) > self.max_headers + 1:
            raise BadResponse(f"{len(lines) - 1} headers")
        cached = self._field_parser.cache
        headers = response.headers
        cacheable = len(head) <= self.MAX_HEAD_BYTES
        nominated: frozenset[str] | None = None
        del lines[0]
        for line in lines:
            field = cached.get(line)
            if field is None:
                try:
                    field = self._field_parser.parse(line)
                except ValueError as error:
                    _, _, received = head.partition(b"\r\n")
                    repaired = _repaired(received)
                    if repaired == received:
                        raise BadResponse(str(error)) from None
                    return self.parse(b"%b\r\n%b" % (first, repaired))
                cacheable = cacheable and not field.uncacheable
            kind = field.kind
            if kind:
                if kind == fields.CONTENT_LENGTH:
                    length = _length(field.value) if field.number is None else field.number
                    if length is None or response.length not in (None, length):
                        raise BadResponse("not exactly one valid Content-Length")
                    if response.length is None:
                        response.length = length
                        headers.append((field.pair[0], str(length)))
                    continue
                elif kind == fields.TRANSFER_ENCODING:
                    if response.chunked or field.value.lower() != "chunked":
                        raise BadResponse("Transfer-Encoding other than one chunked")
                    if not response.http_minor:  # HTTP/1.0 does not have this coding, so the framing is faulty (RFC 9112 §6.1)
                        raise BadResponse("Transfer-Encoding in HTTP/1.0")
                    response.chunked = True
                    continue
                elif kind == fields.CONNECTION:
                    nominated = field.tokens if nominated is None else nominated | field.tokens
                    continue
                elif kind == fields.UPGRADE:
                    response.upgrade = f"{response.upgrade}, {field.value.lower()}" if response.upgrade else field.value.lower()
                    continue
                elif kind == fields.TRAILER:
                    names = announced_trailers(field.value)
                    response.trailer = f"{response.trailer}, {names}" if response.trailer and names else response.trailer or names
                    continue
                elif kind == fields.HOP_BY_HOP or kind == fields.TE:
                    continue
            headers.append(field.pair)
        if response.chunked and response.length is not None:
            # Either could be right, and the wrong one would take part of this response for the next one on the connection.
            raise BadResponse("Transfer-Encoding beside Content-Length")
        if nominated is not None:
            self._apply_connection(response, nominated)
        if cacheable and self.head_cache.admits(head) and not has_credentials(head):
            size_bytes = 400 + 3 * len(head) + 200 * len(headers)
            self.head_cache.add(head, response, size_bytes)
        return response

    def check_partial(self, head: bytes, checked: int, scanned: int) -> int:
        """Refuse an incomplete head that cannot become a valid one, so that no thread waits for the rest of it.

        `checked` is the end of the lines that earlier calls have checked, `scanned` the length of `head` in the last call.
        Returns `checked` for the next call. So a head in tiny pieces costs little more than a whole one. Raises BadResponse.
        """
        if not head.startswith(_START[: len(head)]):
            raise BadResponse("malformed status line")
        if _BARE_CR_OR_LF.search(head, max(scanned - 1, 0)):
            raise BadResponse("CR or LF alone in the head")
        end = head.rfind(b"\r\n", max(scanned - 1, 0))
        if end < 0:
            return checked
        lines = head[checked:end]
        if not checked:
            line, _, lines = lines.partition(b"\r\n")
            self._parse_first_line(line)
        while head.find(b"\r\n") + 2 < checked and lines[:1] in (b" ", b"\t"):  # it continues a line that has been checked
            lines = lines.partition(b"\r\n")[2]
        try:
            for line in _repaired(lines).split(b"\r\n") if lines else ():
                self._field_parser.parse(line)
        except ValueError as error:
            raise BadResponse(str(error)) from None
        return end + 2

    def _parse_first_line(self, line: bytes) -> tuple[int, str, int]:
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise BadResponse("malformed status line")
        minor, code, phrase = match.groups()
        # WSGI servers want a phrase; a backend may leave it out (RFC 9112 §4).
        parsed = (int(code), f"{code.decode()} {(phrase or b'').decode('latin-1').strip() or 'Unknown'}", int(minor))
        if len(line) <= self.MAX_HEAD_BYTES and self._line_cache.admits(line):
            self._line_cache.add(line, parsed, 300 + 2 * len(line))
        return parsed

    @staticmethod
    def _apply_connection(response: ResponseHead, nominated: frozenset[str]) -> None:
        if "close" in nominated:
            response.keep_alive = False
        elif "keep-alive" in nominated and not response.chunked:
            # A chunked body in HTTP/1.0 may not end where it seems to (RFC 9112 §6.1).
            response.keep_alive = True
        named = nominated - _CONNECTION_PROTECTED
        if named:
            response.headers = [pair for pair in response.headers if pair[0].lower() not in named]


def _repaired(lines: bytes) -> bytes:
    """Header lines without folds and without spaces before their colons. The first line cannot be the continuation of one."""
    return _SPACE_BEFORE_COLON.sub(rb"\1:", _FOLD.sub(b" ", lines))


def _length(value: str) -> int | None:
    """The length that a list of Content-Lengths agrees on; None when its members differ or one is invalid (RFC 9112 §6.3)."""
    lengths = {Field("Content-Length", each.strip(" \t")).number for each in value.split(",")}
    return lengths.pop() if len(lengths) == 1 else None
