"""One client connection: bytes → environ, response → bytes (RFC 9112).

A pool thread calls on_ready() whenever the socket is readable. While a request is incomplete, on_ready() returns at once,
so a connection that is idle or sends slowly holds no thread. A large body is passed to the app before it is complete, while
there are threads to spare. The syntax rules of HTTP/1.1 are in `rgate.http1`; this module is the order of events, and
`connection_state` names the states.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterable
from io import BytesIO
from math import inf
from typing import TYPE_CHECKING, Any, Final

from ..errors import ClientClosed, GatewayError, RequestError, RequestTimeout
from ..http1.client_address import normalize_address
from ..http1.environ import CONNECTION_KEY, FIELDS_KEY, REQUEST_STREAM_KEY, TRAILERS_KEY
from ..http1.request import RequestHead
from .body_buffer import SPILL_BYTES, BodyBuffer
from .connection_state import IN_FLIGHT, INCOMPLETE, UNUSED, State
from .environ import NO_BODY, rejected_environ
from .events import EPOLL, READABLE, WRITABLE
from .request_body import RequestBody
from .response_writer import ResponseWriter
from .sockets import peer_closed, set_rst_on_close, set_timeout, was_reset
from .tunnels import TunnelRelay

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ..chain.client_connection import ClientConnection, RequestStream
    from ..chain.exchange import Tunnel
    from .connection_owner import ConnectionOwner
    from .settings import ServerSettings

__all__ = ["Connection"]

RECEIVE_BYTES: Final = 65_536
BODY_BYTES: Final = 262_144
PIPELINED_AT_ONCE: Final = 16  # requests of one connection; if more have arrived, the others are served first
MAX_EMPTY_LINES: Final = 8  # before a request; RFC 9112 §2.2 wants at least one to be allowed
LINGER_SECONDS: Final = 2.0
LINGER_BYTES: Final = 1_048_576
IDLE_LINGER_SECONDS: Final = 1.0  # after closing an idle connection: time for what the client sent before it saw the end
_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)*")

# Every request sets these. On Python 3.11 an attribute of an Enum class costs 0.1 µs more than a global.
_IDLE: Final = State.IDLE
_READING_HEAD: Final = State.READING_HEAD
_BUSY: Final = State.BUSY


class Connection:
    """One connection of a client.

    state      see connection_state; changed only by the thread that holds `lock`
    lock       held while a thread works on the connection, and while the connection is suspended, relayed, tunnelled or closed
    deadline   when the server stops waiting (on the server's clock), or None in a state that does not wait for the client
    events     epoll events that have been reported and not been handled yet. Any thread adds to this set and only the holder
               of `lock` removes. Both are single operations of a built-in set, so no event is lost between two bytecodes
    settings   of the present request, from its first byte to its last
    address    the client's address
    body       what a thread reads of a request body that is still arriving
    buffering  the body that is still arriving while no thread is spent on its request
    idle_since when the last request ended, or the connection was accepted (on the server's clock)
    requests_left        how many more requests the connection may send
    client_half_closed   the client has ended its sending side; it may still read
    client_disconnected  the client disconnected while a thread worked on its request
    tunnel     what the connection becomes if the client's upgrade succeeds, or None
    on_disconnect        called by the server when that happens. The thread that resets it must look at
               `client_disconnected` afterwards
    limited_address      the address that the connection limits have counted it for, or ""
    """

    __slots__ = (
        "_allowed_seconds", "_discarded_bytes", "_empty_lines", "_identify", "_lingers", "_owner", "_pending", "_pipelined",
        "_proxied", "_read_shut", "_receive_seconds", "_sock", "_template", "address", "body", "buffering",
        "client_disconnected", "client_half_closed", "deadline", "events", "idle_since", "limited_address", "lock",
        "on_disconnect", "requests_left", "response", "settings", "state", "tunnel",
    )  # fmt: skip
    is_plaintext = True  # the bytes on the socket are those of HTTP
    first_state = State.IDLE

    def __init__(self, owner: ConnectionOwner, sock: socket.socket, peer: tuple[str, int]) -> None:
        self._owner = owner
        self.settings = settings = owner.settings
        self._sock = sock
        self.state = self.first_state
        self.lock = threading.Lock()
        self.events: set[int] = set()
        self._pending = b""  # the incomplete head
        self._pipelined = b""  # what the client has sent behind the present request
        self.buffering: BodyBuffer | None = None
        self.body: RequestBody | None = None
        self.response = ResponseWriter(owner.shared.head_encoder, sock)
        self.response.streams = owner.shared.streams
        self._lingers = False  # the connection is to linger after its last response
        self._discarded_bytes = 0
        self._read_shut = False  # expire() has shut down the reading half: its end is not the client's
        self._empty_lines = (0, 0)  # how many there were, and before which request
        self.requests_left = settings.config.max_requests_per_connection
        self._receive_seconds = 0.0
        self.idle_since = owner.now
        self._allowed_seconds = settings.config.head_seconds
        self.deadline: float | None = owner.now + self._allowed_seconds
        self.limited_address = ""
        self.on_disconnect: Callable[[], None] | None = None
        self.client_half_closed = self.client_disconnected = False
        self.tunnel: TunnelRelay | None = None
        self._proxied: socket.socket | None = None  # for ProxyProtocolConnection
        self._set_peer(peer[0], peer[1])

    def _set_peer(self, address: str, port: int) -> None:
        """Set the address that the connection comes from."""
        self.address = address = normalize_address(address)
        base = self._owner.shared.base_environ
        self._template = {**base, "REMOTE_ADDR": address, "REMOTE_PORT": str(port), CONNECTION_KEY: self}
        self._apply_settings()

    def _apply_settings(self) -> None:
        """Derive from the settings what is kept for each request: whether the claims of a trusted proxy are believed."""
        trusted = self.settings.trusted_proxies
        self._identify: Callable[[WSGIEnvironment], object] | None = trusted.apply if self.address in trusted else None

    def _adopt(self, settings: ServerSettings) -> None:
        """Use other settings from the next request on. A reload has swapped the server's."""
        changed = settings.config.write_seconds != self.settings.config.write_seconds
        self.settings = settings
        self._apply_settings()
        if changed:
            with contextlib.suppress(OSError):  # the client has reset the connection
                set_timeout(self._sock, socket.SO_SNDTIMEO, settings.config.write_seconds)

    def fileno(self) -> int:
        return self._sock.fileno()

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        """A socket option, as bytes. Raises OSError."""
        return self._sock.getsockopt(level, option, size)

    # Called by the thread of a request

    def send_interim(self, status: str, headers: Iterable[tuple[str, str]]) -> bool:
        """Send an interim response if the client may be sent one; whether it was sent. Raises ValueError for an invalid one."""
        try:
            return self.response.send_interim(status, headers)
        except OSError:
            return False

    def flush_head(self) -> None:
        """Send the response's head now, because its body may take long."""
        with contextlib.suppress(OSError):  # the client is gone; sending the first block of the body will show it
            self.response.flush_head()

    def upgrade(self, tunnel: Tunnel, backend: socket.socket, first: bytes, done: Callable[[], object]) -> None:
        """Make this connection a tunnel to `backend` once the response to the present request, a 101, has been sent.

        `first` is what the backend sent after its own 101. `done` is called once, when the tunnel is over or has failed to
        start; until then the tunnel owns the backend's socket. In either case this is the last request of the connection.
        """
        if self.tunnel is not None:  # an earlier attempt of the same request
            self.tunnel.end("backend")
        self.tunnel = TunnelRelay(tunnel, self._sock, backend, first, done)
        self.response.protocol = tunnel.protocol
        self.response.keep_alive = False

    def receive(self, seconds: float, flags: int = 0) -> bytes:
        """The next bytes, waiting at most `seconds`; b"" when the client has closed or reset. Raises TimeoutError."""
        if not flags and seconds != self._receive_seconds:
            self._receive_seconds = seconds
            set_timeout(self._sock, socket.SO_RCVTIMEO, seconds)
        try:
            return self._sock.recv(BODY_BYTES, flags)
        except BlockingIOError:
            raise TimeoutError from None
        except OSError:
            return b""

    def send_continue(self) -> None:
        """Answer `Expect: 100-continue`, unless the final response has begun. Raises OSError."""
        self.response.send_continue()

    def body_received(self) -> None:
        """The request body is complete, so that the thread no longer waits for the client."""
        self._owner.shared.uploads.discard(self)

    # Reading requests

    def on_ready(self, event: int) -> bool:
        """Go on with what has arrived. Called by the thread that holds `lock`.

        False: this thread is done with the connection without releasing the lock. The state tells who continues: SUSPENDED,
        RELAYED or TUNNELLED. In any other state the connection must be closed.
        """
        state = self.state
        if state is not _IDLE:
            if state is State.SUSPENDED:
                return self._resume_suspended()
            if state is State.YIELDED:
                return self._serve_yielded() if event & WRITABLE or self.client_half_closed else True
            if state is State.LINGERING:
                return self._discard()
        try:
            block = self._sock.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return self._half_close_idle() if state is State.CLOSING_IDLE else True
        except OSError:
            return False
        if len(block) == RECEIVE_BYTES:
            self.events.add(READABLE)  # there may be more, which an edge-triggered epoll does not report again
        if not block:
            return self._give_up() if self._pending or self.buffering is not None else False
        if self.buffering is not None:
            return self._buffer_body(self.buffering, block)
        if self._pending:
            checked = len(self._pending)
            block = self._pending + block
            if block.find(b"\r\n\r\n", max(checked - 3, 0)) < 0:
                return self._need_more(block, checked)
            self._pending = b""
            return self._consume(block)
        if state is _IDLE:
            self.state = _READING_HEAD  # before the settings are read: see Server.reconfigure()
        return self._begin(block)

    def _begin(self, block: bytes) -> bool:
        """Read the requests in `block`, which starts with a new one: it gets the settings that are current now."""
        settings = self._owner.settings
        if settings is not self.settings:
            self._adopt(settings)
        return self._consume(block)

    def _consume(self, block: bytes) -> bool:
        """Serve the complete requests in `block`, at most PIPELINED_AT_ONCE of them at once, and keep what remains."""
        served = 0
        while block:
            settings = self.settings
            end = block.find(b"\r\n\r\n")
            if end < 0 or end > settings.config.max_head_bytes:
                return self._need_more(block, 0)
            head = block[:end]
            try:
                if block.startswith(b"\r\n"):
                    block = self._without_empty_lines(block)
                    if not block:
                        return self._only_empty_lines()
                    continue
                parser = settings.request_parser
                request = parser.head_cache.get(head) or parser.parse(head)
            except RequestError as error:
                return self._refuse(error, head)
            block = block[end + 4 :]
            length = request.content_length
            if length is None and not request.chunked:
                keep_alive = self._serve(request, NO_BODY, None)
            elif length is not None and len(block) >= length:
                keep_alive = self._serve(request, BytesIO(block[:length]), None)
                block = block[length:]
            else:
                buffer = BodyBuffer(request, settings.config.max_body_bytes)
                if not self._goes_to_app_first(request, block):
                    return self._start_buffering(buffer, block)
                buffer.feed(block)
                keep_alive, block = self._serve_stream(buffer, request.expects_continue)
            if not keep_alive:
                return self._finish(block)
            if block:
                served += 1
                if served == PIPELINED_AT_ONCE:
                    self._yield(block)
                    self._owner.watch_writable(self)
                    return True
                if self._owner.settings is not settings:
                    self._adopt(self._owner.settings)
        return self._await_next_request()

    def _need_more(self, block: bytes, checked: int) -> bool:
        """The head is incomplete: refuse one that cannot become valid, else wait for more.

        The first `checked` bytes have been checked before and are not looked at again, so that a head in tiny pieces costs
        little more than a whole one.
        """
        settings = self.settings
        try:
            if block.startswith(b"\r\n"):
                block, checked = self._without_empty_lines(block), 0
            if not block:
                self._pending = b""
                return self._only_empty_lines()
            if self.state is State.EXPIRED:
                raise RequestTimeout("the request did not come in time")
            settings.request_parser.check_partial(block, checked, settings.config.max_head_bytes)
        except RequestError as error:
            return self._refuse(error, block)
        if not self._pending:
            self._allowed_seconds = settings.config.head_seconds
            self.deadline = self._owner.now + self._allowed_seconds
            if self.state is _BUSY or self.state is State.CLOSING_IDLE:
                self.state = _READING_HEAD
        self._pending = block
        return True

    def _without_empty_lines(self, block: bytes) -> bytes:
        """`block` without the empty lines at its start. Raises RequestError when there are too many before a request."""
        match = _EMPTY_LINES.match(block)
        assert match is not None
        end = match.end()
        before, count = self._empty_lines
        count = end // 2 + (count if before == self.requests_left else 0)
        self._empty_lines = (self.requests_left, count)
        if count > MAX_EMPTY_LINES:
            raise RequestError("too many empty lines before a request")
        return block[end:]

    def _only_empty_lines(self) -> bool:
        """Nothing but empty lines has arrived. They do not extend the deadline."""
        if self.state is State.CLOSING_IDLE:
            return self._half_close_idle()
        if self.deadline is None:  # they came behind a request
            return self._await_next_request()
        self.state = _IDLE
        return True

    def _await_next_request(self) -> bool:
        self.state = _IDLE
        self.idle_since = now = self._owner.now
        self.deadline = now + self.settings.config.keep_alive_seconds
        return True

    # Pipelining: let the other connections that are ready come before the rest of many requests sent at once

    def _yield(self, block: bytes) -> None:
        """Serve `block` after the other connections. watch_writable() must be called next: the socket is writable at once,
        unless the client does not read the responses it has asked for."""
        self._pipelined = block
        self.state = State.YIELDED
        self.deadline = self._owner.now + self.settings.config.write_seconds

    def _serve_yielded(self) -> bool:
        block, self._pipelined = self._pipelined, b""
        self.events.add(READABLE)  # what has arrived meanwhile is still to be read
        self.state = _READING_HEAD
        return self._begin(block)

    # Request bodies

    @property
    def _has_upload_thread(self) -> bool:
        """Whether one more thread may wait for the rest of a large body: `threads` may at any time."""
        return len(self._owner.shared.uploads) < self.settings.config.threads or not EPOLL  # else it has its own thread

    def _goes_to_app_first(self, request: RequestHead, block: bytes) -> bool:
        """Whether the app sees the request before its body has arrived, because it may well reject it by its head: the body
        is too large, or it is large or of unknown length and the client waits for 100 Continue."""
        length = request.content_length
        if length is None:
            return request.expects_continue and not block and self._has_upload_thread
        waits = request.expects_continue and length > self.settings.config.body_buffer_bytes
        return (waits or length > self.settings.lowest_body_limit) and self._has_upload_thread

    def _start_buffering(self, buffer: BodyBuffer, block: bytes) -> bool:
        self.buffering = buffer
        self._allowed_seconds = self.settings.config.body_seconds
        self.deadline = self._owner.now + self._allowed_seconds
        if self.state is not State.EXPIRED:
            self.state = State.BUFFERING_BODY
        if buffer.request.expects_continue and not block:
            try:
                self.response.send_continue_now()
            except OSError:
                return False
        return self._buffer_body(buffer, block)

    def _buffer_body(self, buffer: BodyBuffer, block: bytes) -> bool:
        """More of a body has arrived. Serve its request when it is complete, or when it is large and a thread may wait for it."""
        settings = self.settings
        try:
            buffer.feed(block)
        except RequestError as error:
            return self._refuse(error, request=buffer.request)
        if not buffer.complete:
            if self.state is State.EXPIRED:
                return self._give_up()
            if block:
                now = self._owner.now
                earned_seconds = len(block) * settings.seconds_per_body_byte
                self.deadline = min((self.deadline or now) + earned_seconds, now + self._allowed_seconds)
            if buffer.size < settings.config.body_buffer_bytes:
                return True
            spool = self._owner.shared.spool
            if not self._has_upload_thread and (len(buffer.memory) < SPILL_BYTES or buffer.spill(spool)):
                return True
        self.buffering = None
        if buffer.complete and buffer.file is None:
            rest = buffer.trailing_data
            keep_alive = self._serve(buffer.request, buffer.stream(), None, buffer.size, buffer.trailers)
        else:
            keep_alive, rest = self._serve_stream(buffer)
        if not keep_alive:
            return self._finish(rest)
        return self._begin(rest) if rest else self._await_next_request()

    def _drop_body(self) -> None:
        buffer, self.buffering = self.buffering, None
        if buffer is not None:
            buffer.close()

    # Serving

    def _serve(
        self,
        request: RequestHead,
        stream: Any,
        body: RequestBody | None,
        size: int | None = None,
        trailers: list[tuple[str, str]] | None = None,
    ) -> bool:
        """Run the app for a request. True: another request may follow.

        `size` is that of a body that has been buffered; `trailers` are the fields behind it, or are still to be filled.
        """
        environ: WSGIEnvironment = {**self._template, **request.environ}
        environ["wsgi.input"] = stream
        if request.chunked:
            environ[TRAILERS_KEY] = trailers
            if size is not None and not trailers:  # only a chunked body has trailers
                environ["CONTENT_LENGTH"] = str(size)
                del environ["HTTP_TRANSFER_ENCODING"]
                if environ.pop("HTTP_TRAILER", None) is not None:  # the fields that it announces have not come
                    environ[FIELDS_KEY] = request.fields.without("HTTP_TRAILER")
        if self._identify is not None:
            self._identify(environ)
        self.state = _BUSY
        self.deadline = None
        response = self.response
        response.body_pending = None
        response.allows_interim = request.takes_interim
        if body is not None:
            environ[REQUEST_STREAM_KEY] = body
            response.body_pending = lambda: not body.complete
        owner = self._owner
        if self.client_half_closed:
            owner.check_client_soon(self)
        self.requests_left -= 1
        keep_alive = request.keep_alive and self.requests_left > 0 and not owner.draining
        response.run(self.settings.app, environ, request.http_minor, keep_alive)
        if response.keep_alive and response.relayed is None and response.suspended is None:
            return True
        # The client has not asked to close the connection, so it may be sending the next request already.
        self._lingers = request.keep_alive
        return False

    def _serve_stream(self, buffer: BodyBuffer, expects_continue: bool = False) -> tuple[bool, bytes]:
        """Run the app for a request whose body is still arriving, or is spooled to a file.

        Returns what _serve() returns, and what the client has sent behind the body.
        """
        settings = self.settings
        config = settings.config
        is_small = buffer.left is not None and 0 < buffer.size + buffer.left <= config.body_buffer_bytes
        pace = (config.body_seconds, settings.seconds_per_body_byte)
        body = RequestBody(self, buffer, *pace, expects_continue=expects_continue, is_small=is_small)
        self.body = body
        uploads = self._owner.shared.uploads
        if not body.complete:
            uploads.add(self)
        try:
            size = buffer.size if body.complete else None
            keep_alive = self._serve(buffer.request, body, body, size, body.trailers)
        finally:
            if self.response.suspended is None:
                self.body = None
            uploads.discard(self)
        if self.response.suspended is not None:
            return False, b""
        return self._after_stream(body, keep_alive)

    def _after_stream(self, body: RequestBody, keep_alive: bool) -> tuple[bool, bytes]:
        self.body = None
        if not body.drain():
            self._lingers, keep_alive = True, False
        body.close()
        return keep_alive, body.trailing_data

    def _resume_suspended(self) -> bool:
        """Continue a request that was suspended."""
        response = self.response
        self.state = _BUSY
        self.on_disconnect = None
        response.resume()
        if response.suspended is not None:
            self.state = State.SUSPENDED
            return False
        keep_alive, rest = response.keep_alive, self._pipelined
        self._pipelined = b""
        if keep_alive:
            self._lingers = False
        if self.body is not None:
            keep_alive, rest = self._after_stream(self.body, keep_alive)
        if not keep_alive:
            return self._finish(rest)
        self.events.add(READABLE)  # what has arrived meanwhile is still to be read
        return self._begin(rest) if rest else self._await_next_request()

    def resume_relayed(self) -> None:
        """Continue after a response that has been relayed. Called by the thread that relayed it, which holds `lock` and must
        not block."""
        self.state = _BUSY  # whatever follows, it is no longer relayed
        rest, self._pipelined = self._pipelined, b""
        if not self.response.keep_alive:
            is_open = self._finish(rest)
        else:
            self._lingers = False
            is_open = True
            if rest:
                self._yield(rest)
            else:
                self._await_next_request()
        if not is_open:
            self._owner.hand_over(self)
            return
        self.lock.release()
        self._wake()

    # Refusing

    def _give_up(self) -> bool:
        """An incomplete request stays incomplete: the client has closed, or its time is over."""
        request = None if self.buffering is None else self.buffering.request
        if self.state is not State.EXPIRED:
            return self._refuse(ClientClosed("within the request", incomplete=True), self._pending, request)
        if request is None:
            return self._refuse(RequestTimeout("the request did not come in time"), self._pending)
        return self._refuse(RequestTimeout("the body came too slowly"), request=request)

    def reject(self, error: GatewayError) -> bool:
        """Answer `error` without reading a request. False: the connection must be closed at once."""
        self.response.streams = None  # the lock is not held, so the stream relay cannot be given the connection
        return self._refuse(error)

    def _refuse(self, error: GatewayError, head: bytes = b"", request: RequestHead | None = None) -> bool:
        """Answer `error`, through the outer chain, and end the connection. Returns what on_ready() does.

        `head` is what could not be read, `request` the head when that could be read and the body could not.
        """
        environ: WSGIEnvironment = {**self._template, **rejected_environ(error, head)}
        if request is not None:
            environ |= request.environ
            for key in ("CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING"):
                environ.pop(key, None)  # the app must not read the body
        self._drop_body()
        self.state = _BUSY
        self.deadline = None
        self.response.body_pending = None
        self.response.allows_interim = False
        self.response.run(self.settings.app, environ, 1, False)
        self._lingers = True
        return self._finish(b"")

    # Ending

    def _finish(self, rest: bytes) -> bool:
        """The response is over, or will be sent by another thread, and no request may follow yet.

        `rest` is what the client has sent behind the request: the next request, or the first bytes of a tunnel.
        """
        response = self.response
        if response.relayed is not None or response.suspended is not None:
            self._pipelined = rest
            self.state = State.RELAYED if response.relayed is not None else State.SUSPENDED
            return False
        if self.tunnel is not None:
            if response.upgraded and not response.aborted:
                self.tunnel.begin(rest)
                self.state = State.TUNNELLED
                return False
            self.tunnel.end("client" if response.aborted else "backend")
        if response.aborted:
            if response.is_close_delimited:
                # Without a length only a reset tells the client that the response is incomplete (RFC 9112 §8).
                set_rst_on_close(self._sock)
            return False
        return self._linger() if self._lingers else False

    def _linger(self) -> bool:
        """Shut down our half and read on for a moment, unless the place is needed.

        The response is sent but the client may still be sending. Closing now would reset the connection, and the client
        might lose the response (RFC 9112 §9.6).
        """
        if self._read_shut and self._owner.is_crowded:
            return False
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        if self._read_shut:  # recv() would report an end now, and closing at the client's next byte could cost it the answer
            self._discarded_bytes = LINGER_BYTES + 1
        self.state = State.LINGERING
        self.deadline = self._owner.now + LINGER_SECONDS
        return True

    @property
    def has_stopped_reading(self) -> bool:
        """Whether the connection lingers and no longer reads, so that it only waits for its deadline.

        Bytes that are not read slow the client down, while its response is there to be read.
        """
        return self._discarded_bytes > LINGER_BYTES

    def _discard(self) -> bool:
        """Drop what the client sends behind its last response."""
        if self.deadline is None or self.deadline < self._owner.now:
            return False
        if self.has_stopped_reading:
            return True
        try:
            block = self._sock.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if len(block) == RECEIVE_BYTES:
            self.events.add(READABLE)
        self._discarded_bytes += len(block)
        return bool(block)

    def _half_close_idle(self) -> bool:
        """Close an idle connection, our half first. A request that is on its way then meets an end, not a reset, and is
        discarded, so its client knows that it was not processed (RFC 9112 §9.3.1, §9.6)."""
        is_open = self._linger()
        self.deadline = self._owner.now + IDLE_LINGER_SECONDS
        return is_open

    def close(self) -> None:
        self.state = State.CLOSED
        self._drop_body()
        self._sock.close()
        # The template contains this connection. The cycle would keep it, and its OpenSSL objects, until the garbage collector
        # runs.
        self._template = {}
        self.response.body_pending = self.on_disconnect = None

    # Called by other threads

    @property
    def behind_since(self) -> float:
        """Since when an incomplete request has been arriving, or its body has been below the lowest rate (server's clock)."""
        return inf if self.deadline is None else self.deadline - self._allowed_seconds

    def close_if_idle(self) -> None:
        """Have an idle connection closed, or serve the request that has just arrived. Called by the server."""
        if self.lock.acquire(False):  # else a thread is working on it
            try:
                if self.state in UNUSED:
                    self.state = State.CLOSING_IDLE
            finally:
                self.lock.release()
            self._wake()

    def expire(self, before: float = inf) -> bool:
        """Stop waiting for the client if the deadline is earlier than `before`; whether that is so. Called by the server.

        on_ready() is called then. It reads what has arrived so far, and the end of the stream after that.
        """
        if not self.lock.acquire(False):  # a thread is working on it
            return False
        try:
            deadline = self.deadline
            if deadline is None or deadline >= before:
                return False
            if self.state in UNUSED or self.state in INCOMPLETE:
                self.state = State.EXPIRED
            self._read_shut = True
        finally:
            self.lock.release()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)  # epoll reports it to a thread
        return True

    def adopt_if_idle(self, settings: ServerSettings) -> None:
        """Forget settings of before a reload, unless a request still uses them. Called by the server."""
        if self.state is State.TUNNELLED:  # the lock is never released again, and nothing reads the settings
            self.settings = settings
        elif self.lock.acquire(False):
            try:
                if self.state not in IN_FLIGHT:
                    self._adopt(settings)
            finally:
                self.lock.release()
            if self.events:
                self._wake()

    def _wake(self) -> None:
        """Have on_ready() called, for what was reported while the lock was held."""
        with contextlib.suppress(OSError, ValueError):  # it has just been closed
            self._owner.watch_writable(self)

    def close_after_response(self) -> None:
        """Let the present response be the last one, if its head, which says so, has not been sent yet. From any thread."""
        self.response.close_after = True

    def abort(self) -> None:
        """End it although a thread may be working on it. From any thread."""
        self.notify_disconnect()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    @property
    def peer_closed(self) -> bool:
        """Whether the client has closed its sending side. Asked of the kernel, because an epoll event may belong to an earlier
        socket with the same descriptor."""
        return peer_closed(self._sock)

    def on_hangup(self) -> None:
        """epoll has reported an end of the client while another thread holds the lock. From any thread.

        The end of sending is not the end of reading (RFC 9112 §9.6): only a reset means that the client is gone, and a reset
        is the reply to what is sent.
        """
        if was_reset(self._sock):
            self.notify_disconnect()
        elif peer_closed(self._sock):
            self.client_half_closed = True
            self._owner.check_client_soon(self)

    def check_client(self) -> bool:
        """Find out whether a client that has half-closed is still there, while its response is being made. False: this cannot
        be done yet. Called by the server."""
        has_request = self.state in (State.BUSY, State.SUSPENDED, State.RELAYED)
        body = self.body
        if body is not None and not body.complete:
            return not has_request  # the thread that reads the body will meet its end
        if has_request:
            with contextlib.suppress(OSError):  # then epoll reports the reset in a moment
                self.response.test_client()
        return True

    def notify_disconnect(self) -> None:
        """The client disconnected while a thread worked on its request: end what that thread waits for. From any thread."""
        # The thread that resets `on_disconnect` looks at `client_disconnected` afterwards, so this still belongs to it.
        self.client_disconnected = True
        on_disconnect = self.on_disconnect
        if on_disconnect is not None:
            on_disconnect()


if TYPE_CHECKING:  # the two are all that chain and forwarding see of the client's side
    _CONNECTION: type[ClientConnection] = Connection
    _REQUEST_STREAM: type[RequestStream] = RequestBody
