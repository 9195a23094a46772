"""The response body on its way from the backend to the client, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from ..chain.exchange import RelayableBody
from ..errors import ClientClosed, GatewayError, RequestError, ResponseTimeout, UpstreamClosed, UpstreamTruncated
from ..http1.chunked import ChunkedDecoder
from .connection import BLOCK_BYTES, UpstreamConnection

if TYPE_CHECKING:
    from .upload import Upload

__all__ = ["ResponseBody"]

LARGE_BLOCK_BYTES: Final = 262_144


class ResponseBody(RelayableBody):
    """A response body as a WSGI iterable: each block as it arrives, checked against the framing.

    Raises UpstreamTruncated when the backend ends, stalls or breaks the framing before the body is complete, so that the client's
    connection is cut and a partial body never looks complete. `done(complete, fault, trailers)` is called once, at the end or in
    close(), by the thread that reads or closes: the thread of the request, or the server's relay. `fault` is set when the backend
    has ended the body by an error, and `trailers` has the lines after a chunked body.
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
        """False while the request body is still being sent: then the client and the backend must be waited for at once."""
        return self._upload is None

    def count_waits(self, counting: AbstractContextManager[object]) -> None:
        self._counting = counting

    @property
    def complete(self) -> bool:
        return self._done is None

    def read_now(self, most_bytes: int, timed_out: bool = False) -> bytes | None:
        def receive(size: int) -> bytes | None:
            block = self._connection.receive_now(min(size, most_bytes))
            if block is None and timed_out:
                raise ResponseTimeout("nothing more came from the backend in time", begun=True)
            return block

        return self._next(receive)

    def _wait_for(self, size: int) -> bytes:
        if self._upload is not None and not self._upload.complete:
            self._upload.pump()
        return self._connection.receive(size)

    def _next(self, receive: Callable[[int], bytes | None]) -> bytes | None:
        if self._done is None:
            return b""
        try:
            return self._read(receive)
        except (GatewayError, ValueError) as error:
            truncated = UpstreamTruncated(str(error))
            by_client = self._connection.aborted or isinstance(error, RequestError)
            self._end(False, None if by_client else truncated)
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
                    self._end(False)  # more than announced: nothing after it can be trusted
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

    def _end(self, complete: bool, fault: UpstreamTruncated | None = None) -> None:
        done, self._done = self._done, None
        if done is not None:
            if self._upload is not None:
                self._upload.close()
            trailers = () if self._chunks is None else self._chunks.trailers
            done(complete and (self._upload is None or self._upload.complete), fault, trailers)

    def close(self) -> None:
        """Give the connection up unless the body was read to its end."""
        self._end(False)
