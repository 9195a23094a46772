"""One client connection: bytes → environ, response → bytes (RFC 9112).

A worker thread calls advance() whenever the socket is readable. As long as no whole request is there it returns at
once, so a connection that is idle or slow in sending holds no thread; of a large body it is enough that some has come, while
there are threads to spare. What the wire rules say stands in `rgate.http1`; this is the order of events.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from ..errors import ClientClosed, GatewayError, RequestError, RequestTimeout
from ..http1.client_address import normalize_address
from ..http1.environ import CONNECTION_KEY, REQUEST_STREAM_KEY, TRAILERS_KEY
from ..http1.request import RequestHead
from .body_buffer import SPILL_BYTES, BodyBuffer
from .environ import NO_BODY, refused
from .events import READABLE
from .request_body import RequestBody
from .response import ResponseWriter
from .sockets import peer_closed, set_rst_on_close, set_timeout, was_reset
from .tunnels import TunnelRelay

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ..chain.client_connection import ClientConnection, RequestStream
    from ..chain.exchange import Tunnel
    from ..chain.suspended import SuspendedResponse
    from .server import Server

__all__ = ["Connection"]

RECEIVE_BYTES: Final = 65_536
BODY_BYTES: Final = 262_144
REQUESTS_AT_ONCE: Final = 16  # of one connection; if more have come, the others are served first
MAX_EMPTY_LINES: Final = 8  # before a request; RFC 9112 §2.2 wants one to be allowed
LINGER_SECONDS: Final = 2.0
LINGER_BYTES: Final = 1_048_576
LEAVING_SECONDS: Final = 1.0  # what a client sends before it knows of our end has come by then
_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)*")


class Connection:
    """One connection of a client.

    address    where it comes from
    body       what a thread reads of a request while it is still coming
    collecting the body that is still coming while no thread is spent on its request
    deadline   when the server gives up waiting (its own clock); 0 while a thread works on a request
    turn       held by the thread that works on the connection
    events     what epoll has told of it and nobody has acted on
    idle_since when the last request ended, or the connection was made (the server's clock); for one that is idle
    late       the deadline has passed
    leaving    it has been idle for long, and ends unless a request comes at this moment
    remaining  how many more requests it may bring
    queued     more requests have come at once than one turn is for; the next turn comes when the server says so
    ended      the client has said that it sends nothing more; it may still read
    gone       the client has left while a thread worked for it
    on_disconnect    called by the server when the client leaves while a thread works for it
    counted    the address that the admission has counted it for, or ""
    tunnelled  it has left HTTP, and belongs to the server's tunnels
    """

    __slots__ = (
        "_allowed_seconds", "_empty_lines", "_identify", "_lingered_bytes", "_lingering", "_pending", "_response",
        "_rest_of_requests", "_server", "_sock", "_template", "_trusted", "_tunnel", "_wait_seconds", "address", "body",
        "client_disconnected", "collecting", "counted", "deadline", "ended", "events", "idle_since", "late", "leaving", "on_disconnect", "queued",
        "remaining", "tunnelled", "turn",
    )  # fmt: skip
    plain = True  # what comes on the socket is HTTP itself

    def __init__(self, server: Server, sock: socket.socket, peer: tuple[str, int]) -> None:
        self._server = server
        self._sock = sock
        self._pending = b""
        self._rest_of_requests = b""
        self.queued = False
        self.collecting: BodyBuffer | None = None
        self.body: RequestBody | None = None
        self._response = ResponseWriter(server.heads, sock)
        self._response.streams = server.streams
        self._lingering = False
        self._lingered_bytes = 0
        self._empty_lines = (0, 0)  # how many there were, and before which request
        self.remaining = server.config.max_requests_per_connection
        self._wait_seconds = 0.0
        self.idle_since = server.now
        self._allowed_seconds = server.config.head_seconds
        self.deadline = server.now + self._allowed_seconds
        self.counted = ""
        self.late = self.leaving = False
        self.on_disconnect: Callable[[], None] | None = None
        self.ended = self.client_disconnected = False
        self._tunnel: TunnelRelay | None = None
        self.tunnelled = False
        self.events = 0
        self.turn = threading.Lock()
        self._come_from(peer[0], peer[1])

    def _come_from(self, address: str, port: int) -> None:
        """Take note of where the connection has come from."""
        self.address = address = normalize_address(address)
        self._template = {**self._server.template, "REMOTE_ADDR": address, "REMOTE_PORT": str(port), CONNECTION_KEY: self}
        self._trust()

    def _trust(self) -> None:
        """Decide by the proxies that are trusted now what is believed of the requests to come."""
        self._trusted = trusted = self._server.trusted_proxies
        self._identify: Callable[[WSGIEnvironment], object] | None = trusted.apply if self.address in trusted else None

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def busy(self) -> bool:
        """Whether a thread works on a request of this connection."""
        return not self.deadline

    @property
    def deaf(self) -> bool:
        """Whether nothing more is read: its last response is out, and enough has come since."""
        return self._lingered_bytes > LINGER_BYTES

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has come since the last one."""
        waits = self._pending or self._rest_of_requests or self.collecting is not None or self._lingering
        return bool(self.deadline) and not waits

    @property
    def response(self) -> ResponseWriter:
        """The response to the present request."""
        return self._response

    @property
    def relayed(self) -> bool:
        """Whether its response is for the server's streams to relay. Until resume() the connection is theirs."""
        return self._response.relayed is not None

    @property
    def write_seconds(self) -> float:
        """How long it may take nothing of its response."""
        return self._server.config.write_seconds

    def send_interim(self, status: str, headers: Iterable[tuple[str, str]]) -> bool:
        """Send an interim response if the client is to have one; whether it has been sent. Raises ValueError for what is none."""
        try:
            return self._response.send_interim(status, headers)
        except OSError:
            return False

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        """What the kernel knows of its socket. Raises OSError."""
        return self._sock.getsockopt(level, option, size)

    def flush_head(self) -> None:
        """Send the response's head now; its body may be long in coming."""
        with contextlib.suppress(OSError):  # the client is gone, as the first block of the body will find out
            self._response.flush_head()

    def upgrade(self, tunnel: Tunnel, backend: socket.socket, first: bytes, done: Callable[[], object]) -> None:
        """Make this connection a tunnel to `backend` once the response to the present request, a 101, is out.

        `first` is what came from the backend after its own 101. `done` is called once, when the tunnel is over or nothing
        comes of it; until then the backend's socket is the tunnel's. In either case HTTP ends here with this request.
        """
        if self._tunnel is not None:  # an earlier attempt of the same request
            self._tunnel.end("backend")
        self._tunnel = TunnelRelay(tunnel, self._sock, backend, first, done)
        self._response.protocol = tunnel.protocol
        self._response.keep_alive = False

    def receive(self, seconds: float, flags: int = 0) -> bytes:
        """The next bytes, waiting at most `seconds`; b"" when the client is gone. Raises TimeoutError."""
        if not flags and seconds != self._wait_seconds:
            self._wait_seconds = seconds
            set_timeout(self._sock, socket.SO_RCVTIMEO, seconds)
        try:
            return self._sock.recv(BODY_BYTES, flags)
        except BlockingIOError:
            raise TimeoutError from None
        except OSError:
            return b""

    def ask_for_body(self) -> None:
        """Answer `Expect: 100-continue`, unless the final response has begun. Raises OSError."""
        self._response.send_continue()

    @property
    def suspended(self) -> SuspendedResponse | None:
        """What its request waits for; no thread works on it meanwhile, and whoever wakes it has its turn."""
        return self._response.suspended

    @property
    def left(self) -> bool:
        """Whether the client has ended its side. Asked for anew: what epoll tells may be of an earlier socket of that number."""
        return peer_closed(self._sock)

    def advance(self) -> bool:
        """Go on with what has come. False: the connection is over and must be closed, unless its request is suspended."""
        if self._response.suspended is not None:
            return self._go_on()
        if self._rest_of_requests:
            return self.queued or self._take_turn()
        if self._lingering and (self.late or self.deaf):
            return not self.late  # what is not taken holds the client up, and its response is there to be read
        try:
            block = self._sock.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            if self.leaving and self.idle:
                return self._leave()
            return True
        except OSError:
            return False
        if len(block) == RECEIVE_BYTES:
            self.events |= READABLE  # there may be more, and epoll tells of nothing twice
        if self._lingering:
            self._lingered_bytes += len(block)
            return bool(block)
        if not block:
            return False if self.idle else self._give_up()
        if self.collecting is not None:
            return self._collect(self.collecting, block)
        if self._pending:
            judged = len(self._pending)
            block = self._pending + block
            if block.find(b"\r\n\r\n", max(judged - 3, 0)) < 0:
                return self._incomplete(block, judged)
            self._pending = b""
        return self._consume(block)

    def _wait_for_turn(self, block: bytes) -> bool:
        """Let all other connections that are ready come before the rest of many requests sent at once."""
        self._rest_of_requests = block
        self.queued = True
        self.deadline = self._server.now + self._server.config.write_seconds
        self._server.wait_to_send(self)  # also when the client does not read what it has asked for
        return True

    def _take_turn(self) -> bool:
        block, self._rest_of_requests = self._rest_of_requests, b""
        self.events |= READABLE  # what has come meanwhile is still to be read
        return self._consume(block)

    def _consume(self, block: bytes) -> bool:
        """Serve every whole request in `block`, some at once and some in another turn, and keep what is left."""
        server = self._server
        served = 0
        head_cache = server.requests.head_cache
        while block:
            end = block.find(b"\r\n\r\n")
            if end < 0 or end > server.config.max_head_bytes:
                return self._incomplete(block, 0)
            head = block[:end]
            try:
                if block.startswith(b"\r\n"):
                    block = self._without_empty_lines(block)
                    if not block:
                        return self._waits_on()
                    continue
                request = head_cache.get(head) or server.requests.parse(head)
            except RequestError as error:
                self._refuse(error, head)
                return self._linger()
            block = block[end + 4 :]
            length = request.content_length
            if length is None and not request.chunked:
                keep_alive = self._serve(request, NO_BODY, None)
            elif length is not None and len(block) >= length:
                keep_alive = self._serve(request, BytesIO(block[:length]), None)
                block = block[length:]
            else:
                buffer = BodyBuffer(request, server.config.max_body_bytes)
                if not self._is_for_the_app_first(request, block):
                    return self._begin_to_collect(buffer, block)
                buffer.feed(block)
                keep_alive, block = self._serve_stream(buffer, request.expects_continue)
            if not keep_alive:
                return self._ends(block)
            if block:
                served += 1
                if served == REQUESTS_AT_ONCE:
                    return self._wait_for_turn(block)
        return self._rest()

    def _is_for_the_app_first(self, request: RequestHead, block: bytes) -> bool:
        """Whether the app is to know of a request before its body has come, because it may well refuse it by its head: one that
        is too large, or whose client waits to be asked for a body that is large or of unknown length."""
        server = self._server
        length, collected = request.content_length, server.config.body_buffer_bytes
        if length is None:
            return request.expects_continue and not block and server.has_thread_for_upload
        waits = request.expects_continue and length > collected
        return (waits or length > server.lowest_body_limit) and server.has_thread_for_upload

    def _begin_to_collect(self, buffer: BodyBuffer, block: bytes) -> bool:
        self.collecting = buffer
        self._allowed_seconds = self._server.config.body_seconds
        self.deadline = self._server.now + self._allowed_seconds
        if buffer.request.expects_continue and not block:
            try:
                self._response.ask_for_body()
            except OSError:
                return False
        return self._collect(buffer, block)

    def _collect(self, buffer: BodyBuffer, block: bytes) -> bool:
        """More of a body: its request is served when it is whole, or when it is a large one and a thread may wait for it."""
        server = self._server
        config = server.config
        try:
            buffer.feed(block)
        except RequestError as error:
            self._refuse(error, request=buffer.request)
            return self._linger()
        if not buffer.complete:
            if self.late:
                return self._give_up()
            if block:
                paid_seconds = len(block) * server.seconds_per_body_byte
                self.deadline = min(self.deadline + paid_seconds, server.now + self._allowed_seconds)
            if buffer.size < config.body_buffer_bytes:
                return True
            if not server.has_thread_for_upload and (len(buffer.memory) < SPILL_BYTES or buffer.spill(server.spool)):
                return True
        self.collecting = None
        if buffer.complete and buffer.file is None:
            rest = buffer.trailing_data
            keep_alive = self._serve(buffer.request, buffer.stream(), None, buffer.size, buffer.trailers)
        else:
            keep_alive, rest = self._serve_stream(buffer)
        return (self._consume(rest) if rest else self._rest()) if keep_alive else self._ends(rest)

    def _waits_on(self) -> bool:
        """Nothing of a request has come, but empty lines maybe: those put off no deadline."""
        if self.leaving:
            return self._leave()
        return True if self.deadline else self._rest()

    def _rest(self) -> bool:
        self.idle_since = now = self._server.now
        self.deadline = now + self._server.config.keep_alive_seconds
        return True

    def _incomplete(self, block: bytes, judged: int) -> bool:
        """A head that is not whole: refuse what can't become valid, else wait for more.

        The first `judged` bytes have been here before; they are not looked at again, so that a head in tiny pieces costs
        little more than a whole one.
        """
        server = self._server
        try:
            if block.startswith(b"\r\n"):
                block, judged = self._without_empty_lines(block), 0
            if not block:
                self._pending = b""
                return self._waits_on()
            if self.late:
                raise RequestTimeout("the request did not come in time")
            server.requests.check_partial(block, judged, server.config.max_head_bytes)
        except RequestError as error:
            self._refuse(error, block)
            return self._linger()
        if not self._pending:
            self._allowed_seconds = server.config.head_seconds
            self.deadline = server.now + self._allowed_seconds
        self._pending = block
        return True

    def _without_empty_lines(self, block: bytes) -> bytes:
        """`block` without the empty lines that it begins with. Raises RequestError when there are too many before a request."""
        match = _EMPTY_LINES.match(block)
        assert match is not None
        end = match.end()
        before, count = self._empty_lines
        count = end // 2 + (count if before == self.remaining else 0)
        self._empty_lines = (self.remaining, count)
        if count > MAX_EMPTY_LINES:
            raise RequestError("too many empty lines before a request")
        return block[end:]

    def _serve(
        self,
        request: RequestHead,
        stream: Any,
        body: RequestBody | None,
        size: int | None = None,
        trailers: list[tuple[str, str]] | None = None,
    ) -> bool:
        """Run the app for a request. True: another one may follow. `size` is that of a body that was collected, `trailers` what
        came behind it or is still to come."""
        server = self._server
        environ: WSGIEnvironment = {**self._template, **request.environ}
        environ["wsgi.input"] = stream
        if self._trusted is not server.trusted_proxies:  # a reload has changed them
            self._trust()
        if request.chunked:
            environ[TRAILERS_KEY] = trailers
            if size is not None and not trailers:  # only a chunked body has trailers
                environ["CONTENT_LENGTH"] = str(size)
                del environ["HTTP_TRANSFER_ENCODING"]
        if self._identify is not None:
            self._identify(environ)
        self.deadline = 0.0
        response = self._response
        response.unread = None
        response.takes_interim = request.takes_interim
        if body is not None:
            environ[REQUEST_STREAM_KEY] = body
            response.unread = lambda: not body.complete
        if self.ended:
            server.test_soon(self)
        self.remaining -= 1
        response.run(server.app, environ, request.http_minor, request.keep_alive and self.remaining > 0 and not server.draining)
        if response.keep_alive and response.relayed is None and response.suspended is None:
            return True
        # The client has not asked for the end, so it may be sending the next request already.
        self._lingering = request.keep_alive
        return False

    def _serve_stream(self, buffer: BodyBuffer, interim: bool = False) -> tuple[bool, bytes]:
        """The same for a body that is still coming, or stands in a file; gives back what came after it too. `interim` says that
        the client waits to be asked for it."""
        server = self._server
        config = server.config
        is_small = buffer.left is not None and 0 < buffer.size + buffer.left <= config.body_buffer_bytes
        pace = (config.body_seconds, server.seconds_per_body_byte)
        body = RequestBody(self, buffer, *pace, interim=interim, is_small=is_small)
        self.body = body
        if not body.complete:
            server.uploads.add(self)
        try:
            size = buffer.size if body.complete else None
            keep_alive = self._serve(buffer.request, body, body, size, body.trailers)
        finally:
            if self._response.suspended is None:
                self.body = None
            server.uploads.discard(self)
        if self._response.suspended is not None:
            return False, b""
        return self._after_stream(body, keep_alive)

    def _after_stream(self, body: RequestBody, keep_alive: bool) -> tuple[bool, bytes]:
        self.body = None
        if not body.drain():
            self._lingering, keep_alive = True, False
        body.close()
        return keep_alive, body.trailing_data

    def has_all_of_body(self) -> None:
        """Nothing of the body is waited for any more."""
        self._server.uploads.discard(self)

    def _give_up(self) -> bool:
        """The deadline has passed, or the client has ended its side, and what has come is no whole request."""
        buffer = self.collecting
        if not self.late:
            request = None if buffer is None else buffer.request
            self._refuse(ClientClosed("within the request", incomplete=True), self._pending, request=request)
        elif buffer is None:
            self._refuse(RequestTimeout("the request did not come in time"), self._pending)
        else:
            self._refuse(RequestTimeout("the body came too slowly"), request=buffer.request)
        return self._linger()

    def _go_on(self) -> bool:
        """Go on with a request that was suspended."""
        response = self._response
        self.on_disconnect = None
        response.resume()
        if response.suspended is not None:
            return False
        keep_alive, rest = response.keep_alive, self._rest_of_requests
        self._rest_of_requests = b""
        if keep_alive:
            self._lingering = False
        if self.body is not None:
            keep_alive, rest = self._after_stream(self.body, keep_alive)
        if not keep_alive:
            return self._ends(rest)
        self.events |= READABLE  # what has come meanwhile is still to be read
        return self._consume(rest) if rest else self._rest()

    def turn_away(self, error: GatewayError) -> bool:
        """Read no request, but answer `error`. False: the connection must be closed at once."""
        self._response.streams = None  # nobody has its turn yet
        self._refuse(error)
        return self._linger()

    def _refuse(self, error: GatewayError, head: bytes = b"", request: RequestHead | None = None) -> None:
        """Answer a request that could not be read, through the outer chain, and end the connection after it. `request` is its
        head, when that could be read."""
        environ: WSGIEnvironment = {**self._template, **refused(error, head)}
        if request is not None:
            environ |= request.environ
            for key in ("CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING"):
                environ.pop(key, None)  # there is no body for anybody
        self._drop_body()
        self._lingering = True
        self.deadline = 0.0
        self._response.unread = None
        self._response.takes_interim = False
        self._response.run(self._server.app, environ, 1, False)

    def _ends(self, rest: bytes) -> bool:
        """No request may follow, or not yet. `rest` is what the client has sent all the same: the next request, or the first of
        a tunnel, if this becomes one."""
        if self._response.relayed is not None or self._response.suspended is not None:
            self._rest_of_requests = rest
            return False
        if self._tunnel is not None:
            if self._response.switched and not self._response.cut:
                self._tunnel.begin(rest)
                self.tunnelled = True
                self._server.relay(self, self._tunnel)
                return False
            self._tunnel.end("client" if self._response.cut else "backend")
        if self._response.cut:
            if self._response.ends_with_connection:
                # Without a length only a reset tells the client that this is not the end (RFC 9112 §8).
                set_rst_on_close(self._sock)
            return False
        return self._linger() if self._lingering else False

    def _linger(self) -> bool:
        """The response is out but the client may still be sending: closing now would reset the connection, and the
        client might lose the response (RFC 9112 §9.6). So end our half and read on for a moment, if nobody is waiting for
        the place."""
        if self.relayed or (self.late and self._server.is_crowded):  # relayed: it is not out yet
            return False
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        if self.late:  # nothing more is read of it. If it were closed at its next byte, a reset could take its answer away
            self.late, self._lingered_bytes = False, LINGER_BYTES + 1
        self.deadline = self._server.now + LINGER_SECONDS
        return True

    def _leave(self) -> bool:
        """End an idle connection: our half first. A request that is on its way meets an end, not a reset, and is read to no
        effect, so a client knows that it was not served (RFC 9112 §9.3.1, §9.6)."""
        self._lingering = self._linger()
        self.deadline = self._server.now + LEAVING_SECONDS
        return self._lingering

    def resume(self) -> None:
        """Go on after a response that has been relayed. Called by the thread that has relayed it, which has the turn and waits
        for nothing."""
        rest, self._rest_of_requests = self._rest_of_requests, b""
        if not self._response.keep_alive:
            open_ = self._ends(rest)
        else:
            self._lingering = False
            open_ = self._rest()
            if rest:
                self._rest_of_requests, self.queued = rest, True
                self.deadline = self._server.now + self._server.config.write_seconds
        if not open_:
            if not self.tunnelled:
                self._server.close_connection(self)
            return
        self.turn.release()
        with contextlib.suppress(OSError, ValueError):  # closed at this moment
            self._server.wait_to_send(self)  # which tells again of what has come meanwhile, too

    @property
    def behind_since(self) -> float:
        """Of an unfinished request: since when its head is coming, or its body is behind the lowest rate (the server's clock)."""
        return self.deadline - self._allowed_seconds

    @property
    def unfinished(self) -> bool:
        """Whether a request has begun to come and is not whole, so that no thread works on it."""
        return bool(self.deadline and (self._pending or self.collecting is not None) and not self._lingering)

    def retire(self) -> None:
        """It has been idle for long enough: have advance() called, which will end it, or serve what has come. Called by the
        server."""
        self.leaving = True
        with contextlib.suppress(OSError, ValueError):  # closed at this moment
            self._server.wait_to_send(self)

    def expire(self) -> None:
        """The deadline has passed: have advance() called, which will see the end of the stream. Called by the server."""
        self.late = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    def end_after_response(self) -> None:
        """Let the response that is under way be the last one, if its head, which says so, is not out yet."""
        self._response.ending = True

    def cut(self) -> None:
        """End it although a thread may work for it. Called by the server at its very end."""
        self.lose_client()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def note_end(self) -> None:
        """Something is told about the client's end while a thread works for it, or its request is suspended. Called from another
        thread.

        An end of sending is not an end of reading (RFC 9112 §9.6): only a reset means that the client is gone, and that comes
        as an answer to what is sent.
        """
        if was_reset(self._sock):
            self.lose_client()
        elif peer_closed(self._sock):
            self.ended = True
            self._server.test_soon(self)

    def test_client(self) -> bool:
        """See whether a client that has ended its side is still there, while a response is under way; false while that cannot
        be done yet. Called by the server."""
        body = self.body
        if body is not None and not body.complete:
            return not self.busy  # whoever reads it will meet the end
        if self.busy:
            with contextlib.suppress(OSError):  # then the reset is told of in a moment
                self._response.test_client()
        return True

    def give_up_parked(self) -> None:
        """End a request that is suspended, without an answer. Called by the server at its very end."""
        self._response.give_up_parked()

    def lose_client(self) -> None:
        """The client has left while a thread works for it: end what that thread waits for. Called from another thread."""
        # Who takes `on_disconnect` away looks at `gone` afterwards, so what is ended here is in nobody else's hands yet.
        self.client_disconnected = True
        on_disconnect = self.on_disconnect
        if on_disconnect is not None:
            on_disconnect()

    def limit_writes(self, seconds: float) -> None:
        """Let each send take at most this long. Called by the server, from any thread."""
        with contextlib.suppress(OSError):  # closed at this moment
            set_timeout(self._sock, socket.SO_SNDTIMEO, seconds)

    def close(self) -> None:
        self._drop_body()
        self._sock.close()
        # It is in there itself. A cycle would keep it in memory, with what OpenSSL has for it, until the collector comes.
        self._template = {}
        self._response.unread = self.on_disconnect = None

    def _drop_body(self) -> None:
        buffer, self.collecting = self.collecting, None
        if buffer is not None:
            buffer.close()


if TYPE_CHECKING:  # the two are all that chain and forwarding see of the client's side
    _CONNECTION: type[ClientConnection] = Connection
    _REQUEST_STREAM: type[RequestStream] = RequestBody
