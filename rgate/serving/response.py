"""A WSGI response as bytes: head, framing, body (PEP 3333; RFC 9112 §6, §7)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from time import time
from typing import TYPE_CHECKING, Any, Final
from wsgiref.handlers import format_date_time

from ..errors import InternalFault
from ..exchange import ENVIRON_KEY, Exchange
from ..log import about
from ..wire import fields
from ..wire.chunked import LAST_CHUNK, chunk_head
from ..wire.fields import Field, forward_line, has_credentials
from ..wire.remembered import Remembered

if TYPE_CHECKING:
    import socket

    from _typeshed import OptExcInfo
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

__all__ = ["HeadWriter", "ResponseStream"]

SMALL_BYTES: Final = 65_536
GATHERED_BYTES: Final = 16_384  # up to this, copying is cheaper than sending in parts
_BODILESS: Final = frozenset({"204", "304"})  # RFC 9110 §6.4.1
_ORDINARY, _LENGTH, _DATE, _CLOSE, _DROPPED = range(5)
_log = logging.getLogger("rgate.serving")


class HeadWriter:
    """Encodes response heads. One for a server; shared by its threads.

    Every distinct header line is checked and encoded once and remembered: most lines of most responses are the same.
    `known_heads` has whole small heads of the commonest kind (a Content-Length, a Date, the connection stays open), which
    a busy backend gives many times a second.
    """

    MAX_LINES_BYTES: Final = 1_048_576
    MAX_STATUS_LINES_BYTES: Final = 131_072
    MAX_VALUE_BYTES: Final = 512
    MAX_HEADS_BYTES: Final = 2_097_152
    MAX_HEAD_BYTES: Final = 1_024

    def __init__(self) -> None:
        self.known_heads: Remembered[tuple[str, tuple[tuple[str, str], ...]], tuple[bytes, int]] = Remembered(
            "written response heads", self.MAX_HEADS_BYTES
        )
        self._lines: Remembered[tuple[str, str], tuple[bytes, int]] = Remembered("written header lines", self.MAX_LINES_BYTES)
        self._status_lines: Remembered[str, bytes] = Remembered("written status lines", self.MAX_STATUS_LINES_BYTES)
        self._date = (0, b"")

    def write(self, status: str, headers: Iterable[tuple[str, str]]) -> tuple[list[bytes], int | None, bool]:
        """The head's lines, without those for framing; its Content-Length; whether the app asks to close.

        Raises ValueError for what no head may contain.
        """
        lines = [self._status_lines.get(status) or self._status_line(status)]
        length = None
        dated = close = False
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
                else:
                    close = close or meaning == _CLOSE
                    continue
            lines.append(line)
        if not dated:
            lines.append(self.date())
        return lines, length, close

    def remember(self, status: str, headers: tuple[tuple[str, str], ...], head: bytes, length: int) -> None:
        """Keep a whole head that has a Content-Length and a Date of its own, and keeps the connection open."""
        key = (status, headers)
        if len(head) > self.MAX_HEAD_BYTES or not self.known_heads.comes_again(key):
            return
        names = {name.lower() for name, _ in headers}
        if "date" in names and "content-length" in names and not any(map(fields.is_secret, names)) and not has_credentials(head):
            self.known_heads.keep(key, (head, length), 300 + 3 * len(head) + 150 * len(headers))

    def switch(self, protocol: str, headers: Iterable[tuple[str, str]]) -> bytes:
        """The whole head of a 101: from here on the connection speaks `protocol` (RFC 9110 §15.2.2).

        It can have no framing (§8.6). Raises ValueError for what no head may contain.
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

    def _status_line(self, status: str) -> bytes:
        code, _, phrase = status.partition(" ")
        if len(code) != 3 or not code.isascii() or not code.isdigit() or not 200 <= int(code) <= 599:
            raise ValueError(f"not a final status: {status!r}")
        forward_line("Phrase", phrase)  # the same characters are allowed
        line = f"HTTP/1.1 {status}\r\n".encode("latin-1")
        if len(status) <= self.MAX_VALUE_BYTES and self._status_lines.comes_again(status):
            self._status_lines.keep(status, line, 150 + 2 * len(line))
        return line

    def _line(self, pair: tuple[str, str]) -> tuple[bytes, int]:
        name, value = pair
        line = forward_line(name, value)
        field = Field(name, value)
        meaning = _ORDINARY
        if field.meaning == fields.CONTENT_LENGTH:
            if field.number is None:
                raise ValueError(f"not a Content-Length: {value!r}")
            meaning = _LENGTH
        elif field.meaning == fields.CONNECTION:
            meaning = _CLOSE if "close" in field.tokens else _DROPPED
        elif field.meaning in (fields.TRANSFER_ENCODING, fields.HOP_BY_HOP):
            meaning = _DROPPED
        elif field.name == "date":
            meaning = _DATE
        known = self._lines
        if len(value) <= self.MAX_VALUE_BYTES and not field.secret and known.comes_again(pair) and not has_credentials(line):
            known.keep(pair, (line, meaning), 250 + 2 * len(line))
        return line, meaning


class ResponseStream:
    """Runs a WSGI app for one request after another on a connection, and sends what it answers.

    What it sends on the socket goes out whole, or OSError is raised. After run(), `keep_alive` says whether another
    request may follow, and `cut` that the response broke off, so the connection must not end as if it were whole. With
    `protocol` set while the app runs, a 101 may be its answer; then `switched` says that the client has it.
    Once `ending` is set, by whatever thread, every head says that no other request may follow; one that is out holds.
    """

    __slots__ = (
        "_chunked",
        "_has_body",
        "_head_sent",
        "_headers",
        "_heads",
        "_left",
        "_minor",
        "_send",
        "_sock",
        "_status",
        "cut",
        "ending",
        "keep_alive",
        "protocol",
        "switched",
        "unread",
    )

    def __init__(self, heads: HeadWriter, sock: socket.socket) -> None:
        self._heads = heads
        self._sock = sock
        self._send = sock.sendall
        self._status: str | None = None
        self._headers: Iterable[tuple[str, str]] = ()
        self._head_sent = self._chunked = self.cut = self.keep_alive = self.switched = self.ending = False
        self._has_body = True
        self.protocol = ""
        self._minor = 1
        self._left: int | None = None
        self.unread: Callable[[], bool] | None = None

    def run(self, app: WSGIApplication, environ: WSGIEnvironment, minor: int, keep_alive: bool) -> None:
        """Call the app and send its response. Never raises: what goes wrong ends in `cut`."""
        self._status = None
        self._head_sent = self._chunked = self.cut = False
        self._has_body = environ["REQUEST_METHOD"] != "HEAD"
        self._minor = minor
        self.keep_alive = keep_alive
        self._left = None
        body: Any = ()
        try:
            body = app(environ, self.start_response)
            if type(body) is list and len(body) < 2 and not self._head_sent:
                self._send_whole(body[0] if body else b"")
                return  # a list has no close()
            self._send_blocks(body)
        except OSError as error:
            self._break_off()
            _log.debug("the client is gone: %s", error)
        except BaseException as error:  # somebody's SystemExit, too
            self._break_off()
            # Before its head an exception is a bug; after it, what the exchange knows of has been logged where it happened.
            exchange: Exchange | None = environ.get(ENVIRON_KEY)
            known = self._head_sent and exchange is not None and exchange.error is not None
            level = logging.DEBUG if known else logging.ERROR
            _log.log(level, "the response broke off", exc_info=error, extra={"about": about(error)})
            if not self._head_sent:
                self._send_failure(environ)
        close = getattr(body, "close", None)
        if close is not None:
            try:
                close()
            except BaseException as error:
                self._break_off()
                _log.exception("closing the response failed", extra={"about": about(error)})

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None
    ) -> Callable[[bytes], object]:
        """WSGI's start_response."""
        if exc_info is not None:
            if self._head_sent and exc_info[1] is not None:
                raise exc_info[1].with_traceback(exc_info[2])
        elif self._status is not None:
            raise AssertionError("start_response was called twice")
        self._status = status
        self._headers = headers
        return self.write

    def flush_head(self) -> None:
        """Send the head now, when start_response has come through; the body may be long in coming."""
        if self._status is not None and not self._head_sent:
            self._send(self._head(None))

    def write(self, block: bytes) -> None:
        """Send one block of the body, the head before the first."""
        if not block:
            return
        parts = [] if self._head_sent else [self._head(None)]
        if self._left is not None:
            if len(block) > self._left:
                block = block[: self._left]
                self.keep_alive = False
                _log.error("the app sent more than its Content-Length", extra={"about": ""})
            self._left -= len(block)
        if not self._has_body:
            block = b""
        elif self._chunked:
            parts += [chunk_head(len(block)), block, b"\r\n"]
        else:
            parts.append(block)
        self._send_parts(parts)

    def _send_failure(self, environ: WSGIEnvironment) -> None:
        """The answer when the app has failed, or what it began to answer cannot be sent."""
        exchange: Exchange | None = environ.get(ENVIRON_KEY)
        body = InternalFault().json(exchange.id if exchange else "")
        self._status = "500 Internal Server Error"
        self._headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        self._has_body = environ["REQUEST_METHOD"] != "HEAD"
        try:
            self._send_whole(body)
            self.cut = False
        except OSError as error:
            _log.debug("the client is gone: %s", error)

    def _send_whole(self, block: bytes) -> None:
        size = len(block)
        usual = self.keep_alive and not self.ending and self._minor and self._has_body and self.unread is None and self._status
        if usual:
            headers = tuple(self._headers)
            known = self._heads.known_heads.get((self._status, headers))  # type: ignore[arg-type]
            if known is not None and known[1] == size:
                self._head_sent = True
                self._send(known[0] + block)
                return
        head = self._head(size)
        if usual and self.keep_alive and self._left == size and self._has_body:
            self._heads.remember(self._status, headers, head, size)  # type: ignore[arg-type]
        if not self._has_body:
            self._send(head)
            return
        if self._left != size and self._left is not None:
            if size < self._left:
                self._send(head + block)
                raise ValueError("the app sent less than its Content-Length")
            block = block[: self._left]
            self.keep_alive = False
        if size < SMALL_BYTES:
            self._send(head + block)
        else:
            self._send_parts([head, block])

    def _send_blocks(self, body: Iterable[bytes]) -> None:
        for block in body:
            self.write(block)
        if not self._head_sent:
            self._send(self._head(0))
        if self._has_body:
            if self._left:
                raise ValueError("the app sent less than its Content-Length")
            if self._chunked:
                self._send(LAST_CHUNK)

    def _head(self, known_length: int | None) -> bytes:
        """The whole head; from here on only bytes of the body may follow. `known_length`: the whole body is at hand."""
        if self._status is None:
            raise AssertionError("start_response was not called")
        status = self._status
        if self.protocol and status.startswith("101 "):
            head = self._heads.switch(self.protocol, self._headers)
            self._has_body = False
            self._head_sent = self.switched = True
            return head
        lines, length, close = self._heads.write(status, self._headers)
        if close or self.ending or (self.unread is not None and self.unread()):
            self.keep_alive = False
        if status[:3] in _BODILESS:
            self._has_body = False
        if length is None and self._has_body:
            length = known_length
        if length is not None:
            if status[:3] != "204":
                lines.append(b"Content-Length: %d\r\n" % length)
            self._left = length
        elif self._has_body:
            if self._minor:
                self._chunked = True
                lines.append(b"Transfer-Encoding: chunked\r\n")
            else:
                self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"Connection: close\r\n")
        elif not self._minor:
            lines.append(b"Connection: keep-alive\r\n")
        lines.append(b"\r\n")
        self._head_sent = True
        return b"".join(lines)

    def _send_parts(self, parts: list[bytes]) -> None:
        total = sum(map(len, parts))
        if total <= GATHERED_BYTES:
            self._send(b"".join(parts))
            return
        sent = self._sock.sendmsg(parts)
        while sent < total:
            while parts and sent >= len(parts[0]):
                total -= len(parts[0])
                sent -= len(parts.pop(0))
            parts[0] = memoryview(parts[0])[sent:]  # type: ignore[call-overload]
            total -= sent
            sent = self._sock.sendmsg(parts)

    def _break_off(self) -> None:
        self.keep_alive = False
        self.cut = True

    @property
    def began(self) -> bool:
        """Whether the head is out."""
        return self._head_sent

    @property
    def ends_with_connection(self) -> bool:
        """Whether a plain close would look like the proper end of this response."""
        return self._head_sent and self._has_body and self._left is None and not self._chunked
