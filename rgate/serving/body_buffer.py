"""A request body that is buffered while it arrives, without a thread."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Final

from ..errors import BodyTooLarge, RequestError
from ..http1.chunked import ChunkedDecoder
from ..http1.trailers import read_trailers

if TYPE_CHECKING:
    from ..http1.request import RequestHead
    from .spool import Spool, SpooledBody

__all__ = ["SPILL_BYTES", "BodyBuffer"]

SPILL_BYTES: Final = 65_536  # a body in memory is moved to its file when it has grown to this size


class BodyBuffer:
    """The part of the body of `request` that has arrived, decoded: in a file if spill() was called, and after that in memory.

    size           how many bytes have arrived
    memory         those of them that are not in `file`
    complete       the whole body has arrived
    trailing_data  what the client has sent behind a complete body
    left           how many bytes are still missing, when the length is known
    chunks         the decoder of a chunked body, else None

    A body over `limit` bytes is an error. One thread at a time. close() it, unless its file is passed on.
    """

    __slots__ = ("chunks", "complete", "file", "left", "limit", "memory", "request", "size", "trailing_data")

    def __init__(self, request: RequestHead, limit: int | None) -> None:
        self.request = request
        self.limit = limit
        self.left = request.content_length
        self.chunks = ChunkedDecoder(counts_framing=True) if request.content_length is None else None
        self.size = 0
        self.memory = bytearray()
        self.file: SpooledBody | None = None
        self.complete = False
        self.trailing_data = b""

    def feed(self, block: bytes) -> None:
        """Add bytes that the connection has received. Raises RequestError, BodyTooLarge: then the connection must end."""
        chunks = self.chunks
        if chunks is None:
            assert self.left is not None
            if len(block) >= self.left:
                block, self.trailing_data = block[: self.left], block[self.left :]
                self.complete = True
            self.left -= len(block)
        else:
            try:
                block = chunks.feed(block)
            except ValueError as error:
                raise RequestError(str(error)) from error
            self.complete, self.trailing_data = chunks.complete, chunks.trailing_data
        self.size += len(block)
        if self.limit is not None and self.size > self.limit:
            raise BodyTooLarge(f"more than {self.limit} bytes")
        self.memory += block

    def spill(self, spool: Spool) -> bool:
        """Move what is in memory to the file. False: there is no room for it."""
        if self.file is None:
            self.file = spool.open()
        if self.file is None or not self.file.write(self.memory):
            return False
        self.memory = bytearray()
        return True

    @property
    def trailers(self) -> list[tuple[str, str]]:
        """The trailer fields of a complete chunked body, as (name, value)."""
        return [] if self.chunks is None else read_trailers(self.chunks.trailers)

    def stream(self) -> BytesIO:
        """A complete body that is all in memory, as a file."""
        return BytesIO(self.memory)

    def close(self) -> None:
        """Drop what has arrived. May be called again."""
        file, self.file = self.file, None
        if file is not None:
            file.close()
        self.memory = bytearray()
