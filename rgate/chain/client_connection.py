"""The client's side as the chain and the forwarder see it: the connection, and the body of the request.

rgate's own server puts both in the environ, under CONNECTION_KEY and REQUEST_STREAM_KEY (rgate/http1/environ.py). Under another
WSGI server there is no ClientConnection, and forwarding/upload.py adapts its wsgi.input to a RequestStream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket

    from .exchange import Tunnel

__all__ = ["ClientConnection", "RequestStream"]


class ClientConnection(Protocol):
    """The client's connection while the app runs for one of its requests: environ["rgate.connection"].

    The thread that runs the request calls the methods. A server thread, which watches the sockets of all clients, does two
    things when the client disconnects during the request, in this order: it sets `client_disconnected`, then it calls
    `on_disconnect` if there is one. So the thread of a request that is about to wait for something else than the client
    keeps to this order, too:

        connection.on_disconnect = abort          # 1. from here on the server thread ends the wait
        if connection.client_disconnected:        # 2. the client had left before 1, so nothing was called
            ...                                   #    give up without waiting
        ...                                       # wait
        connection.on_disconnect = None           # 3. no call begins after this
        if connection.client_disconnected:        # 4. a call may have ended what was waited for
            ...                                   #    close it; another request must not use it

    Without 2 a client that leaves just before 1 would be missed; without 4 a connection to a backend that abort() has shut
    down could go back to its pool. The assignments and reads are atomic under the interpreter's lock, there is no other.

    on_disconnect        called without arguments by a server thread, or None. It must be quick and must not raise. Written by
                         the thread of the request: the forwarder (to abort its connection to the backend), and the server
                         itself for a suspended request (to cancel the wait)
    client_disconnected  whether the client has disconnected while a request was being served; never false again after that
    """

    on_disconnect: Callable[[], None] | None

    @property
    def client_disconnected(self) -> bool: ...

    def send_interim(self, status: str, headers: Iterable[tuple[str, str]]) -> bool:
        """Send an interim response (RFC 9110 §15.2) and return whether it was sent.

        It is not when the client is not to have any, when the final response has begun, or when the client has left. Waits
        for a client that reads slowly. Raises ValueError for a status or header that an interim response cannot have. Called
        by the forwarder for those of the backend, and by plugins through send_interim() of exchange.py.
        """

    def flush_head(self) -> None:
        """Send the head of the response now instead of with the first block of its body. Never raises.

        Called by the forwarder after start_response when nothing of the body has arrived from the backend.
        """

    def upgrade(self, tunnel: Tunnel, backend: socket.socket, first: bytes, done: Callable[[], object]) -> None:
        """Make this connection a tunnel to `backend` once the response to the current request, a 101, has been sent.

        `first` is what the backend has sent after its own 101. From this call on the server owns the backend's socket, until
        it calls `done`: exactly once, from any thread, when the tunnel ends or could not begin. Called by the forwarder,
        before start_response.
        """


class RequestStream(Protocol):
    """A request body that is not complete in memory: environ["rgate.request_stream"], and wsgi.input unless a middleware has
    put something else there.

    rgate's own server passes a body that is complete and in memory as a BytesIO, and then there is no RequestStream. Only
    the thread of the request calls the methods. `complete` and fileno() may also be used by other threads: `bulkhead` polls
    the streams of all requests in flight to see which of them wait for their clients.

    Whatever reads raises RequestTimeout when the client is too slow, BodyTooLarge over the limit, ClientClosed when the
    client leaves before the end of the body, and RequestError when the chunked coding is broken.

    wait_seconds  how long may still be waited for the client; the caller of poll() uses it as timeout
    """

    wait_seconds: float

    @property
    def complete(self) -> bool:
        """Whether nothing more is expected from the client. What has arrived may still have to be read."""

    @property
    def is_small(self) -> bool:
        """Whether the body is small enough to be read completely before the backend is sent anything: it was passed before it
        was complete only so that a limit could be checked early (`body_limit`)."""

    @property
    def awaits_continue(self) -> bool:
        """Whether the client has sent `Expect: 100-continue` and has not been told to send the body. Reading tells it."""

    @property
    def buffered(self) -> bool:
        """Whether read1() returns without waiting for the client. Raises what reading raises."""

    @property
    def can_splice(self) -> bool:
        """Whether splice_to() may be used: the length is known, and the socket carries the body itself (no TLS)."""

    def fileno(self) -> int:
        """The descriptor of the client's socket, to poll for more of the body. Raises OSError or ValueError when closed."""

    def read(self, size: int) -> bytes:
        """`size` bytes; fewer only at the end of the body."""

    def read1(self, size: int) -> bytes:
        """The next bytes, at least one and at most `size`; b"" only at the end of the body."""

    def fill_nowait(self) -> None:
        """Read what has arrived at the socket into the buffer, without waiting."""

    def splice_to(self, fill: Callable[[int, int], int]) -> int:
        """Call `fill(fd, max_bytes)`, which moves bytes of the body out of the client's socket without waiting, and return how
        many it moved. Only while nothing is buffered. 0 when it raises BlockingIOError."""

    def has_waited(self, seconds: float) -> None:
        """Count time that the caller has spent in poll() on fileno() against `wait_seconds`."""

    def set_limit(self, limit: int) -> None:
        """Lower the limit of the body to `limit` bytes, before any of it is read. Raises BodyTooLarge if more has arrived."""
