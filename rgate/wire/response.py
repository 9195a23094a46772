"""The head of a backend's response: bytes in, one reading or a refusal out (RFC 9112 §4 to §6)."""

from __future__ import annotations

import re
from typing import Final

from ..errors import BadResponse
from . import fields
from .fields import FieldReader, has_credentials
from .remembered import Remembered

__all__ = ["ResponseHead", "ResponseReader"]

_NEVER_NOMINATED = frozenset({"close", "keep-alive", "content-length", "content-type", "set-cookie"})
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")


class ResponseHead:
    """One response head, read. It may be shared by responses whose heads are the same, so it is never changed.

    code, status     the number, and the number with its phrase as WSGI wants it
    headers          what may be passed on, in order, as (name, value)
    length           bytes of body; None when it is chunked or ends with the connection
    chunked          the body is chunked
    keep_alive       the backend lets the connection stay open
    upgrade          the protocol switched to (101), lower-case, or ""
    """

    length: int | None = None
    chunked = False
    upgrade = ""

    def __init__(self, code: int, status: str, minor: int) -> None:
        self.code = code
        self.status = status
        self.keep_alive = minor == 1
        self.headers: list[tuple[str, str]] = []


class ResponseReader:
    """Reads response heads within limits. One for a gateway; shared by its threads.

    `max_head_bytes` is the connection's to watch, since it must not even collect more.

    A small head that comes again byte for byte (a busy service gives the same one many times a second) is read no more.
    """

    MAX_LINES_BYTES: Final = 131_072
    MAX_HEADS_BYTES: Final = 3_145_728
    MAX_HEAD_BYTES: Final = 1_024

    def __init__(self, max_headers: int = 500, max_head_bytes: int = 65_536) -> None:
        self.max_headers = max_headers
        self.max_head_bytes = max_head_bytes
        self.known_heads: Remembered[bytes, ResponseHead] = Remembered("response heads", self.MAX_HEADS_BYTES)
        self._reader = FieldReader("response header lines")
        self._known_lines: Remembered[bytes, tuple[int, str, int]] = Remembered("response status lines", self.MAX_LINES_BYTES)

    def limit(self, max_headers: int, max_head_bytes: int) -> None:
        """Have other limits from now on."""
        if (max_headers, max_head_bytes) != (self.max_headers, self.max_head_bytes):
            self.max_headers, self.max_head_bytes = max_headers, max_head_bytes
            self.known_heads.clear()  # they are within the limits of before

    def read(self, head: bytes) -> ResponseHead:
        """The response in `head`, which ends before its empty line. Raises BadResponse. Callers look into `known_heads` first."""
        lines = head.split(b"\r\n")
        first = lines[0]
        response = ResponseHead(*(self._known_lines.get(first) or self._read_line(first)))
        if len(lines) > self.max_headers + 1:
            raise BadResponse(f"{len(lines) - 1} headers")
        known = self._reader.known
        headers = response.headers
        rememberable = len(head) <= self.MAX_HEAD_BYTES
        nominated: frozenset[str] | None = None
        del lines[0]
        for line in lines:
            field = known.get(line)
            if field is None:
                try:
                    field = self._reader.read(line)
                except ValueError as error:
                    raise BadResponse(str(error)) from None
                rememberable = rememberable and not field.secret
            meaning = field.meaning
            if meaning:
                if meaning == fields.CONTENT_LENGTH:
                    if field.number is None or response.length is not None:
                        raise BadResponse("not exactly one valid Content-Length")
                    response.length = field.number
                elif meaning == fields.TRANSFER_ENCODING:
                    if response.chunked or field.value.lower() != "chunked":
                        raise BadResponse("Transfer-Encoding other than one chunked")
                    response.chunked = True
                    continue
                elif meaning == fields.CONNECTION:
                    nominated = field.tokens if nominated is None else nominated | field.tokens
                    continue
                elif meaning == fields.UPGRADE:
                    response.upgrade = f"{response.upgrade}, {field.value.lower()}" if response.upgrade else field.value.lower()
                    continue
                elif meaning == fields.HOP_BY_HOP:
                    continue
            headers.append(field.pair)
        if response.chunked and response.length is not None:
            # Either could be the truth; a response that is read in two ways poisons the next one on the connection.
            raise BadResponse("Transfer-Encoding beside Content-Length")
        if nominated is not None:
            self._apply_connection(response, nominated)
        if rememberable and self.known_heads.comes_again(head) and not has_credentials(head):
            size_bytes = 400 + 3 * len(head) + 200 * len(headers)
            self.known_heads.keep(head, response, size_bytes)
        return response

    def _read_line(self, line: bytes) -> tuple[int, str, int]:
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise BadResponse("malformed status line")
        minor, code, phrase = match.groups()
        # WSGI servers want a phrase; a backend may leave it out (RFC 9112 §4).
        read = (int(code), f"{code.decode()} {(phrase or b'').decode('latin-1').strip() or 'Unknown'}", int(minor))
        if len(line) <= self.MAX_HEAD_BYTES and self._known_lines.comes_again(line):
            self._known_lines.keep(line, read, 300 + 2 * len(line))
        return read

    @staticmethod
    def _apply_connection(response: ResponseHead, nominated: frozenset[str]) -> None:
        if "close" in nominated:
            response.keep_alive = False
        elif "keep-alive" in nominated and not response.chunked:
            # In HTTP/1.0 there is no chunked coding, so its end may not be one (RFC 9112 §6.1).
            response.keep_alive = True
        named = nominated - _NEVER_NOMINATED
        if named:
            response.headers = [pair for pair in response.headers if pair[0].lower() not in named]
