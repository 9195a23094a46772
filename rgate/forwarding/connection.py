"""One connection to a backend: urllib3 opens it, and requests and responses go over its socket directly.

urllib3's own exchange is a browser's (it retries, redirects, decodes and adds headers), and through http.client a small
keep-alive exchange costs 62 to 115 µs of CPU where a raw socket takes 20.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
)

from ..errors import (
    BadGateway,
    BadResponse,
    ConnectionRefused,
    ConnectTimeout,
    GatewayError,
    ResponseTimeout,
    TLSFailed,
    Unreachable,
    UpstreamClosed,
)
from ..http1.response import ResponseHead, ResponseParser
from ..tls.stream import TLSStream
from .connecting import ConnectQueue

if TYPE_CHECKING:
    from ..chain.client_connection import ClientConnection
    from ..config import Timeouts
    from .upload import Upload

__all__ = ["BLOCK_BYTES", "StaleConnection", "UpstreamConnection", "UpstreamTLSConnection", "to_gateway_error"]

BLOCK_BYTES: Final = 65_536
UNSENT_BYTES: Final = 131_072  # of an upload that the kernel buffers for a backend that reads slowly; its default is megabytes
MAX_INTERIM_RESPONSES: Final = 16


class StaleConnection(Exception):
    """A pooled connection was closed by the backend before a byte of the response arrived. Never leaves this package."""


class UpstreamConnection(HTTPConnection):
    """A plain connection to a backend. Of urllib3's class it uses the connecting and close(); the rest is here, without
    http.client.

    One thread at a time uses it; only abort() is called by others.

    response_parser    the parser of its pool
    connect_queue      the queue of its pool
    reused             a response has been read from it, so the next request is not its first
    write_error        why the backend accepts nothing more, or ""; it may have answered before
    uploading          a request body is on its way
    aborted            abort() was called
    idle_since         when it was released to the pool (monotonic)
    has_response_data  when the socket is readable: whether this is because of a response, and not only of TLS messages
    has_buffered_data  whether receive() returns at once although the socket may not be readable
    """

    sock: socket.socket
    response_parser: ResponseParser
    connect_queue: ConnectQueue
    reused = False
    write_error = ""
    uploading = False
    aborted = False
    idle_since = 0.0
    has_response_data = True
    has_buffered_data = False
    _wait_seconds = 0.0
    _poll: Callable[[int], list[tuple[int, int]]]

    def open(self, timeouts: Timeouts) -> None:
        """Wait for a place in the connect queue, then connect. Raises the GatewayError that says why that failed."""
        began = monotonic()
        until = began + timeouts.connect_seconds
        if not self.connect_queue.enter(self, until):
            raise ConnectTimeout("too many connections to this endpoint are being opened")
        entered = monotonic()
        self.timeout = until - entered
        fault = None
        try:
            self.connect()
        except (HTTPError, OSError) as error:
            self.close()
            fault = to_gateway_error(error)
            raise fault from error
        finally:
            self.connect_queue.connected(self, monotonic() - entered, not isinstance(fault, ConnectTimeout))
        poll = select.poll()  # made once: it is used before every request
        poll.register(self.sock, select.POLLIN)
        self._poll = poll.poll
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self.sock.setblocking(True)

    def set_io_timeout(self, seconds: float) -> None:
        """Limit each single wait for the backend, to send or to receive, to so many seconds."""
        if seconds == self._wait_seconds:
            return
        self._wait_seconds = seconds
        # The kernel's own timeouts: with Python's, every call would begin with a poll().
        whole = int(seconds)
        timeval = struct.pack("@ll", whole, int((seconds - whole) * 1_000_000))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def has_input(self) -> bool:
        """Whether receive() has something to return or raise without waiting: data, the end of the stream, or an error.

        An idle connection that has some cannot be used any more."""
        return self._poll(0) != []

    def send_bytes(self, block: bytes) -> None:
        """Send all of `block`, or as much as the backend accepts before it closes: it may have answered already. Raises
        ResponseTimeout."""
        try:
            self.sock.sendall(block)
        except (BlockingIOError, TimeoutError) as error:
            raise ResponseTimeout("the backend does not read the request") from error
        except OSError as error:
            self.write_error = str(error)

    def receive(self, size: int = BLOCK_BYTES) -> bytes:
        """More of a response that has begun, b"" at the end. Raises ResponseTimeout, UpstreamClosed."""
        try:
            return self.sock.recv(size)
        except (BlockingIOError, TimeoutError) as error:
            raise ResponseTimeout("nothing more came from the backend in time", begun=True) from error
        except OSError as error:
            raise UpstreamClosed(str(error)) from error

    def receive_now(self, size: int) -> bytes | None:
        """The same without waiting; None when nothing has arrived."""
        try:
            return self.sock.recv(size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise UpstreamClosed(str(error)) from error

    def read_head(self, client: ClientConnection | None = None, upload: Upload | None = None) -> tuple[ResponseHead, bytes]:
        """The head of the final response (or of a 101), and the bytes that arrived with it.

        Interim responses are sent to `client`, except for 100, which releases `upload`. The upload continues after an interim
        response, as these may arrive while the request body is on its way. A head that has begun must be complete within the
        time of a single wait. Raises StaleConnection, UpstreamClosed, ResponseTimeout, BadResponse.
        """
        parser = self.response_parser
        try:
            block = self.sock.recv(BLOCK_BYTES)
        except (BlockingIOError, TimeoutError) as error:
            raise ResponseTimeout("no response in time") from error
        except OSError as error:
            raise (StaleConnection if self.reused else UpstreamClosed)(str(error)) from error
        if not block:
            raise (StaleConnection if self.reused else UpstreamClosed)(self.write_error or "closed before a response")
        for _ in range(MAX_INTERIM_RESPONSES):
            end = block.find(b"\r\n\r\n")
            if end < 0:
                block, end = self._rest_of_head(block)
            if end > parser.max_head_bytes:
                raise BadResponse("the response head is too large")
            raw = block[:end]
            head = parser.head_cache.get(raw) or parser.parse(raw)
            block = block[end + 4 :]
            if not self.reused:
                self.connect_queue.accepted(self)
            if head.code >= 200 or head.code == 101:
                self.reused = True
                return head, block
            if head.code == 100:
                if upload is not None:
                    upload.release()
            elif client is not None:
                client.send_interim(head.status, head.headers)
            if not block:
                if upload is not None:
                    upload.pump()
                block = self.receive()
                if not block:
                    raise UpstreamClosed("closed after an interim response")
        raise BadResponse("too many interim responses")

    def _rest_of_head(self, block: bytes) -> tuple[bytes, int]:
        """Receive until the head that begins with `block` is complete; returns all bytes and the end of the head."""
        until = monotonic() + self._wait_seconds
        end = -1
        checked = scanned = 0
        while end < 0:
            checked = self.response_parser.check_partial(block, checked, scanned)
            if len(block) > self.response_parser.max_head_bytes:
                raise BadResponse("the response head is too large")
            if monotonic() > until:
                raise ResponseTimeout("the response head was not complete in time", begun=True)
            more = self.receive()
            if not more:
                raise UpstreamClosed("closed within the response head")
            scanned = len(block)
            block += more
            end = block.find(b"\r\n\r\n", max(scanned - 3, 0))
        return block, end

    def abort(self) -> None:
        """End the connection, on which the thread of the request may be blocked, because the client has left. Never raises.

        Called by a server thread. During an upload it only wakes the blocked thread, which then resets the connection: the
        backend must not see a regular end.
        """
        self.aborted = True
        with contextlib.suppress(OSError, AttributeError):
            if self.uploading:
                self.set_rst_on_close()
            self.sock.shutdown(socket.SHUT_RD if self.uploading else socket.SHUT_RDWR)

    def set_rst_on_close(self) -> None:
        """Make close() reset the connection, so that a partial request does not look complete. Never raises."""
        with contextlib.suppress(OSError, AttributeError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class UpstreamTLSConnection(UpstreamConnection, HTTPSConnection):
    """A TLS connection to a backend. urllib3 would make its socket one that cannot be polled, so only its options are used."""

    _stream: TLSStream | None = None

    def connect(self) -> None:
        """Connect and do the handshake, both within `timeout`. Raises urllib3's exceptions, and OSError."""
        until = monotonic() + float(self.timeout or 0)
        assert self.ssl_context is not None
        self.sock = sock = self._new_conn()
        sock.setblocking(True)
        try:
            stream = TLSStream(sock, self.ssl_context, (self.server_hostname or self.host).rstrip("."))
        except ValueError as error:
            raise ssl.SSLError(f"not a name that a certificate can have: {error}") from None
        self.sock = cast(socket.socket, stream)
        self._stream = stream
        stream.connect(until)

    def close(self) -> None:
        """Close, with a close_notify unless another thread has aborted the connection or an upload is cut off."""
        if self._stream is not None and not self.aborted and not self.uploading:
            self._stream.send_close_notify()
        super().close()

    def has_input(self) -> bool:
        return super().has_input() and self.has_response_data

    @property
    def has_response_data(self) -> bool:  # type: ignore[override]
        return self._stream is None or self._stream.readable

    @property
    def has_buffered_data(self) -> bool:  # type: ignore[override]
        return self._stream is not None and self._stream.has_buffered_plaintext


def to_gateway_error(error: BaseException) -> GatewayError:
    """The fault for an exception of urllib3 or of the system."""
    for kinds, fault in _FAULTS:
        if isinstance(error, kinds):
            if fault is Unreachable and isinstance(error.__cause__, ConnectionRefusedError):
                return ConnectionRefused(str(error))
            return fault(str(error))
    return BadGateway(str(error))


# The most specific first: NameResolutionError and NewConnectionError are subclasses of ConnectTimeoutError.
_FAULTS: Final[tuple[tuple[tuple[type[BaseException], ...], type[GatewayError]], ...]] = (
    ((NameResolutionError,), Unreachable),
    ((NewConnectionError,), Unreachable),
    ((ConnectTimeoutError,), ConnectTimeout),
    ((ReadTimeoutError,), ResponseTimeout),
    ((urllib3.exceptions.SSLError, ssl.SSLError), TLSFailed),
    ((urllib3.exceptions.ProtocolError,), UpstreamClosed),
    ((ConnectionRefusedError,), ConnectionRefused),
    ((ConnectionError,), UpstreamClosed),
    ((TimeoutError,), ConnectTimeout),
    ((OSError,), Unreachable),
    ((HTTPError,), BadGateway),
)
