"""Bodies on their way: the request's to the backend, the response's to the client, both in bounded memory."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Final

from ..errors import GatewayError, RequestError, RequestTimeout, ResponseTimeout, Truncated, UpstreamClosed
from ..wire.chunked import LAST_CHUNK, ChunkedReader, chunk_head
from .pipe import SPLICE, Pipe
from .upstream import BLOCK_BYTES, UpstreamConnection

__all__ = ["ResponseBody", "Upload"]

LARGE_BLOCK_BYTES: Final = 262_144
SPLICE_FROM_BYTES: Final = 262_144  # a pipe costs some system calls of its own


class Upload:
    """A request body that is not wholly at hand.

    `stream` is wsgi.input. When it is one of rgate's own server it has `fileno()` and `buffered`, and pump() waits for
    the client and the backend at once, so that neither an early response nor a slow client holds up the other. A large one
    of known length between plain sockets goes through a pipe. close() it if it does not become `complete`, before the
    connection is closed: then that ends with a reset, since there are servers that take the end of the stream for the end of
    the body.
    """

    __slots__ = ("_connection", "_left", "_outgoing", "_own", "_pipe", "_read", "_stream", "_timeout_seconds", "complete")

    def __init__(self, stream: Any, length: int | None, connection: UpstreamConnection, timeout_seconds: float) -> None:
        self._stream = stream
        self._read: Callable[[int], bytes] = getattr(stream, "read1", None) or stream.read
        self._left = length
        self._connection = connection
        self._outgoing = memoryview(b"")
        self._timeout_seconds = timeout_seconds
        self._own = hasattr(stream, "buffered")
        self._pipe: Pipe | None = None
        large = length is not None and length >= SPLICE_FROM_BYTES
        if SPLICE and large and self._own and stream.plain and type(connection.sock) is socket.socket:
            self._pipe = Pipe()
        self.complete = False
        connection.uploading = True

    def close(self) -> None:
        """Give up what has not been sent. May be called again."""
        if not self.complete:
            self._connection.reset_when_closed()
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def pump(self) -> None:
        """Move the body until it is complete, or the backend has begun to answer or takes no more of it.

        Raises what reading raises, and ResponseTimeout.
        """
        if self._pipe is None:
            self._pump()
            return
        sock = self._connection.sock
        sock.setblocking(False)  # splice(2) knows no other way not to wait for a socket
        try:
            self._pump()
        finally:
            sock.setblocking(True)

    def _pump(self) -> None:
        connection = self._connection
        if connection.holds:
            return
        own, pipe = self._own, self._pipe
        poll = select.poll()
        while not self.complete and not connection.broken:
            if not self._outgoing and not (pipe and pipe.holds):
                if own and not self._stream.buffered:
                    poll.register(connection.sock, select.POLLIN)
                    poll.register(self._stream.fileno(), select.POLLIN)
                    began = monotonic()
                    ready = dict(poll.poll(max(self._stream.wait_seconds, 0) * 1000))
                    self._stream.has_waited(monotonic() - began)
                    poll.unregister(self._stream.fileno())
                    if connection.sock.fileno() in ready:
                        if connection.has_come:
                            return
                        continue
                    if not ready:
                        raise RequestTimeout("the body came too slowly")
                    if pipe is None:
                        self._stream.take_in()
                        continue
                self._next_block()
                if own:  # whether the backend has answered has just been looked at
                    self._send()
                continue
            poll.register(connection.sock, select.POLLIN | select.POLLOUT)
            events = poll.poll(self._timeout_seconds * 1000)
            if not events:
                raise ResponseTimeout("the backend does not take the request body")
            if events[0][1] & ~select.POLLOUT and connection.has_come:
                return
            self._send()

    def _next_block(self) -> None:
        if self._pipe is not None and not self._stream.buffered:
            assert self._left is not None
            self._left -= self._stream.move_to(self._pipe.take)
            return
        block = self._read(LARGE_BLOCK_BYTES if self._left is None else min(LARGE_BLOCK_BYTES, self._left))
        if self._left is None:
            self._outgoing = memoryview(b"%b%b\r\n" % (chunk_head(len(block)), block) if block else LAST_CHUNK)
            self._left = None if block else 0
        elif block:
            self._outgoing = memoryview(block)
            self._left -= len(block)
        else:
            raise RequestError("the request body ended early")

    def _send(self) -> None:
        pipe, sent = self._pipe, 0
        try:
            if pipe is not None and pipe.holds:
                pipe.give(self._connection.sock.fileno())
            else:
                sent = self._connection.sock.send(self._outgoing, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self._connection.broken = str(error)
            return
        self._outgoing = self._outgoing[sent:]
        self.complete = not self._outgoing and self._left == 0 and not (pipe and pipe.holds)
        if self.complete:
            self._connection.uploading = False
            self.close()


class ResponseBody:
    """A response body as a WSGI iterable: each block as it comes, checked against its framing.

    Raises Truncated when the backend ends, stalls or errs before the body is complete, so that the client's connection
    is cut and no partial body looks whole. `done(whole, fault)` is called once, at the end or in close(); `fault` is what
    the backend has done wrong, if it is that what ends the body.
    """

    __slots__ = ("_chunks", "_connection", "_done", "_first", "_left", "_upload")

    def __init__(
        self,
        length: int | None,
        chunked: bool,
        first: bytes,
        connection: UpstreamConnection,
        upload: Upload | None,
        done: Callable[[bool, Truncated | None], None],
    ) -> None:
        self._connection = connection
        self._upload = upload
        self._done: Callable[[bool, Truncated | None], None] | None = done
        self._first = first
        self._left = length
        self._chunks = ChunkedReader() if chunked else None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._done is None:
            raise StopIteration
        try:
            block = self._next()
        except (GatewayError, ValueError) as error:
            truncated = Truncated(str(error))
            clients_own = self._connection.aborted or isinstance(error, RequestError)
            self._end(False, None if clients_own else truncated)
            if self._connection.aborted:
                raise RequestError("the client has left") from error
            raise truncated from error
        if not block:
            raise StopIteration
        return block

    def _next(self) -> bytes:
        while True:
            block, self._first = self._first, b""
            if not block:
                if self._left == 0:
                    self._end(True)
                    return b""
                if self._upload is not None and not self._upload.complete:
                    self._upload.pump()
                block = self._connection.receive(
                    BLOCK_BYTES if self._left is None or self._left < BLOCK_BYTES else LARGE_BLOCK_BYTES
                )
                if not block:
                    if self._left is None and self._chunks is None:
                        self._end(False)
                        return b""
                    raise UpstreamClosed("closed within the response body")
            if self._left is not None:
                if len(block) > self._left:
                    block, self._left = block[: self._left], 0
                    self._end(False)  # more came than was announced: nothing after it can be trusted
                    return block
                self._left -= len(block)
                if not self._left:
                    self._end(True)
                return block
            if self._chunks is None:
                return block
            payload = self._chunks.feed(block)
            if self._chunks.complete:
                self._end(not self._chunks.rest)
                return payload
            if payload:
                return payload

    def _end(self, whole: bool, fault: Truncated | None = None) -> None:
        done, self._done = self._done, None
        if done is not None:
            if self._upload is not None:
                self._upload.close()
            done(whole and (self._upload is None or self._upload.complete), fault)

    def close(self) -> None:
        """Give the connection up when the body was not read to its end."""
        self._end(False)
