"""A WSGI response as bytes: head, framing, body (PEP 3333; RFC 9112 §6, §7)."""

from __future__ import annotations

import enum
import logging
import select
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from socket import MSG_DONTWAIT
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from ..chain.exchange import ENVIRON_KEY, Exchange, RelayableBody
from ..errors import ClientClosed, InternalError
from ..http1.chunked import LAST_CHUNK, chunk_head, last_chunk
from ..http1.grammar import BODILESS_STATUSES
from ..log import exception_key

if TYPE_CHECKING:
    import socket

    from _typeshed import OptExcInfo
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    from ..chain.suspended import SuspendedResponse
    from .head_encoder import HeadEncoder
    from .stream_relay import Streams

__all__ = ["ResponseWriter", "Waits"]

SMALL_BYTES: Final = 65_536
COALESCE_BYTES: Final = 16_384  # up to this, copying is cheaper than sending in parts
BLOCKS_AT_ONCE: Final = 4  # of one response, before the other responses are served

# How long a thread waits for a backend or a client, at one time and in all, before the stream relay gets the response.
QUICK_WAIT_SECONDS: Final = 0.005
QUICK_SECONDS: Final = 0.05
_BODILESS: Final = frozenset(map(str, BODILESS_STATUSES))
_VERSION: Final = b"HTTP/1.1 "  # the start of every head, interim ones included
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_NOTHING, _HEAD, _CHUNK = range(3)  # the part that will be sent next, of which test_client() may send the first bytes
_log = logging.getLogger("rgate.serving")


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
        """It never waits."""

    def close(self) -> None:
        """It holds no resources."""


_ALL_READ: Final = _AllRead()


class Waits(enum.Enum):
    """The reason why the relaying of a response has paused. TURN: other responses are served first."""

    NOTHING = enum.auto()
    BACKEND = enum.auto()
    CLIENT = enum.auto()
    TURN = enum.auto()


class ResponseWriter:
    """Runs a WSGI app for one request after another on a connection, and sends the responses.

    keep_alive      after run(): another request may follow
    aborted         after run(): the response is incomplete, so the connection must not end as if it were complete
    head_sent       the head has been sent, or is among the bytes being sent
    protocol        set while the app runs: the response may be a 101 that switches to this protocol
    upgraded        that 101 has been sent
    allows_interim  the client of the present request may be sent interim responses
    body_pending    returns whether the request body is still arriving; None when it had arrived before run()
    close_after     set by any thread: every head from now on says that the connection closes. A head already sent stands
    streams         the stream relay; None: the thread sends every response to its end
    relayed         after run(): the body that the stream relay sends on, with relay_some(). Until that returns
                    Waits.NOTHING nothing else of this object may be used
    suspended       after run(): what the request waits for. resume() continues when that has been resumed

    The bytes of a response are sent completely, or OSError is raised. A body that no middleware has wrapped is given to the
    stream relay as soon as the backend or the client keeps the thread waiting.

    A half-closed client may have closed the connection, or may only have nothing more to send; the kernel shows both alike
    (RFC 9293 §3.6). The reply to a byte tells them apart: a reset, or nothing. So test_client() sends early what comes next
    in any case: the first nine bytes of the head, or a leading zero of the next chunk's size (RFC 9112 §7.1).
    """

    __slots__ = (
        "_blocks",
        "_body",
        "_body_ended",
        "_body_left",
        "_bytes_begun",
        "_chunked",
        "_encoder",
        "_environ",
        "_has_body",
        "_headers",
        "_is_last",
        "_minor_version",
        "_must_test",
        "_next_part",
        "_sending",
        "_sock",
        "_status",
        "_suspended_environ",
        "_unsent",
        "aborted",
        "allows_interim",
        "body_pending",
        "close_after",
        "head_sent",
        "keep_alive",
        "protocol",
        "relayed",
        "streams",
        "suspended",
        "upgraded",
    )

    def __init__(self, heads: HeadEncoder, sock: socket.socket) -> None:
        self._encoder = heads
        self._sock = sock
        self._sending = threading.Lock()  # held while bytes are sent, by the response or by test_client()
        self._next_part = _NOTHING
        self._is_last = False  # the end of the body is being sent
        self._must_test = False  # test_client() was called while another thread was sending
        self._bytes_begun = 0  # how many bytes of the next head have been sent already
        self.suspended: SuspendedResponse | None = None
        self._body: Any = ()
        self._blocks: Iterator[bytes] = iter(())
        self._suspended_environ: WSGIEnvironment = {}
        self._status: str | None = None
        self._headers: Iterable[tuple[str, str]] = ()
        self.head_sent = self._chunked = self.aborted = self.keep_alive = self.upgraded = self.close_after = False
        self._has_body = True
        self.protocol = ""
        self._minor_version = 1
        self._body_left: int | None = None
        self.body_pending: Callable[[], bool] | None = None
        self.allows_interim = False
        self.streams: Streams | None = None
        self.relayed: RelayableBody | None = None
        self._environ: WSGIEnvironment | None = None
        self._unsent: list[bytes | memoryview] = []
        self._body_ended = False

    def run(self, app: WSGIApplication, environ: WSGIEnvironment, minor: int, keep_alive: bool) -> None:
        """Call the app and send its response. Never raises: an error ends in `aborted`."""
        self._status = None
        self.head_sent = self._chunked = self.aborted = False
        self._has_body = environ["REQUEST_METHOD"] != "HEAD"
        self._minor_version = minor
        self.keep_alive = keep_alive
        self._body_left = None
        self._bytes_begun, self._next_part, self._must_test, self._is_last = 0, _HEAD, False, False
        body: Any = ()
        try:
            body = app(environ, self.start_response)
            if type(body) is list and len(body) < 2 and not self.head_sent:
                self._send_whole(body[0] if body else b"")
                return  # a list has no close()
            exchange: Exchange | None = environ.get(ENVIRON_KEY)
            if exchange is not None and exchange.suspended is not None:
                self._body, self._blocks, self._suspended_environ = body, iter(body), environ
                self.suspended = exchange.suspended
                return
            if (
                self.streams is not None
                and isinstance(body, RelayableBody)
                and not (self.body_pending is not None and self.body_pending())
            ):
                self.relayed, self._environ = body, environ
                self._body_ended = False
                if not self._relay_quickly(self.streams):
                    return
            else:
                self._send_blocks(body, environ)
        except BaseException as error:  # a plugin's SystemExit, too
            self._fail(error, environ)
        self.relayed = self._environ = None
        self._close(body)

    def resume(self) -> None:
        """Continue a response that was suspended; when `suspended` is set again, it waits once more. Never raises."""
        environ, body = self._suspended_environ, self._body
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
        self._body, self._blocks, self._suspended_environ = (), iter(()), {}
        self._close(body)

    def abandon_suspended(self) -> None:
        """End a suspended response without sending one."""
        body = self._body
        self.suspended = None
        self._body, self._blocks, self._suspended_environ = (), iter(()), {}
        self._abort()
        self._close(body)

    def _fail(self, error: BaseException, environ: WSGIEnvironment) -> None:
        """Handle the exception that the response has ended with."""
        self._abort()
        exchange: Exchange | None = environ.get(ENVIRON_KEY)
        if isinstance(error, OSError):
            _log.debug("the client is gone: %s", error)
            if exchange is not None and not exchange.finished and exchange.error is None:
                exchange.error = ClientClosed(f"within the response: {error}")
            return
        # Before the head, an exception is a bug. After it, a fault that the exchange knows has been logged where it happened.
        known = self.head_sent and exchange is not None and exchange.error is not None
        level = logging.DEBUG if known else logging.ERROR
        _log.log(level, "the response broke off", exc_info=error, extra={"dedup_key": exception_key(error)})
        if not self.head_sent:
            self._send_failure(environ)

    def _close(self, body: Any) -> None:
        close = getattr(body, "close", None)
        if close is not None:
            try:
                close()
            except BaseException as error:
                self._abort()
                _log.exception("closing the response failed", extra={"dedup_key": exception_key(error)})

    def test_client(self) -> None:
        """Send the first bytes of what comes next, so that a client that has closed replies with a reset, which epoll reports.

        A thread that is sending at this moment does it afterwards. Nothing is sent while the socket is not writable.
        From any thread. Raises OSError when the client is gone.
        """
        self._must_test = True
        if not self._sending.acquire(False):
            return  # its holder looks at _must_test after releasing it
        self._must_test = False
        try:
            if self._next_part == _NOTHING or self._unsent or not _is_writable(self._sock):
                return
            if self._next_part == _CHUNK:
                self._next_part = _NOTHING  # once is enough
                self._sock.sendall(b"0")
            elif not self._bytes_begun:
                self._bytes_begun = len(_VERSION)
                self._sock.sendall(_VERSION)
        finally:
            self._sending.release()

    def _without_bytes_begun(self, block: bytes) -> bytes:
        """`block` without the bytes that test_client() has sent of it. The caller holds `_sending`."""
        if self._next_part == _HEAD:
            self._next_part = _CHUNK if self._chunked and self._has_body and not self._is_last else _NOTHING
            if self._bytes_begun:
                return block[self._bytes_begun :]
        return block

    def _send(self, block: bytes) -> None:
        """Send a block: a head, perhaps with the start of the body, or a later part of the body."""
        with self._sending:
            self._sock.sendall(self._without_bytes_begun(block))
        if self._must_test:
            self.test_client()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None
    ) -> Callable[[bytes], object]:
        """WSGI's start_response."""
        if exc_info is not None:
            if self.head_sent and exc_info[1] is not None:
                raise exc_info[1].with_traceback(exc_info[2])
        elif self._status is not None:
            raise AssertionError("start_response was called twice")
        self._status = status
        self._headers = headers
        return self.write

    def send_continue_now(self) -> None:
        """Send 100 Continue for a request whose body is buffered before run() is called for it. Raises OSError."""
        self._send_interim(_CONTINUE)

    def send_continue(self) -> None:
        """Send 100 Continue, unless the final response has begun. Raises OSError."""
        if not self.head_sent:
            self._send_interim(_CONTINUE)

    def send_interim(self, status: str, headers: Iterable[tuple[str, str]]) -> bool:
        """Send an interim response if the client may be sent one and the final response has not begun; whether it was sent."""
        if self.head_sent or not self.allows_interim:
            return False
        self._send_interim(self._encoder.encode_interim(status, headers))
        return True

    def _send_interim(self, head: bytes) -> None:
        """Send an interim head. All of them begin with `HTTP/1.1 `, which test_client() may have sent already."""
        with self._sending:
            if self._bytes_begun:
                head, self._bytes_begun = head[self._bytes_begun :], 0
            self._sock.sendall(head)

    def flush_head(self) -> None:
        """Send the head now if start_response has been called, because the body may take long."""
        if self._status is not None and not self.head_sent:
            # Bytes that the socket does not take now are sent with the body.
            self._unsent = [self._head(None)]
            self._send_now()

    def write(self, block: bytes) -> None:
        """Send one block of the body, with the head before the first one."""
        if block:
            self._send_parts(self._framed(block))

    def _framed(self, block: bytes) -> list[bytes]:
        """One block of the body with its framing, and the head if it is the first block."""
        parts = [] if self.head_sent else [self._head(None)]
        if self._body_left is not None:
            if len(block) > self._body_left:
                block = block[: self._body_left]
                self.keep_alive = False
                _log.error("the app sent more than its Content-Length", extra={"dedup_key": ""})
            self._body_left -= len(block)
        if not self._has_body:
            block = b""
        elif self._chunked:
            parts += [chunk_head(len(block)), block, b"\r\n"]
        else:
            parts.append(block)
        return parts

    def _framed_end(self, environ: WSGIEnvironment) -> list[bytes]:
        """The framing after the last block of a body, and the head if there was no block. Raises ValueError when the body was
        shorter than its Content-Length."""
        parts = [] if self.head_sent else [self._head(0)]
        if self._has_body:
            if self._body_left:
                raise ValueError("the app sent less than its Content-Length")
            if self._chunked:
                with self._sending:  # test_client() must not send anything after this
                    self._is_last = True
                    if self._next_part == _CHUNK:
                        self._next_part = _NOTHING
                parts.append(_last_chunk(environ))
        return parts

    def _send_failure(self, environ: WSGIEnvironment) -> None:
        """Send a 500, because the app has failed or its response is invalid."""
        exchange: Exchange | None = environ.get(ENVIRON_KEY)
        body = InternalError().json(exchange.id if exchange else "")
        self._status = "500 Internal Server Error"
        self._headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        self._has_body = environ["REQUEST_METHOD"] != "HEAD"
        try:
            self._send_whole(body)
            self.aborted = self.relayed is not None  # a client that does not take even this gets nothing
        except OSError as error:
            _log.debug("the client is gone: %s", error)

    def _send_whole(self, block: bytes) -> None:
        size = len(block)
        usual = (
            self.keep_alive
            and not self.close_after
            and self._minor_version
            and self._has_body
            and self.body_pending is None
            and self._status
        )
        if usual:
            headers = tuple(self._headers)
            known = self._encoder.head_cache.get((self._status, headers))  # type: ignore[arg-type]
            if known is not None and known[1] == size:
                self.head_sent = True
                self._send_last(known[0] + block)
                return
        head = self._head(size)
        if usual and self.keep_alive and self._body_left == size and self._has_body:
            self._encoder.cache(self._status, headers, head, size)  # type: ignore[arg-type]
        if not self._has_body:
            self._send_last(head)
            return
        if self._body_left != size and self._body_left is not None:
            if size < self._body_left:
                self._send(head + block)
                raise ValueError("the app sent less than its Content-Length")
            block = block[: self._body_left]
            self.keep_alive = False
        if size < SMALL_BYTES:
            self._send_last(head + block)
        else:
            self._send_last(head, block)

    def _send_last(self, *parts: bytes) -> None:
        """Send the rest of the response. The stream relay sends what the client does not take at once."""
        streams = self.streams
        if streams is None:
            self._send_parts([*parts])
            return
        if len(parts) == 1:  # most responses
            with self._sending:
                block = self._without_bytes_begun(parts[0])
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
            self.relayed, self._environ, self._body_ended = _ALL_READ, {}, True
            if self._relay_quickly(streams):
                self.relayed = None

    def _send_blocks(self, body: Iterable[bytes], environ: WSGIEnvironment) -> None:
        for block in body:
            self.write(block)
        self._send_parts(self._framed_end(environ))

    def _relay_quickly(self, streams: Streams) -> bool:
        """Relay the body in this thread as long as neither the backend nor the client keeps it waiting; whether the body is
        over. Raises what _relay_blocks() does."""
        until = 0.0
        body = self.relayed
        assert body is not None
        while (waits := self._relay_blocks(streams.block_bytes)) is not Waits.NOTHING:
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

    def _relay_blocks(self, max_bytes: int, timed_out: bool = False) -> Waits:
        """Relay some more of the body, `max_bytes` at a time, without waiting. Returns what it would have to wait for.

        NOTHING: the body is over. It is over as well when this raises: OSError when the client is gone, and what the body
        raises. `timed_out`: what it waited for did not happen in time.
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
            if self._body_ended:
                return Waits.NOTHING
            block = body.read_now(max_bytes, timed_out)
            if block is None:
                return Waits.BACKEND
            timed_out = False
            self._unsent = [*self._framed(block)] if block else []
            # When the body is known to be over, its end is sent with its last block.
            if not block or (body.complete and not body.read_now(max_bytes)):
                self._body_ended = True
                self._unsent += self._framed_end(self._environ or {})
        return Waits.TURN

    def relay_some(self, max_bytes: int, timed_out: bool = False) -> Waits:
        """The same for the stream relay, which has no use for exceptions: with Waits.NOTHING the response is over."""
        body = self.relayed
        assert body is not None and self._environ is not None
        try:
            waits = self._relay_blocks(max_bytes, timed_out)
        except BaseException as error:
            self._fail(error, self._environ)
        else:
            if waits is Waits.CLIENT:
                first = self._unsent[0]
                if len(_whole(first)) > 2 * len(first):
                    self._unsent[0] = bytes(first)  # else the view keeps the whole block in memory
            if waits is not Waits.NOTHING:
                return waits
        self._end_relay(body)
        return Waits.NOTHING

    def abandon_relayed(self) -> None:
        """End a response that is being relayed, although it is incomplete."""
        if self.relayed is not None:
            self._abort()
            self._end_relay(self.relayed)

    def _end_relay(self, body: RelayableBody) -> None:
        self.relayed = self._environ = None
        self._unsent = []
        self._close(body)

    @property
    def unsent_bytes(self) -> int:
        """How many bytes of a relayed response wait in memory for the client."""
        return sum(len(_whole(part)) for part in self._unsent)

    def _send_now(self) -> bool:
        """Send as much of `_unsent` as the client takes without waiting; true when that is all of it."""
        with self._sending:
            if self._next_part == _HEAD and self._unsent:
                self._unsent[0] = self._without_bytes_begun(bytes(self._unsent[0]))
            return self._send_unsent()

    def _send_unsent(self) -> bool:
        parts = self._unsent
        while parts:
            try:
                if len(parts) == 1:
                    sent = self._sock.send(parts[0], MSG_DONTWAIT)
                elif sum(map(len, parts)) <= COALESCE_BYTES:
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
        """The whole head; only bytes of the body may follow. `known_length`: the length of a body that is complete already."""
        if self._status is None:
            raise AssertionError("start_response was not called")
        status = self._status
        if self.protocol and status.startswith("101 "):
            head = self._encoder.encode_101(self.protocol, self._headers)
            self._has_body = False
            self.head_sent = self.upgraded = True
            return head
        lines, length, close = self._encoder.encode(status, self._headers)
        if close or self.close_after or (self.body_pending is not None and self.body_pending()):
            self.keep_alive = False
        if status[:3] in _BODILESS:
            self._has_body = False
        if length is None and self._has_body:
            length = known_length
        if length is not None:
            if status[:3] != "204":
                lines.append(b"Content-Length: %d\r\n" % length)
            self._body_left = length
        elif self._has_body:
            if self._minor_version:
                self._chunked = True
                lines.append(b"Transfer-Encoding: chunked\r\n")
            else:
                self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"Connection: close\r\n")
        elif not self._minor_version:
            lines.append(b"Connection: keep-alive\r\n")
        lines.append(b"\r\n")
        self.head_sent = True
        return b"".join(lines)

    def _send_parts(self, parts: list[bytes]) -> None:
        if self._unsent:
            parts = [*map(bytes, self._unsent), *parts]
            self._unsent = []
        total = sum(map(len, parts))
        if total <= COALESCE_BYTES:
            if total:
                self._send(b"".join(parts))
            return
        with self._sending:
            parts[0] = self._without_bytes_begun(parts[0])
            total = sum(map(len, parts))
            sent = self._sock.sendmsg(parts)
            while sent < total:
                while parts and sent >= len(parts[0]):
                    total -= len(parts[0])
                    sent -= len(parts.pop(0))
                parts[0] = memoryview(parts[0])[sent:]  # type: ignore[call-overload]
                total -= sent
                sent = self._sock.sendmsg(parts)
        if self._must_test:
            self.test_client()

    def _abort(self) -> None:
        self.keep_alive = False
        self.aborted = True

    @property
    def is_close_delimited(self) -> bool:
        """Whether a plain close would look like the proper end of this response."""
        return self.head_sent and self._has_body and self._body_left is None and not self._chunked


def _last_chunk(environ: WSGIEnvironment) -> bytes:
    """The last chunk of a response body, with the trailers if there are any and the client accepts them."""
    exchange: Exchange | None = environ.get(ENVIRON_KEY)
    if exchange is None or not exchange.response_trailers or "HTTP_TE" not in environ:
        return LAST_CHUNK
    return last_chunk(exchange.response_trailers)


def _whole(part: bytes | memoryview) -> bytes:
    """The object that a part keeps in memory."""
    return cast(bytes, part.obj) if isinstance(part, memoryview) else part


def _suspended(exchange: Exchange) -> SuspendedResponse | None:
    return exchange.suspended


def _is_writable(sock: socket.socket) -> bool:
    """Whether a few bytes can be sent without waiting."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))
