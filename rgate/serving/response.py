"""A WSGI response as bytes: head, framing, body (PEP 3333; RFC 9112 §6, §7)."""

from __future__ import annotations

import enum
import logging
import select
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from socket import MSG_DONTWAIT
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, cast
from wsgiref.handlers import format_date_time

from ..chain.exchange import ENVIRON_KEY, Exchange, RelayableBody
from ..errors import ClientClosed, InternalError
from ..http1 import fields
from ..http1.cache import RepeatCache
from ..http1.chunked import LAST_CHUNK, chunk_head, last_chunk
from ..http1.fields import Field, encode_field, has_credentials
from ..http1.grammar import BODILESS_STATUSES
from ..log import about

if TYPE_CHECKING:
    import socket

    from _typeshed import OptExcInfo
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    from ..chain.suspended import SuspendedResponse
    from .stream_relay import Streams

__all__ = ["HeadEncoder", "ResponseWriter", "Waits"]

SMALL_BYTES: Final = 65_536
GATHERED_BYTES: Final = 16_384  # up to this, copying is cheaper than sending in parts
BLOCKS_AT_ONCE: Final = 4  # of one response, before others have their turn

# So long a thread waits for a backend or a client before the event loop has the response: at one time, and in all.
QUICK_WAIT_SECONDS: Final = 0.005
QUICK_SECONDS: Final = 0.05
_BODILESS: Final = frozenset(map(str, BODILESS_STATUSES))
_VERSION: Final = b"HTTP/1.1 "  # what every head begins with, interim ones too
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_NOTHING, _HEAD, _CHUNK = range(3)  # what is to be sent next, and may be begun early
_ORDINARY, _LENGTH, _DATE, _CLOSE, _DROPPED, _TRAILER = range(6)
_log = logging.getLogger("rgate.serving")


class HeadEncoder:
    """Encodes response heads. One for a server; shared by its threads.

    Every distinct header line is checked and encoded once and remembered: most lines of most responses are the same.
    `head_cache` has whole small heads of the commonest kind (a Content-Length, a Date, the connection stays open), which
    a busy backend gives many times a second.
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

    def write(self, status: str, headers: Iterable[tuple[str, str]]) -> tuple[list[bytes], int | None, bool]:
        """The head's lines, without those for framing; its Content-Length; whether the app asks to close.

        Raises ValueError for what no head may contain.
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
        if trailer is not None and length is None:  # a body of known length has nothing behind it
            lines.append(trailer)
        if not dated:
            lines.append(self.date())
        return lines, length, close

    def interim(self, status: str, headers: Iterable[tuple[str, str]]) -> bytes:
        """The whole head of an interim response, which has no body (RFC 9110 §15.2).

        Raises ValueError for what is not an interim status, or is 100 or 101, and for what no head may contain.
        """
        lines = [self._status_line(status, 102, 199)]
        for pair in headers:
            line, meaning = self._lines.get(pair) or self._line(pair)
            if not meaning or meaning == _DATE:
                lines.append(line)
        lines.append(b"\r\n")
        return b"".join(lines)

    def remember(self, status: str, headers: tuple[tuple[str, str], ...], head: bytes, length: int) -> None:
        """Keep a whole head that has a Content-Length and a Date of its own, and keeps the connection open."""
        key = (status, headers)
        if len(head) > self.MAX_HEAD_BYTES or not self.head_cache.admits(key):
            return
        names = {name.lower() for name, _ in headers}
        if "date" in names and "content-length" in names and not any(map(fields.is_secret, names)) and not has_credentials(head):
            self.head_cache.add(key, (head, length), 300 + 3 * len(head) + 150 * len(headers))

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

    def _status_line(self, status: str, least: int = 200, most: int = 599) -> bytes:
        code, _, phrase = status.partition(" ")
        if len(code) != 3 or not code.isascii() or not code.isdigit() or not least <= int(code) <= most:
            raise ValueError(f"not a status from {least} to {most}: {status!r}")
        encode_field("Phrase", phrase)  # the same characters are allowed
        line = f"HTTP/1.1 {status}\r\n".encode("latin-1")
        if least == 200 and len(status) <= self.MAX_VALUE_BYTES and self._status_lines.admits(status):
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


class _AllRead(RelayableBody):
    """The body of a response that only waits for the client."""

    __slots__ = ()
    wait_seconds = 0.0
    complete = True

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def fileno(self) -> int:
        return -1

    def read_now(self, most_bytes: int, timed_out: bool = False) -> bytes:
        return b""

    def count_waits(self, counting: AbstractContextManager[object]) -> None:
        """There are none."""

    def close(self) -> None:
        """There is nothing to give up."""


_ALL_READ: Final = _AllRead()


class Waits(enum.Enum):
    """What the relaying of a response waits for. TURN: for others to have had theirs."""

    NOTHING = enum.auto()
    BACKEND = enum.auto()
    CLIENT = enum.auto()
    TURN = enum.auto()


class ResponseWriter:
    """Runs a WSGI app for one request after another on a connection, and sends what it answers.

    `takes_interim` says whether the client of the present request is sent interim responses.

    What it sends on the socket goes out whole, or OSError is raised. After run(), `keep_alive` says whether another
    request may follow, and `cut` that the response broke off, so the connection must not end as if it were whole. With
    `protocol` set while the app runs, a 101 may be its answer; then `switched` says that the client has it.
    Once `ending` is set, by whatever thread, every head says that no other request may follow; one that is out holds.

    With `streams`, a body that nothing in the chain has wrapped holds the thread only as long as backend and client are
    quick. When run() returns with `relayed`, the rest of it is for `streams` to relay, by relay_on(); nothing else of this
    object may be used meanwhile.
    When run() returns with `suspended`, the request waits for that; go_on() continues when it has been woken.

    A client that has ended its side may have closed the connection, or may only have nothing more to send; the kernel shows
    both alike (RFC 9293 §3.6). What tells them apart is the answer to a byte: a reset, or nothing. So test_client() begins
    early with what comes next whatever the response will be: the first nine bytes of its head, or a leading zero of the
    next chunk's size (RFC 9112 §7.1).
    """

    __slots__ = (
        "_begun",
        "_blocks",
        "_body",
        "_chunked",
        "_ended",
        "_environ",
        "_has_body",
        "_head_sent",
        "_headers",
        "_heads",
        "_last",
        "_left",
        "_minor",
        "_next",
        "_parked_environ",
        "_sending",
        "_sock",
        "_status",
        "_tests",
        "_unsent",
        "cut",
        "ending",
        "keep_alive",
        "protocol",
        "relayed",
        "streams",
        "suspended",
        "switched",
        "takes_interim",
        "unread",
    )

    def __init__(self, heads: HeadEncoder, sock: socket.socket) -> None:
        self._heads = heads
        self._sock = sock
        self._sending = threading.Lock()  # held while something is sent, and while something is begun early
        self._next = _NOTHING
        self._last = False  # the end of the body is on its way
        self._tests = False  # test_client() was called at a bad moment
        self._begun = 0  # bytes of the next head that are out already
        self.suspended: SuspendedResponse | None = None
        self._body: Any = ()
        self._blocks: Iterator[bytes] = iter(())
        self._parked_environ: WSGIEnvironment = {}
        self._status: str | None = None
        self._headers: Iterable[tuple[str, str]] = ()
        self._head_sent = self._chunked = self.cut = self.keep_alive = self.switched = self.ending = False
        self._has_body = True
        self.protocol = ""
        self._minor = 1
        self._left: int | None = None
        self.unread: Callable[[], bool] | None = None
        self.takes_interim = False
        self.streams: Streams | None = None
        self.relayed: RelayableBody | None = None
        self._environ: WSGIEnvironment | None = None
        self._unsent: list[bytes | memoryview] = []
        self._ended = False

    def run(self, app: WSGIApplication, environ: WSGIEnvironment, minor: int, keep_alive: bool) -> None:
        """Call the app and send its response. Never raises: what goes wrong ends in `cut`."""
        self._status = None
        self._head_sent = self._chunked = self.cut = False
        self._has_body = environ["REQUEST_METHOD"] != "HEAD"
        self._minor = minor
        self.keep_alive = keep_alive
        self._left = None
        self._begun, self._next, self._tests, self._last = 0, _HEAD, False, False
        body: Any = ()
        try:
            body = app(environ, self.start_response)
            if type(body) is list and len(body) < 2 and not self._head_sent:
                self._send_whole(body[0] if body else b"")
                return  # a list has no close()
            exchange: Exchange | None = environ.get(ENVIRON_KEY)
            if exchange is not None and exchange.suspended is not None:
                self._body, self._blocks, self._parked_environ = body, iter(body), environ
                self.suspended = exchange.suspended
                return
            if self.streams is not None and isinstance(body, RelayableBody) and not (self.unread is not None and self.unread()):
                self.relayed, self._environ = body, environ
                self._ended = False
                if not self._relay_quickly(self.streams):
                    return
            else:
                self._send_blocks(body, environ)
        except BaseException as error:  # somebody's SystemExit, too
            self._fail(error, environ)
        self.relayed = self._environ = None
        self._close(body)

    def resume(self) -> None:
        """Continue with a response that was suspended; with `suspended` set again, it waits once more. Never raises."""
        environ, body = self._parked_environ, self._body
        exchange: Exchange = environ[ENVIRON_KEY]
        self.suspended = exchange.suspended = None
        try:
            for block in self._blocks:
                if not block and (suspended := _suspended(exchange)) is not None:
                    self.suspended = suspended
                    return
                self.write(block)
            self._send_parts(self._framed_end(environ))
        except BaseException as error:
            self._fail(error, environ)
        self._body, self._blocks, self._parked_environ = (), iter(()), {}
        self._close(body)

    def give_up_parked(self) -> None:
        """End a response that is suspended, without an answer."""
        body = self._body
        self.suspended = None
        self._body, self._blocks, self._parked_environ = (), iter(()), {}
        self._break_off()
        self._close(body)

    def _fail(self, error: BaseException, environ: WSGIEnvironment) -> None:
        """The response has ended with an exception, which is being handled."""
        self._break_off()
        exchange: Exchange | None = environ.get(ENVIRON_KEY)
        if isinstance(error, OSError):
            _log.debug("the client is gone: %s", error)
            if exchange is not None and not exchange.finished and exchange.error is None:
                exchange.error = ClientClosed(f"within the response: {error}")
            return
        # Before its head an exception is a bug; after it, what the exchange knows of has been logged where it happened.
        known = self._head_sent and exchange is not None and exchange.error is not None
        level = logging.DEBUG if known else logging.ERROR
        _log.log(level, "the response broke off", exc_info=error, extra={"about": about(error)})
        if not self._head_sent:
            self._send_failure(environ)

    def _close(self, body: Any) -> None:
        close = getattr(body, "close", None)
        if close is not None:
            try:
                close()
            except BaseException as error:
                self._break_off()
                _log.exception("closing the response failed", extra={"about": about(error)})

    def test_client(self) -> None:
        """Begin early with what comes next, so that a client that has closed answers with a reset, of which epoll will tell.

        Whoever is sending something just now does it afterwards. Nothing happens while the client takes nothing.
        From any thread. Raises OSError when the client is gone.
        """
        self._tests = True
        if not self._sending.acquire(False):
            return  # whoever has it looks at _tests after letting go of it
        self._tests = False
        try:
            if self._next == _NOTHING or self._unsent or not _takes_more(self._sock):
                return
            if self._next == _CHUNK:
                self._next = _NOTHING  # once is enough
                self._sock.sendall(b"0")
            elif not self._begun:
                self._begun = len(_VERSION)
                self._sock.sendall(_VERSION)
        finally:
            self._sending.release()

    def _without_begun(self, block: bytes) -> bytes:
        """What is left to send of the first block with a head in it, or of one that comes later. With `_sending` held."""
        if self._next == _HEAD:
            self._next = _CHUNK if self._chunked and self._has_body and not self._last else _NOTHING
            if self._begun:
                return block[self._begun :]
        return block

    def _send(self, block: bytes) -> None:
        """Send a head, with what follows it, or what comes after."""
        with self._sending:
            self._sock.sendall(self._without_begun(block))
        if self._tests:
            self.test_client()

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

    def ask_for_body(self) -> None:
        """Tell the client to send the body of a request that is collected before run() is called for it. Raises OSError."""
        self._send_interim(_CONTINUE)

    def send_continue(self) -> None:
        """Tell the client to send its body, unless the final response has begun."""
        if not self._head_sent:
            self._send_interim(_CONTINUE)

    def send_interim(self, status: str, headers: Iterable[tuple[str, str]]) -> bool:
        """Send an interim response if the client is to have one and its response has not begun; whether that is so."""
        if self._head_sent or not self.takes_interim:
            return False
        self._send_interim(self._heads.interim(status, headers))
        return True

    def _send_interim(self, head: bytes) -> None:
        """Every interim head goes out here, and each begins with `HTTP/1.1 `."""
        with self._sending:
            if self._begun:
                head, self._begun = head[self._begun :], 0
            self._sock.sendall(head)

    def flush_head(self) -> None:
        """Send the head now, when start_response has come through; the body may be long in coming."""
        if self._status is not None and not self._head_sent:
            # What the client does not take of it goes out with the body.
            self._unsent = [self._head(None)]
            self._send_now()

    def write(self, block: bytes) -> None:
        """Send one block of the body, the head before the first."""
        if block:
            self._send_parts(self._framed(block))

    def _framed(self, block: bytes) -> list[bytes]:
        """One block of the body as it goes out, with the head if it is the first."""
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
        return parts

    def _framed_end(self, environ: WSGIEnvironment) -> list[bytes]:
        """What goes out after the last block of a body, with the head if there was none. Raises ValueError for one that is
        shorter than its Content-Length."""
        parts = [] if self._head_sent else [self._head(0)]
        if self._has_body:
            if self._left:
                raise ValueError("the app sent less than its Content-Length")
            if self._chunked:
                with self._sending:  # nothing may be begun early after this
                    self._last = True
                    if self._next == _CHUNK:
                        self._next = _NOTHING
                parts.append(_last_chunk(environ))
        return parts

    def _send_failure(self, environ: WSGIEnvironment) -> None:
        """The answer when the app has failed, or what it began to answer cannot be sent."""
        exchange: Exchange | None = environ.get(ENVIRON_KEY)
        body = InternalError().json(exchange.id if exchange else "")
        self._status = "500 Internal Server Error"
        self._headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        self._has_body = environ["REQUEST_METHOD"] != "HEAD"
        try:
            self._send_whole(body)
            self.cut = self.relayed is not None  # who does not even take this does without
        except OSError as error:
            _log.debug("the client is gone: %s", error)

    def _send_whole(self, block: bytes) -> None:
        size = len(block)
        usual = self.keep_alive and not self.ending and self._minor and self._has_body and self.unread is None and self._status
        if usual:
            headers = tuple(self._headers)
            known = self._heads.head_cache.get((self._status, headers))  # type: ignore[arg-type]
            if known is not None and known[1] == size:
                self._head_sent = True
                self._send_last(known[0] + block)
                return
        head = self._head(size)
        if usual and self.keep_alive and self._left == size and self._has_body:
            self._heads.remember(self._status, headers, head, size)  # type: ignore[arg-type]
        if not self._has_body:
            self._send_last(head)
            return
        if self._left != size and self._left is not None:
            if size < self._left:
                self._send(head + block)
                raise ValueError("the app sent less than its Content-Length")
            block = block[: self._left]
            self.keep_alive = False
        if size < SMALL_BYTES:
            self._send_last(head + block)
        else:
            self._send_last(head, block)

    def _send_last(self, *parts: bytes) -> None:
        """Send all that is left of the response. What the client does not take at once is for `streams`."""
        streams = self.streams
        if streams is None:
            self._send_parts([*parts])
            return
        if len(parts) == 1:  # the way of most responses
            with self._sending:
                block = self._without_begun(parts[0])
                try:
                    sent = self._sock.send(block, MSG_DONTWAIT)
                except BlockingIOError:
                    sent = 0
                if sent == len(block):
                    return
                self._unsent = [memoryview(block)[sent:]]
        else:
            self._unsent = [*parts]
        if not self._send_now():
            self.relayed, self._environ, self._ended = _ALL_READ, {}, True
            if self._relay_quickly(streams):
                self.relayed = None

    def _send_blocks(self, body: Iterable[bytes], environ: WSGIEnvironment) -> None:
        for block in body:
            self.write(block)
        self._send_parts(self._framed_end(environ))

    def _relay_quickly(self, streams: Streams) -> bool:
        """Relay the body in this thread as long as neither the backend nor the client keeps it waiting; whether that was all
        of it. Raises what go_on() does."""
        until = 0.0
        body = self.relayed
        assert body is not None
        while (waits := self.go_on(streams.block_bytes)) is not Waits.NOTHING:
            if waits is Waits.TURN:
                continue
            now = monotonic()
            until = until or now + QUICK_SECONDS
            poll = select.poll()
            if waits is Waits.BACKEND:
                poll.register(body.fileno(), select.POLLIN)
            else:
                poll.register(self._sock, select.POLLOUT)
            if now >= until or not poll.poll(QUICK_WAIT_SECONDS * 1_000):
                return False
        return True

    def go_on(self, most_bytes: int, timed_out: bool = False) -> Waits:
        """Relay some more of the body, `most_bytes` at a time, without waiting; what that waits for now.

        NOTHING: the body is over. It is over as well when this raises: OSError when the client is gone, and what the body
        does. `timed_out` says that what it has waited for has not come in time.
        """
        body = self.relayed
        assert body is not None
        for _ in range(BLOCKS_AT_ONCE):
            if self._unsent:
                if not self._send_now():
                    if timed_out:
                        raise TimeoutError("the client takes nothing more")
                    return Waits.CLIENT
                timed_out = False
            if self._ended:
                return Waits.NOTHING
            block = body.read_now(most_bytes, timed_out)
            if block is None:
                return Waits.BACKEND
            timed_out = False
            self._unsent = [*self._framed(block)] if block else []
            # The end of a body that is known to be over goes out with its last block.
            if not block or (body.complete and not body.read_now(most_bytes)):
                self._ended = True
                self._unsent += self._framed_end(self._environ or {})
        return Waits.TURN

    def relay_on(self, most_bytes: int, timed_out: bool = False) -> Waits:
        """The same for the event loop, which has no use for exceptions: the response is over when nothing is waited for."""
        body = self.relayed
        assert body is not None and self._environ is not None
        try:
            waits = self.go_on(most_bytes, timed_out)
        except BaseException as error:
            self._fail(error, self._environ)
        else:
            if waits is Waits.CLIENT:
                first = self._unsent[0]
                if len(_whole(first)) > 2 * len(first):
                    self._unsent[0] = bytes(first)  # else all of the block stays in memory
            if waits is not Waits.NOTHING:
                return waits
        self._relayed_to_its_end(body)
        return Waits.NOTHING

    def give_up(self) -> None:
        """End a response that is being relayed, wherever it is."""
        if self.relayed is not None:
            self._break_off()
            self._relayed_to_its_end(self.relayed)

    def _relayed_to_its_end(self, body: RelayableBody) -> None:
        self.relayed = self._environ = None
        self._unsent = []
        self._close(body)

    @property
    def unsent_bytes(self) -> int:
        """How much of a response that is being relayed waits in memory for the client."""
        return sum(len(_whole(part)) for part in self._unsent)

    def _send_now(self) -> bool:
        """Send of what is unsent as much as the client takes; true when that is all."""
        with self._sending:
            if self._next == _HEAD and self._unsent:
                self._unsent[0] = self._without_begun(bytes(self._unsent[0]))
            return self._send_unsent()

    def _send_unsent(self) -> bool:
        parts = self._unsent
        while parts:
            try:
                if len(parts) == 1:
                    sent = self._sock.send(parts[0], MSG_DONTWAIT)
                elif sum(map(len, parts)) <= GATHERED_BYTES:
                    sent = self._sock.send(b"".join(parts), MSG_DONTWAIT)
                else:
                    sent = self._sock.sendmsg(parts, (), MSG_DONTWAIT)
            except BlockingIOError:
                return False
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = memoryview(parts[0])[sent:]
        return True

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
        if self._unsent:
            parts = [*map(bytes, self._unsent), *parts]
            self._unsent = []
        total = sum(map(len, parts))
        if total <= GATHERED_BYTES:
            if total:
                self._send(b"".join(parts))
            return
        with self._sending:
            parts[0] = self._without_begun(parts[0])
            total = sum(map(len, parts))
            sent = self._sock.sendmsg(parts)
            while sent < total:
                while parts and sent >= len(parts[0]):
                    total -= len(parts[0])
                    sent -= len(parts.pop(0))
                parts[0] = memoryview(parts[0])[sent:]  # type: ignore[call-overload]
                total -= sent
                sent = self._sock.sendmsg(parts)
        if self._tests:
            self.test_client()

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


def _last_chunk(environ: WSGIEnvironment) -> bytes:
    """What ends the chunked body of a response, with its trailers if there are some and the client takes them."""
    exchange: Exchange | None = environ.get(ENVIRON_KEY)
    if exchange is None or not exchange.response_trailers or "HTTP_TE" not in environ:
        return LAST_CHUNK
    return last_chunk(exchange.response_trailers)


def _whole(part: bytes | memoryview) -> bytes:
    """What is in memory for it."""
    return cast(bytes, part.obj) if isinstance(part, memoryview) else part


def _suspended(exchange: Exchange) -> SuspendedResponse | None:
    return exchange.suspended


def _takes_more(sock: socket.socket) -> bool:
    """Whether something small can be sent without waiting."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))
