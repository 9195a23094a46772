"""Bodies on their way: the request's to the backend, the response's to the client, both in bounded memory."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from time import monotonic
from typing import Any, Final

from ..chain.exchange import RelayableBody
from ..errors import ClientClosed, GatewayError, RequestError, RequestTimeout, ResponseTimeout, UpstreamClosed, UpstreamTruncated
from ..http1.chunked import ChunkedDecoder, chunk_head, last_chunk
from .splice import SPLICE, SplicePipe
from .upstream import BLOCK_BYTES, UpstreamConnection

__all__ = ["ResponseBody", "Upload"]

LARGE_BLOCK_BYTES: Final = 262_144
CONTINUE_SECONDS: Final = 1.0  # a backend that asks for no body by then may know nothing of Expect (RFC 9110 §10.1.1)
SPLICE_FROM_BYTES: Final = 262_144  # a pipe costs some system calls of its own


class Upload:
    """A request body that is not wholly at hand.

    `stream` is wsgi.input. When it is one of rgate's own server it has `fileno()` and `buffered`, and pump() waits for
    the client and the backend at once, so that neither an early response nor a slow client holds up the other. A large one
    of known length between plain sockets goes through a pipe. `trailers` is asked for the trailer fields of a chunked one when
    that has been read to its end. close() it if it does not become `complete`, before the connection is closed: then that ends
    with a reset, since there are servers that take the end of the stream for the end of the body.
    """

    __slots__ = (
        "_connection",
        "_held_until",
        "_left",
        "_outgoing",
        "_own",
        "_pipe",
        "_read",
        "_stream",
        "_timeout_seconds",
        "_trailers",
        "complete",
    )

    def __init__(
        self,
        stream: Any,
        length: int | None,
        connection: UpstreamConnection,
        timeout_seconds: float,
        trailers: Callable[[], Iterable[tuple[str, str]]] = tuple,
    ) -> None:
        self._stream = stream
        self._read: Callable[[int], bytes] = getattr(stream, "read1", None) or stream.read
        self._left = length
        self._connection = connection
        self._outgoing = memoryview(b"")
        self._timeout_seconds = timeout_seconds
        self._trailers = trailers
        self._held_until = 0.0
        self._own = hasattr(stream, "fill_nowait")
        self._pipe: SplicePipe | None = None
        large = length is not None and length >= SPLICE_FROM_BYTES
        if SPLICE and large and self._own and stream.can_splice and type(connection.sock) is socket.socket:
            self._pipe = SplicePipe()
        self.complete = False
        connection.uploading = True

    def hold(self) -> None:
        """Send nothing before the backend has asked for it, the client sends unasked, or CONTINUE_SECONDS have passed. For a
        request of rgate's own server with `Expect: 100-continue`; the client is told to send when the body may go."""
        self._held_until = monotonic() + CONTINUE_SECONDS

    def release(self) -> None:
        """Hold it no longer: the backend has asked for it."""
        self._held_until = 0.0

    @property
    def is_held(self) -> bool:
        """Whether nothing of it has been asked for yet."""
        return bool(self._held_until)

    def close(self, answered: bool = False) -> None:
        """Give up what has not been sent; `answered` says that the backend does not want it. May be called again."""
        if answered:
            self._connection.uploading = False
        elif not self.complete:
            self._connection.set_rst_on_close()
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
        if connection.holds or (self.is_held and self._backend_answers()):
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
                        self._stream.fill_nowait()
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

    def _backend_answers(self) -> bool:
        """Whether something has come from the backend while the body was held. If not, it is held no longer."""
        connection = self._connection
        poll = select.poll()
        poll.register(connection.sock, select.POLLIN)
        poll.register(self._stream.fileno(), select.POLLIN)
        while (left_seconds := self._held_until - monotonic()) > 0:
            ready = dict(poll.poll(left_seconds * 1000))
            if connection.sock.fileno() in ready:
                if connection.has_come:
                    return True
            elif ready:
                break  # the client sends, or has left
        self.release()
        return False

    def _next_block(self) -> None:
        if self._pipe is not None and not self._stream.buffered:
            assert self._left is not None
            self._left -= self._stream.splice_to(self._pipe.take)
            return
        block = self._read(LARGE_BLOCK_BYTES if self._left is None else min(LARGE_BLOCK_BYTES, self._left))
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


class ResponseBody(RelayableBody):
    """A response body as a WSGI iterable: each block as it comes, checked against its framing.

    Raises Truncated when the backend ends, stalls or errs before the body is complete, so that the client's connection
    is cut and no partial body looks whole. `done(whole, fault, trailers)` is called once, at the end or in close(); `fault` is
    what the backend has done wrong, if it is that what ends the body, and `trailers` the lines that have come behind it.
    """

    __slots__ = ("_chunks", "_connection", "_counting", "_done", "_first", "_left", "_upload", "wait_seconds")

    def __init__(
        self,
        length: int | None,
        chunked: bool,
        first: bytes,
        connection: UpstreamConnection,
        upload: Upload | None,
        done: Callable[[bool, UpstreamTruncated | None, Sequence[bytes]], None],
        wait_seconds: float,
    ) -> None:
        self._connection = connection
        self._upload = upload
        self._done: Callable[[bool, UpstreamTruncated | None, Sequence[bytes]], None] | None = done
        self._first = first
        self._left = length
        self._chunks = ChunkedDecoder() if chunked else None
        self.wait_seconds = wait_seconds
        self._counting: AbstractContextManager[object] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._counting is None:
            block = self._next(self._wait_for)
        else:
            with self._counting:
                block = self._next(self._wait_for)
        if not block:
            raise StopIteration
        return block

    def fileno(self) -> int:
        return self._connection.sock.fileno()

    @property
    def relayable(self) -> bool:
        """While the request is still being sent, the client and the backend are waited for at once."""
        return self._upload is None

    def count_waits(self, counting: AbstractContextManager[object]) -> None:
        self._counting = counting

    @property
    def complete(self) -> bool:
        return self._done is None

    def read_now(self, most_bytes: int, timed_out: bool = False) -> bytes | None:
        def receive(most: int) -> bytes | None:
            block = self._connection.receive_now(min(most, most_bytes))
            if block is None and timed_out:
                raise ResponseTimeout("nothing more came from the backend in time", begun=True)
            return block

        return self._next(receive)

    def _wait_for(self, most: int) -> bytes:
        if self._upload is not None and not self._upload.complete:
            self._upload.pump()
        return self._connection.receive(most)

    def _next(self, receive: Callable[[int], bytes | None]) -> bytes | None:
        if self._done is None:
            return b""
        try:
            return self._read(receive)
        except (GatewayError, ValueError) as error:
            truncated = UpstreamTruncated(str(error))
            clients_own = self._connection.aborted or isinstance(error, RequestError)
            self._end(False, None if clients_own else truncated)
            if self._connection.aborted:
                raise ClientClosed("within the response") from error
            raise truncated from error

    def _read(self, receive: Callable[[int], bytes | None]) -> bytes | None:
        while True:
            block: bytes | None
            block, self._first = self._first, b""
            if not block:
                if self._left == 0:
                    self._end(True)
                    return b""
                block = receive(BLOCK_BYTES if self._left is None or self._left < BLOCK_BYTES else LARGE_BLOCK_BYTES)
                if block is None:
                    return None
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
                self._end(not self._chunks.trailing_data)
                return payload
            if payload:
                return payload

    def _end(self, whole: bool, fault: UpstreamTruncated | None = None) -> None:
        done, self._done = self._done, None
        if done is not None:
            if self._upload is not None:
                self._upload.close()
            trailers = () if self._chunks is None else self._chunks.trailers
            done(whole and (self._upload is None or self._upload.complete), fault, trailers)

    def close(self) -> None:
        """Give the connection up when the body was not read to its end."""
        self._end(False)
