"""wsgi.input for request bodies that are still arriving: read from the socket, strictly, in bounded memory."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from ..errors import BodyTooLarge, ClientClosed, RequestError, RequestTimeout
from ..http1.trailers import read_trailers

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from .body_buffer import BodyBuffer
    from .connection import Connection

__all__ = ["RequestBody"]


class RequestBody(io.RawIOBase):
    """A request body as a file: the bytes in `buffer`, then those that arrive. read(n) returns n bytes unless the body ends
    before; read1(n) returns what has arrived.

    Raises RequestTimeout when the client is too slow, BodyTooLarge over the limit, ClientClosed when the client closes or
    resets within the body, RequestError when the chunked coding is broken. After any of these the connection is closed.

    A client is too slow when this thread has waited for it `patience_seconds` longer than the received bytes account for at
    the lowest rate, `seconds_per_byte` each (infinity: any byte restores the whole `patience_seconds`). Time that the backend
    takes is not counted.

    complete       all of the body has arrived
    is_small       the body must be read to its end before a backend is contacted
    wait_seconds   how long the client may still be waited for
    trailing_data  what the client has sent behind the body: the next request
    trailers       the fields behind a chunked body, once that is complete
    """

    def __init__(
        self,
        connection: Connection,
        buffer: BodyBuffer,
        patience_seconds: float,
        seconds_per_byte: float,
        *,
        expects_continue: bool,
        is_small: bool,
    ) -> None:
        self._connection = connection
        self._left = buffer.left
        self._chunks = buffer.chunks
        self._limit = buffer.limit
        self._received_bytes = buffer.size
        self._spooled = buffer.file
        self._ready = b"" if buffer.file is not None else bytes(buffer.memory)
        self._behind_file = b"" if buffer.file is None else bytes(buffer.memory)
        self._expects_continue = expects_continue
        self._failed = False
        self.is_small = is_small
        self._patience_seconds = patience_seconds
        self._seconds_per_byte = seconds_per_byte
        self.wait_seconds = patience_seconds
        self.trailing_data = buffer.trailing_data
        self.complete = buffer.complete
        self.trailers = buffer.trailers if buffer.complete else []

    def close(self) -> None:
        """Drop what has been received. May be called again."""
        spooled, self._spooled = self._spooled, None
        if spooled is not None:
            spooled.close()
        super().close()

    def fileno(self) -> int:
        """The client's socket, to poll."""
        return self._connection.fileno()

    @property
    def awaits_continue(self) -> bool:
        """Whether the client waits for 100 Continue before it sends the body."""
        return self._expects_continue and not self._received_bytes and not self.is_small

    @property
    def buffered(self) -> bool:
        """Whether read1() would return without waiting for the client. Raises what read1() does."""
        if self._expects_continue:
            self._send_continue()
        return bool(self._spooled is not None or self._ready or self.complete)

    def fill_nowait(self) -> None:
        """Receive what has arrived, for read1() to return. Raises what read1() does."""
        with suppress(TimeoutError):
            self._read_block(socket.MSG_DONTWAIT)

    @property
    def can_splice(self) -> bool:
        """Whether splice_to() may be used: the length is known, and the bytes on the socket are those of the body."""
        return self._chunks is None and self._connection.is_plaintext

    def splice_to(self, fill: Callable[[int, int], int]) -> int:
        """Have `fill(fd, max_bytes)` move what has arrived of the body, without waiting; how many bytes it moved.

        Only while nothing is buffered. BlockingIOError from `fill` counts as 0 bytes. Raises ClientClosed.
        """
        assert self._left is not None
        try:
            moved = fill(self.fileno(), self._left)
        except BlockingIOError:
            return 0
        except OSError:
            moved = 0
        if not moved:
            self._failed = True
            raise ClientClosed("within the request body", incomplete=True)
        self._left -= moved
        self._progress(moved)
        if not self._left:
            self._end()
        return moved

    def readable(self) -> bool:
        return True

    def set_limit(self, limit: int) -> None:
        """Lower the limit of the body, before it is read. Raises BodyTooLarge when more than that has arrived already."""
        self._limit = limit if self._limit is None else min(limit, self._limit)
        if self._received_bytes > self._limit:
            self._refuse()

    def has_waited(self, seconds: float) -> None:
        """Count the time that the caller has spent polling for the client."""
        self.wait_seconds -= seconds

    def read1(self, size: int = 65_536) -> bytes:
        """The next bytes, at most `size`, waiting for them; b"" only at the end."""
        if not self._ready and (self._spooled is not None or not self.complete):
            self._fill()
        block, self._ready = self._ready[:size], self._ready[size:]
        return block

    def read(self, size: int | None = -1) -> bytes:
        """`size` bytes, or everything."""
        wanted = -1 if size is None else size
        blocks: list[bytes] = []
        while wanted:
            block = self.read1(65_536 if wanted < 0 else wanted)
            if not block:
                break
            blocks.append(block)
            wanted = -1 if wanted < 0 else wanted - len(block)
        return b"".join(blocks)

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        block = self.read1(len(view))
        view[: len(block)] = block
        return len(block)

    def readline(self, size: int | None = -1) -> bytes:
        """A line, in large steps (RawIOBase's own takes a byte at a time)."""
        limit = -1 if size is None else size
        blocks: list[bytes] = []
        while limit:
            block = self.read1(65_536 if limit < 0 else limit)
            if not block:
                break
            at = block.find(b"\n") + 1
            if at:
                blocks.append(block[:at])
                self._ready = block[at:] + self._ready
                break
            blocks.append(block)
            limit = -1 if limit < 0 else limit - len(block)
        return b"".join(blocks)

    def drain(self) -> bool:
        """Drop what has arrived of a body that the app did not read, without waiting; true when the body is complete."""
        self._ready = b""
        return self.complete and not self._failed

    def _send_continue(self) -> None:
        self._expects_continue = False
        if self._received_bytes:
            return
        try:
            self._connection.send_continue()
        except OSError as error:
            self._failed = True
            raise ClientClosed("before its request body") from error

    def _fill(self) -> None:
        """Make `_ready` non-empty, or the body complete."""
        if self._spooled is not None:
            self._ready = self._spooled.read(65_536)
            if self._ready:
                return
            self._spooled.close()
            self._spooled = None
            self._ready, self._behind_file = self._behind_file, b""
            if self._ready:
                return
        if self._expects_continue:
            self._send_continue()
        try:
            while not self._ready and not self.complete:
                self._read_block()
        except TimeoutError as error:
            self._failed = True
            raise RequestTimeout("the body came too slowly") from error

    def _read_block(self, flags: int = 0) -> None:
        """Receive one block. Raises TimeoutError when none arrives in time."""
        if self._failed:
            raise RequestError("the request body cannot be read any further")
        try:
            block = self._receive(flags)
            if not block:
                raise ClientClosed("within the request body", incomplete=True)
            self._feed(block)
        except RequestError:
            self._failed = True
            raise

    def _receive(self, flags: int) -> bytes:
        connection = self._connection
        if flags:
            block = connection.receive(0, flags)
        else:
            began = monotonic()
            block = connection.receive(max(self.wait_seconds, 0.001))
            self.wait_seconds -= monotonic() - began
        self._progress(len(block))
        return block

    def _progress(self, size: int) -> None:
        """Extend the time for a client that has sent `size` bytes."""
        if size:
            self.wait_seconds = min(self._patience_seconds, self.wait_seconds + size * self._seconds_per_byte)

    def _feed(self, block: bytes) -> None:
        if self._chunks is None:
            assert self._left is not None
            self._ready, self.trailing_data = block[: self._left], block[self._left :]
            self._left -= len(self._ready)
            if not self._left:
                self._end()
            return
        try:
            self._ready = self._chunks.feed(block)
        except ValueError as error:
            raise RequestError(str(error)) from error
        self.trailing_data = self._chunks.trailing_data
        self._received_bytes += len(self._ready)
        if self._limit is not None and self._received_bytes > self._limit:
            self._refuse()
        if self._chunks.complete:
            self._end()

    def _end(self) -> None:
        self.complete = True
        if self._chunks is not None:
            self.trailers += read_trailers(self._chunks.trailers)
        self._connection.body_received()

    def _refuse(self) -> None:
        self._failed = True
        self.complete = False  # even if it was: nothing more is read on this connection
        raise BodyTooLarge(f"more than {self._limit} bytes")
