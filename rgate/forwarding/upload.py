"""The upload: a request body on its way from the client to the backend, in bounded memory."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import socket
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from ..errors import BodyTooLarge, ClientClosed, RequestTimeout, ResponseTimeout
from ..http1.chunked import chunk_head, last_chunk
from ..http1.environ import REQUEST_STREAM_KEY

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from _typeshed.wsgi import WSGIEnvironment

    from ..chain.client_connection import RequestStream
    from .connection import UpstreamConnection

__all__ = ["SPLICE", "ForeignRequestStream", "SplicePipe", "Upload", "request_stream"]

BLOCK_BYTES: Final = 262_144
CONTINUE_SECONDS: Final = 1.0  # a backend that has not asked for the body by then may not support Expect (RFC 9110 §10.1.1)
SPLICE_FROM_BYTES: Final = 262_144  # below this the system calls for the pipe cost more than it saves

SPLICE: Final = hasattr(os, "splice") and hasattr(fcntl, "F_SETPIPE_SZ")
PIPE_BYTES: Final = 262_144  # more is not faster, and a user may have 64 MiB of pipes in all (pipe-user-pages-soft)
_SPLICE_FLAGS: Final = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)


def request_stream(environ: WSGIEnvironment) -> RequestStream:
    """The request's body as a RequestStream: that of rgate's own server, or an adapter around wsgi.input when this comes from a
    middleware or from another WSGI server."""
    stream: RequestStream | None = environ.get(REQUEST_STREAM_KEY)
    if stream is not None and stream is environ["wsgi.input"]:
        return stream
    return ForeignRequestStream(environ["wsgi.input"])


class ForeignRequestStream(io.RawIOBase):
    """A RequestStream around a wsgi.input that can only be read. It never waits for the client other than in read().

    So `buffered` and `complete` are always true, there is nothing to poll, and a backend that answers early is noticed only
    between two reads. It is a file, too, for a middleware that reads wsgi.input.
    """

    wait_seconds = 0.0
    complete = True
    buffered = True
    is_small = False
    awaits_continue = False
    can_splice = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._read: Callable[[int], bytes] = getattr(stream, "read1", None) or stream.read  # PEP 3333 has no read1()
        self._left: int | None = None

    def set_limit(self, limit: int) -> None:
        """Have reading raise BodyTooLarge when there is more than `limit` bytes."""
        self._left = limit if self._left is None else min(limit, self._left)

    def read1(self, size: int = BLOCK_BYTES) -> bytes:
        """The next bytes, at most `size`; b"" at the end."""
        block = self._read(size)
        if self._left is not None:
            self._left -= len(block)
            if self._left < 0:
                raise BodyTooLarge("more than this route accepts")
        return block

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        block = self.read1(len(view))
        view[: len(block)] = block
        return len(block)

    def read(self, size: int | None = -1) -> bytes:
        """`size` bytes, or everything."""
        wanted = -1 if size is None else size
        blocks: list[bytes] = []
        while wanted:
            block = self.read1(BLOCK_BYTES if wanted < 0 else wanted)
            if not block:
                break
            blocks.append(block)
            wanted = -1 if wanted < 0 else wanted - len(block)
        return b"".join(blocks)

    def fill_nowait(self) -> None:
        """Never called, as `buffered` is true."""

    def has_waited(self, seconds: float) -> None:
        """Never called, as `buffered` is true."""

    def splice_to(self, fill: Callable[[int, int], int]) -> int:
        """Not possible, see `can_splice`."""
        raise io.UnsupportedOperation("splice")


class Upload:
    """A request body that is not complete in memory, from a RequestStream to the connection to a backend.

    pump() waits for the client and the backend at once, so that neither an early response nor a slow client holds up the other. A
    large body of known length between plain sockets goes through a SplicePipe. `length` None: the body is sent with the chunked
    coding, and `trailers` is called for its trailer fields when it has been read to its end.

    Unless the upload becomes `complete`, call close() before the connection is closed: it makes this end with a reset, because
    there are servers that take the end of the stream for the end of the body.

    It is used by the thread of the request alone. While the body is on its way, `connection.uploading` is true, which
    UpstreamConnection.abort() reads in a server thread.
    """

    __slots__ = (
        "_connection", "_held_until", "_left", "_outgoing", "_pipe", "_stream", "_timeout_seconds", "_trailers", "complete",
    )  # fmt: skip

    def __init__(
        self,
        stream: RequestStream,
        length: int | None,
        connection: UpstreamConnection,
        timeout_seconds: float,
        trailers: Callable[[], Iterable[tuple[str, str]]] = tuple,
    ) -> None:
        self._stream = stream
        self._left = length
        self._connection = connection
        self._outgoing = memoryview(b"")
        self._timeout_seconds = timeout_seconds
        self._trailers = trailers
        self._held_until = 0.0
        self._pipe: SplicePipe | None = None
        large = length is not None and length >= SPLICE_FROM_BYTES
        if SPLICE and large and stream.can_splice and type(connection.sock) is socket.socket:
            self._pipe = SplicePipe()
        self.complete = False
        connection.uploading = True

    def hold(self) -> None:
        """Send nothing before the backend has asked for the body, the client sends it unasked, or CONTINUE_SECONDS have passed.

        For a request with `Expect: 100-continue`. Reading the stream then tells the client to send.
        """
        self._held_until = monotonic() + CONTINUE_SECONDS

    def release(self) -> None:
        """End hold(): the backend has asked for the body."""
        self._held_until = 0.0

    @property
    def is_held(self) -> bool:
        """Whether hold() is still in effect."""
        return bool(self._held_until)

    def close(self, answered: bool = False) -> None:
        """Drop the rest of the body. `answered`: the backend has answered without it. May be called again."""
        if answered:
            self._connection.uploading = False
        elif not self.complete:
            self._connection.set_rst_on_close()
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def pump(self) -> None:
        """Move the body until it is complete, the backend begins to answer, or it accepts no more of it.

        Raises what reading raises, and ResponseTimeout.
        """
        if self._pipe is None:
            self._pump()
            return
        sock = self._connection.sock
        sock.setblocking(False)  # splice(2) has no other way not to wait for a socket
        try:
            self._pump()
        finally:
            sock.setblocking(True)

    def _pump(self) -> None:
        connection = self._connection
        if connection.has_buffered_data or (self.is_held and self._backend_answers()):
            return
        stream, pipe = self._stream, self._pipe
        poll = select.poll()
        while not self.complete and not connection.write_error:
            if not self._outgoing and not (pipe and pipe.pending):
                if not stream.buffered:
                    poll.register(connection.sock, select.POLLIN)
                    poll.register(stream.fileno(), select.POLLIN)
                    began = monotonic()
                    ready = dict(poll.poll(max(stream.wait_seconds, 0) * 1000))
                    stream.has_waited(monotonic() - began)
                    poll.unregister(stream.fileno())
                    if connection.sock.fileno() in ready:
                        if connection.has_response_data:
                            return
                        continue
                    if not ready:
                        raise RequestTimeout("the body came too slowly")
                    if pipe is None:
                        stream.fill_nowait()
                        continue
                    self._next_block()
                    self._send()
                    continue
                self._next_block()
                if connection.has_input():  # a ForeignRequestStream may have waited for long
                    return
                self._send()
                continue
            poll.register(connection.sock, select.POLLIN | select.POLLOUT)
            events = poll.poll(self._timeout_seconds * 1000)
            if not events:
                raise ResponseTimeout("the backend does not read the request body")
            if events[0][1] & ~select.POLLOUT and connection.has_response_data:
                return
            self._send()

    def _backend_answers(self) -> bool:
        """Whether the backend answers while the body is held. If not, release() it."""
        connection = self._connection
        poll = select.poll()
        poll.register(connection.sock, select.POLLIN)
        poll.register(self._stream.fileno(), select.POLLIN)
        while (left_seconds := self._held_until - monotonic()) > 0:
            ready = dict(poll.poll(left_seconds * 1000))
            if connection.sock.fileno() in ready:
                if connection.has_response_data:
                    return True
            elif ready:
                break  # the client sends, or has left
        self.release()
        return False

    def _next_block(self) -> None:
        if self._pipe is not None and not self._stream.buffered:
            assert self._left is not None
            self._left -= self._stream.splice_to(self._pipe.fill)
            return
        block = self._stream.read1(BLOCK_BYTES if self._left is None else min(BLOCK_BYTES, self._left))
        if self._left is None:
            coded = b"%b%b\r\n" % (chunk_head(len(block)), block) if block else last_chunk(tuple(self._trailers()))
            self._outgoing = memoryview(coded)
            self._left = None if block else 0
        elif block:
            self._outgoing = memoryview(block)
            self._left -= len(block)
        else:
            raise ClientClosed("within the request body", incomplete=True)

    def _send(self) -> None:
        pipe, sent = self._pipe, 0
        try:
            if pipe is not None and pipe.pending:
                pipe.drain(self._connection.sock.fileno())
            else:
                sent = self._connection.sock.send(self._outgoing, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self._connection.write_error = str(error)
            return
        self._outgoing = self._outgoing[sent:]
        self.complete = not self._outgoing and self._left == 0 and not (pipe and pipe.pending)
        if self.complete:
            self._connection.uploading = False
            self.close()


class SplicePipe:
    """A pipe between two plain sockets, given by their descriptors, for bytes that never enter this process: splice(2).

    A megabyte between plain sockets takes 320 µs of CPU this way, and 600 µs with recv() and send() in blocks of 256 KiB.
    `pending` is the number of bytes in the pipe. fill() never waits, drain() only if the socket is blocking. Both raise
    BlockingIOError when there is nothing to move, and OSError. close() it.
    """

    __slots__ = ("_reading", "_writing", "pending")

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.pending = 0
        with contextlib.suppress(OSError):  # then it keeps its default size
            fcntl.fcntl(self._writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def fill(self, fd: int, max_bytes: int) -> int:
        """Move up to `max_bytes` that have arrived on a socket into the pipe; returns how many, 0 at the end of the stream."""
        moved = os.splice(fd, self._writing, max_bytes, flags=_SPLICE_FLAGS)
        self.pending += moved
        return moved

    def drain(self, fd: int) -> None:
        """Move the bytes in the pipe to a socket, as many as it accepts."""
        self.pending -= os.splice(self._reading, fd, self.pending, flags=_SPLICE_FLAGS)

    def close(self) -> None:
        """Close both ends, with the bytes in the pipe. May be called again."""
        if self._reading >= 0:
            os.close(self._reading)
            os.close(self._writing)
            self._reading = self._writing = -1
