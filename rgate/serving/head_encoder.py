"""Response heads as bytes, and a cache of the lines and heads that repeat (RFC 9112 §4, §5)."""

from __future__ import annotations

from collections.abc import Iterable
from time import time
from typing import Final
from wsgiref.handlers import format_date_time

from ..http1 import fields
from ..http1.cache import RepeatCache
from ..http1.fields import Field, encode_field, has_credentials

__all__ = ["HeadEncoder"]

_ORDINARY, _LENGTH, _DATE, _CLOSE, _DROPPED, _TRAILER = range(6)


class HeadEncoder:
    """Encodes response heads. A server has one, shared by its threads.

    Every distinct header line is checked and encoded once and cached, because most lines of most responses are the same.
    `head_cache` holds whole small heads of the commonest kind (with Content-Length and Date, the connection stays open), which
    a busy backend sends many times a second. Two threads that encode the same line at once both store it; each single
    operation on the caches is one of a built-in dict.
    """

    MAX_LINES_BYTES: Final = 1_048_576
    MAX_STATUS_LINES_BYTES: Final = 131_072
    MAX_VALUE_BYTES: Final = 512
    MAX_HEADS_BYTES: Final = 2_097_152
    MAX_HEAD_BYTES: Final = 1_024

    def __init__(self) -> None:
        self.head_cache: RepeatCache[tuple[str, tuple[tuple[str, str], ...]], tuple[bytes, int]] = RepeatCache(
            "written response heads", self.MAX_HEADS_BYTES
        )
        self._lines: RepeatCache[tuple[str, str], tuple[bytes, int]] = RepeatCache("written header lines", self.MAX_LINES_BYTES)
        self._status_lines: RepeatCache[str, bytes] = RepeatCache("written status lines", self.MAX_STATUS_LINES_BYTES)
        self._date = (0, b"")

    def encode(self, status: str, headers: Iterable[tuple[str, str]]) -> tuple[list[bytes], int | None, bool]:
        """The head's lines without those for framing, its Content-Length or None, and whether the app asks to close.

        Raises ValueError for an invalid status or header.
        """
        lines = [self._status_lines.get(status) or self._status_line(status)]
        length = None
        dated = close = False
        trailer = None
        known = self._lines
        for pair in headers:
            line, meaning = known.get(pair) or self._line(pair)
            if meaning:
                if meaning == _LENGTH:
                    if length is not None:
                        raise ValueError("two Content-Lengths")
                    length = int(pair[1])
                    continue
                if meaning == _DATE:
                    dated = True
                elif meaning == _TRAILER:
                    trailer = line
                    continue
                else:
                    close = close or meaning == _CLOSE
                    continue
            lines.append(line)
        if trailer is not None and length is None:  # a body with a Content-Length cannot have trailers
            lines.append(trailer)
        if not dated:
            lines.append(self.date())
        return lines, length, close

    def encode_interim(self, status: str, headers: Iterable[tuple[str, str]]) -> bytes:
        """The whole head of an interim response, which has no body (RFC 9110 §15.2).

        Raises ValueError for a status that is not an interim one, for 100 and 101, and for an invalid header.
        """
        lines = [self._status_line(status, 102, 199)]
        for pair in headers:
            line, meaning = self._lines.get(pair) or self._line(pair)
            if not meaning or meaning == _DATE:
                lines.append(line)
        lines.append(b"\r\n")
        return b"".join(lines)

    def cache(self, status: str, headers: tuple[tuple[str, str], ...], head: bytes, length: int) -> None:
        """Cache a whole head that has a Content-Length and a Date of its own, and keeps the connection open.

        Heads that may contain credentials are not cached, nor those over MAX_HEAD_BYTES.
        """
        key = (status, headers)
        if len(head) > self.MAX_HEAD_BYTES or not self.head_cache.admits(key):
            return
        names = {name.lower() for name, _ in headers}
        if "date" in names and "content-length" in names and not any(map(fields.is_secret, names)) and not has_credentials(head):
            self.head_cache.add(key, (head, length), 300 + 3 * len(head) + 150 * len(headers))

    def encode_101(self, protocol: str, headers: Iterable[tuple[str, str]]) -> bytes:
        """The whole head of a 101, after which the connection speaks `protocol` (RFC 9110 §15.2.2).

        It has no framing (§8.6). Raises ValueError for an invalid header.
        """
        lines = [b"HTTP/1.1 101 Switching Protocols\r\n"]
        for pair in headers:
            line, meaning = self._lines.get(pair) or self._line(pair)
            if (not meaning or meaning == _DATE) and pair[0].lower() != "upgrade":
                lines.append(line)
        lines.append(f"Connection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n".encode("latin-1"))
        return b"".join(lines)

    def date(self) -> bytes:
        """The Date line of this second."""
        now = int(time())
        second, line = self._date
        if second != now:
            line = f"Date: {format_date_time(now)}\r\n".encode()
            self._date = (now, line)
        return line

    def _status_line(self, status: str, lowest: int = 200, highest: int = 599) -> bytes:
        code, _, phrase = status.partition(" ")
        if len(code) != 3 or not code.isascii() or not code.isdigit() or not lowest <= int(code) <= highest:
            raise ValueError(f"not a status from {lowest} to {highest}: {status!r}")
        encode_field("Phrase", phrase)  # it may contain the same characters as a field value
        line = f"HTTP/1.1 {status}\r\n".encode("latin-1")
        if lowest == 200 and len(status) <= self.MAX_VALUE_BYTES and self._status_lines.admits(status):
            self._status_lines.add(status, line, 150 + 2 * len(line))
        return line

    def _line(self, pair: tuple[str, str]) -> tuple[bytes, int]:
        name, value = pair
        line = encode_field(name, value)
        field = Field(name, value)
        meaning = _ORDINARY
        if field.kind == fields.CONTENT_LENGTH:
            if field.number is None:
                raise ValueError(f"not a Content-Length: {value!r}")
            meaning = _LENGTH
        elif field.kind == fields.CONNECTION:
            meaning = _CLOSE if "close" in field.tokens else _DROPPED
        elif field.kind == fields.TRAILER:
            meaning = _TRAILER
        elif field.kind in (fields.TRANSFER_ENCODING, fields.TE, fields.HOP_BY_HOP):
            meaning = _DROPPED
        elif field.name == "date":
            meaning = _DATE
        known = self._lines
        if len(value) <= self.MAX_VALUE_BYTES and not field.uncacheable and known.admits(pair) and not has_credentials(line):
            known.add(pair, (line, meaning), 250 + 2 * len(line))
        return line, meaning
