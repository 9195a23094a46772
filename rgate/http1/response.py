"""The head of a backend's response: bytes in, one reading or a refusal out (RFC 9112 §4 to §6).

What the RFC lets a gateway repair is repaired, because clients that talk to the same backend directly do not notice it: a
space before a colon (§5.1), a folded line (§5.2), a Content-Length repeated with the same value (§6.3). Everything else that
is not the grammar is refused, even where the RFC lets a recipient be lenient: a bare LF as a line end, an empty line before
the status line.
"""

from __future__ import annotations

import re
from typing import Final

from ..errors import BadResponse
from . import fields
from .cache import RepeatCache
from .fields import Field, FieldParser, has_credentials
from .trailers import announced_trailers

__all__ = ["ResponseHead", "ResponseParser"]

_NEVER_NOMINATED = frozenset({"close", "keep-alive", "content-length", "content-type", "set-cookie"})
_START = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")
_BARE_CR_OR_LF = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_FOLD = re.compile(rb"\r\n[ \t]+")
_SPACE_BEFORE_COLON = re.compile(rb"(?m)^([!#$%&'*+\-.^_`|~0-9A-Za-z]++)[ \t]++:")


class ResponseHead:
    """One response head, read. It may be shared by responses whose heads are the same, so it is never changed.

    code, status     the number, and the number with its phrase as WSGI wants it
    headers          what may be passed on, in order, as (name, value)
    length           bytes of body; None when it is chunked or ends with the connection
    chunked          the body is chunked
    keep_alive       the backend lets the connection stay open
    minor            1 for HTTP/1.1, 0 for HTTP/1.0
    trailer          which trailers are announced, as in a Trailer header, or ""
    upgrade          the protocol switched to (101), lower-case, or ""
    """

    length: int | None = None
    chunked = False
    trailer = ""
    upgrade = ""

    def __init__(self, code: int, status: str, minor: int) -> None:
        self.code = code
        self.status = status
        self.minor = minor
        self.keep_alive = minor == 1
        self.headers: list[tuple[str, str]] = []


class ResponseParser:
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
        self.head_cache: RepeatCache[bytes, ResponseHead] = RepeatCache("response heads", self.MAX_HEADS_BYTES)
        self._reader = FieldParser("response header lines")
        self._known_lines: RepeatCache[bytes, tuple[int, str, int]] = RepeatCache("response status lines", self.MAX_LINES_BYTES)

    def limit(self, max_headers: int, max_head_bytes: int) -> None:
        """Have other limits from now on."""
        if (max_headers, max_head_bytes) != (self.max_headers, self.max_head_bytes):
            self.max_headers, self.max_head_bytes = max_headers, max_head_bytes
            self.head_cache.clear()  # they are within the limits of before

    def read(self, head: bytes) -> ResponseHead:
        """The response in `head`, which ends before its empty line. Raises BadResponse. Callers look into `head_cache` first."""
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
                    _, _, received = head.partition(b"\r\n")
                    repaired = _repaired(received)
                    if repaired == received:
                        raise BadResponse(str(error)) from None
                    return self.read(b"%b\r\n%b" % (first, repaired))
                rememberable = rememberable and not field.secret
            meaning = field.meaning
            if meaning:
                if meaning == fields.CONTENT_LENGTH:
                    length = _length(field.value) if field.number is None else field.number
                    if length is None or response.length not in (None, length):
                        raise BadResponse("not exactly one valid Content-Length")
                    if response.length is None:
                        response.length = length
                        headers.append((field.pair[0], str(length)))
                    continue
                elif meaning == fields.TRANSFER_ENCODING:
                    if response.chunked or field.value.lower() != "chunked":
                        raise BadResponse("Transfer-Encoding other than one chunked")
                    if not response.minor:  # there is no such coding in HTTP/1.0, so the framing is faulty (RFC 9112 §6.1)
                        raise BadResponse("Transfer-Encoding in HTTP/1.0")
                    response.chunked = True
                    continue
                elif meaning == fields.CONNECTION:
                    nominated = field.tokens if nominated is None else nominated | field.tokens
                    continue
                elif meaning == fields.UPGRADE:
                    response.upgrade = f"{response.upgrade}, {field.value.lower()}" if response.upgrade else field.value.lower()
                    continue
                elif meaning == fields.TRAILER:
                    names = announced_trailers(field.value)
                    response.trailer = f"{response.trailer}, {names}" if response.trailer and names else response.trailer or names
                    continue
                elif meaning == fields.HOP_BY_HOP or meaning == fields.TE:
                    continue
            headers.append(field.pair)
        if response.chunked and response.length is not None:
            # Either could be the truth; a response that is read in two ways poisons the next one on the connection.
            raise BadResponse("Transfer-Encoding beside Content-Length")
        if nominated is not None:
            self._apply_connection(response, nominated)
        if rememberable and self.head_cache.comes_again(head) and not has_credentials(head):
            size_bytes = 400 + 3 * len(head) + 200 * len(headers)
            self.head_cache.keep(head, response, size_bytes)
        return response

    def check_incomplete(self, head: bytes, judged: int, searched: int) -> int:
        """Refuse the beginning of a head that cannot become a valid one, so that nobody waits for the rest of it.

        Its lines before `judged` are known to be good, its first `searched` bytes have been here before; what is returned is
        `judged` for the next time. So a head in tiny pieces costs little more than a whole one. Raises BadResponse.
        """
        if not head.startswith(_START[: len(head)]):
            raise BadResponse("malformed status line")
        if _BARE_CR_OR_LF.search(head, max(searched - 1, 0)):
            raise BadResponse("CR or LF alone in the head")
        end = head.rfind(b"\r\n", max(searched - 1, 0))
        if end < 0:
            return judged
        lines = head[judged:end]
        if not judged:
            line, _, lines = lines.partition(b"\r\n")
            self._read_line(line)
        while head.find(b"\r\n") + 2 < judged and lines[:1] in (b" ", b"\t"):  # it continues a line that is known to be good
            lines = lines.partition(b"\r\n")[2]
        try:
            for line in _repaired(lines).split(b"\r\n") if lines else ():
                self._reader.read(line)
        except ValueError as error:
            raise BadResponse(str(error)) from None
        return end + 2

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


def _repaired(lines: bytes) -> bytes:
    """Header lines without folds and without spaces before their colons. The first one can't continue another."""
    return _SPACE_BEFORE_COLON.sub(rb"\1:", _FOLD.sub(b" ", lines))


def _length(value: str) -> int | None:
    """The length that a list of Content-Lengths agrees on; None when it does not, or is not such a list (RFC 9112 §6.3)."""
    lengths = {Field("Content-Length", each.strip(" \t")).number for each in value.split(",")}
    return lengths.pop() if len(lengths) == 1 else None
