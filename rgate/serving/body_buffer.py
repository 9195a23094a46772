"""A request body that is collected while it comes, without a thread."""

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

SPILL_BYTES: Final = 65_536  # what is in memory goes to the file when it is as much


class BodyBuffer:
    """What has come of the body of `request`, decoded: in a file if spill() was called, and behind that in memory.

    size      how many bytes have come
    memory    those of them that are not in `file`
    complete  nothing is missing; then `rest` has what came after the body
    left      how many bytes are still to come, when the length is known
    chunks    else what reads the chunked coding

    A body over `limit` bytes is an error. One thread at a time. close() it, unless what it has is handed on.
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
        """Take what has come on the connection. Raises RequestError, BodyTooLarge: then the connection is of no further use."""
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
        """Have the file take what is in memory. False: there is no room for it."""
        if self.file is None:
            self.file = spool.open()
        if self.file is None or not self.file.write(self.memory):
            return False
        self.memory = bytearray()
        return True

    @property
    def trailers(self) -> list[tuple[str, str]]:
        """The trailer fields behind a chunked body that is complete, as (name, value)."""
        return [] if self.chunks is None else read_trailers(self.chunks.trailers)

    def stream(self) -> BytesIO:
        """The body, when it is complete and all in memory."""
        return BytesIO(self.memory)

    def close(self) -> None:
        """Drop what has come. May be called again."""
        file, self.file = self.file, None
        if file is not None:
            file.close()
        self.memory = bytearray()
