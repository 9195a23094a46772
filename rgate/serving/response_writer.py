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
BLOCKS_AT_ONCE: Final = 4  # of one response, before others have their turn

# So long a thread waits for a backend or a client before the event loop has the response: at one time, and in all.
QUICK_WAIT_SECONDS: Final = 0.005
QUICK_SECONDS: Final = 0.05
_BODILESS: Final = frozenset(map(str, BODILESS_STATUSES))
_VERSION: Final = b"HTTP/1.1 "  # what every head begins with, interim ones too
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_NOTHING, _HEAD, _CHUNK = range(3)  # what is to be sent next, and may be begun early
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

    `allows_interim` says whether the client of the present request is sent interim responses.

    What it sends on the socket goes out whole, or OSError is raised. After run(), `keep_alive` says whether another
    request may follow, and `aborted` that the response broke off, so the connection must not end as if it were whole. With
    `protocol` set while the app runs, a 101 may be its answer; then `upgraded` says that the client has it.
    Once `close_after` is set, by whatever thread, every head says that no other request may follow; one that is out holds.

    With `streams`, a body that nothing in the chain has wrapped holds the thread only as long as backend and client are
    quick. When run() returns with `relayed`, the rest of it is for `streams` to relay, by relay_some(); nothing else of this
    object may be used meanwhile.
    When run() returns with `suspended`, the request waits for that; _relay_blocks() continues when it has been woken.

    A client that has ended its side may have closed the connection, or may only have nothing more to send; the kernel shows
    both alike (RFC 9293 §3.6). What tells them apart is the answer to a byte: a reset, or nothing. So test_client() begins
    early with what comes next whatever the response will be: the first nine bytes of its head, or a leading zero of the
    next chunk's size (RFC 9112 §7.1).
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
        self._sending = threading.Lock()  # held while something is sent, and while something is begun early
        self._next_part = _NOTHING
        self._is_last = False  # the end of the body is on its way
        self._must_test = False  # test_client() was called at a bad moment
        self._bytes_begun = 0  # bytes of the next head that are out already
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
        """Call the app and send its response. Never raises: what goes wrong ends in `aborted`."""
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
        except BaseException as error:  # somebody's SystemExit, too
            self._fail(error, environ)
        self.relayed = self._environ = None
        self._close(body)

    def resume(self) -> None:
        """Continue with a response that was suspended; with `suspended` set again, it waits once more. Never raises."""
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
        """End a response that is suspended, without an answer."""
        body = self._body
        self.suspended = None
        self._body, self._blocks, self._suspended_environ = (), iter(()), {}
        self._abort()
        self._close(body)

    def _fail(self, error: BaseException, environ: WSGIEnvironment) -> None:
        """The response has ended with an exception, which is being handled."""
        self._abort()
        exchange: Exchange | None = environ.get(ENVIRON_KEY)
        if isinstance(error, OSError):
            _log.debug("the client is gone: %s", error)
            if exchange is not None and not exchange.finished and exchange.error is None:
                exchange.error = ClientClosed(f"within the response: {error}")
            return
        # Before its head an exception is a bug; after it, what the exchange knows of has been logged where it happened.
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
        """Begin early with what comes next, so that a client that has closed answers with a reset, of which epoll will tell.

        Whoever is sending something just now does it afterwards. Nothing happens while the client takes nothing.
        From any thread. Raises OSError when the client is gone.
        """
        self._must_test = True
        if not self._sending.acquire(False):
            return  # whoever has it looks at _must_test after letting go of it
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
        """What is left to send of the first block with a head in it, or of one that comes later. With `_sending` held."""
        if self._next_part == _HEAD:
            self._next_part = _CHUNK if self._chunked and self._has_body and not self._is_last else _NOTHING
            if self._bytes_begun:
                return block[self._bytes_begun :]
        return block

    def _send(self, block: bytes) -> None:
        """Send a head, with what follows it, or what comes after."""
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
        """Tell the client to send the body of a request that is collected before run() is called for it. Raises OSError."""
        self._send_interim(_CONTINUE)

    def send_continue(self) -> None:
        """Tell the client to send its body, unless the final response has begun."""
        if not self.head_sent:
            self._send_interim(_CONTINUE)

    def send_interim(self, status: str, headers: Iterable[tuple[str, str]]) -> bool:
        """Send an interim response if the client is to have one and its response has not begun; whether that is so."""
        if self.head_sent or not self.allows_interim:
            return False
        self._send_interim(self._encoder.encode_interim(status, headers))
        return True

    def _send_interim(self, head: bytes) -> None:
        """Every interim head goes out here, and each begins with `HTTP/1.1 `."""
        with self._sending:
            if self._bytes_begun:
                head, self._bytes_begun = head[self._bytes_begun :], 0
            self._sock.sendall(head)

    def flush_head(self) -> None:
        """Send the head now, when start_response has come through; the body may be long in coming."""
        if self._status is not None and not self.head_sent:
            # What the client does not take of it goes out with the body.
            self._unsent = [self._head(None)]
            self._send_now()

    def write(self, block: bytes) -> None:
        """Send one block of the body, the head before the first."""
        if block:
            self._send_parts(self._framed(block))

    def _framed(self, block: bytes) -> list[bytes]:
        """One block of the body as it goes out, with the head if it is the first."""
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
        """What goes out after the last block of a body, with the head if there was none. Raises ValueError for one that is
        shorter than its Content-Length."""
        parts = [] if self.head_sent else [self._head(0)]
        if self._has_body:
            if self._body_left:
                raise ValueError("the app sent less than its Content-Length")
            if self._chunked:
                with self._sending:  # nothing may be begun early after this
                    self._is_last = True
                    if self._next_part == _CHUNK:
                        self._next_part = _NOTHING
                parts.append(_last_chunk(environ))
        return parts

    def _send_failure(self, environ: WSGIEnvironment) -> None:
        """The answer when the app has failed, or what it head_sent to answer cannot be sent."""
        exchange: Exchange | None = environ.get(ENVIRON_KEY)
        body = InternalError().json(exchange.id if exchange else "")
        self._status = "500 Internal Server Error"
        self._headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        self._has_body = environ["REQUEST_METHOD"] != "HEAD"
        try:
            self._send_whole(body)
            self.aborted = self.relayed is not None  # who does not even take this does without
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
        """Send all that is left of the response. What the client does not take at once is for `streams`."""
        streams = self.streams
        if streams is None:
            self._send_parts([*parts])
            return
        if len(parts) == 1:  # the way of most responses
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
        """Relay the body in this thread as long as neither the backend nor the client keeps it waiting; whether that was all
        of it. Raises what _relay_blocks() does."""
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

    def _relay_blocks(self, most_bytes: int, timed_out: bool = False) -> Waits:
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
            if self._body_ended:
                return Waits.NOTHING
            block = body.read_now(most_bytes, timed_out)
            if block is None:
                return Waits.BACKEND
            timed_out = False
            self._unsent = [*self._framed(block)] if block else []
            # The end of a body that is known to be over goes out with its last block.
            if not block or (body.complete and not body.read_now(most_bytes)):
                self._body_ended = True
                self._unsent += self._framed_end(self._environ or {})
        return Waits.TURN

    def relay_some(self, most_bytes: int, timed_out: bool = False) -> Waits:
        """The same for the event loop, which has no use for exceptions: the response is over when nothing is waited for."""
        body = self.relayed
        assert body is not None and self._environ is not None
        try:
            waits = self._relay_blocks(most_bytes, timed_out)
        except BaseException as error:
            self._fail(error, self._environ)
        else:
            if waits is Waits.CLIENT:
                first = self._unsent[0]
                if len(_whole(first)) > 2 * len(first):
                    self._unsent[0] = bytes(first)  # else all of the block stays in memory
            if waits is not Waits.NOTHING:
                return waits
        self._end_relay(body)
        return Waits.NOTHING

    def abandon_relayed(self) -> None:
        """End a response that is being relayed, wherever it is."""
        if self.relayed is not None:
            self._abort()
            self._end_relay(self.relayed)

    def _end_relay(self, body: RelayableBody) -> None:
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
        """The whole head; from here on only bytes of the body may follow. `known_length`: the whole body is at hand."""
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


def _is_writable(sock: socket.socket) -> bool:
    """Whether something small can be sent without waiting."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))
