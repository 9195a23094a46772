"""Connections to backends: urllib3 pools, connects and raises; the exchange on the wire is ours, and so is TLS on it.

Why not urllib3's own exchange: it is a browser's (it retries, redirects, decodes, adds headers), and through http.client
one small keep-alive exchange costs 62 to 115 µs of CPU where a raw socket takes 20.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable, Collection
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
)

from ..config import Timeouts, UpstreamTLS
from ..discovery.model import Address
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
from ..tls.client_context import context_for
from ..tls.stream import TLSStream
from .connecting import ConnectQueue

if TYPE_CHECKING:
    from .response_body import Upload

__all__ = ["BLOCK_BYTES", "StaleConnection", "Upstream", "UpstreamConnection", "UpstreamPools", "translate"]

BLOCK_BYTES: Final = 65_536
UNSENT_BYTES: Final = 131_072  # so much of an upload waits in the kernel for a backend that reads slowly, not megabytes
MAX_INTERIM_HEADS: Final = 16

# A pooled connection rests at most this long: less than the keep-alive time of common servers (5 s), so that closing
# races are rare.
MAX_IDLE_SECONDS: Final = 4.0
MAX_IDLE_CONNECTIONS: Final = 256


class StaleConnection(Exception):
    """A pooled connection was closed by the backend before a byte of the response came. Never leaves this package."""


class _RawConnection(HTTPConnection):
    """What both connection classes add to urllib3's: sending and receiving without http.client."""

    sock: socket.socket
    responses: ResponseParser
    connecting: ConnectQueue
    used = False  # a response has been read from it before
    broken = ""  # why the backend takes nothing more; it may have answered before
    uploading = False  # a request body is under way
    aborted = False  # abort() was called
    rested_since = 0.0
    has_come = True  # whether it is an answer that makes the socket readable, when it is readable, and not only TLS at work
    holds = False  # whether there is something to receive although the socket is not readable
    _wait_seconds = 0.0
    _poll: Callable[[int], list[tuple[int, int]]]

    def open(self, timeouts: Timeouts) -> None:
        """Connect, when it is our turn. Raises the GatewayError that says why it is not possible."""
        began = monotonic()
        until = began + timeouts.connect_seconds
        if not self.connecting.enter(self, until):
            raise ConnectTimeout("too many connections to this endpoint are being made")
        entered = monotonic()
        self.timeout = until - entered
        fault = None
        try:
            self.connect()
        except (HTTPError, OSError) as error:
            self.close()
            fault = translate(error)
            raise fault from error
        finally:
            self.connecting.connected(self, monotonic() - entered, not isinstance(fault, ConnectTimeout))
        poll = select.poll()  # made once: it is asked before every request
        poll.register(self.sock, select.POLLIN)
        self._poll = poll.poll
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self.sock.setblocking(True)

    def allow(self, seconds: float) -> None:
        """Let every single wait for the backend take at most this long."""
        if seconds == self._wait_seconds:
            return
        self._wait_seconds = seconds
        # The kernel's own timeouts: with Python's, every call would be a poll() first.
        whole = int(seconds)
        timeval = struct.pack("@ll", whole, int((seconds - whole) * 1_000_000))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def is_quiet(self) -> bool:
        """Whether a resting connection is still good: not closed, and nothing has been sent that nobody asked for."""
        return not self._poll(0)

    def send_bytes(self, block: bytes) -> None:
        """Send all of it, or as much as the backend takes: an answer to less may be there already. Raises ResponseTimeout."""
        try:
            self.sock.sendall(block)
        except (BlockingIOError, TimeoutError) as error:
            raise ResponseTimeout("the backend does not take the request") from error
        except OSError as error:
            self.broken = str(error)

    def receive(self, most: int = BLOCK_BYTES) -> bytes:
        """More of a response that has begun, b"" at the end. Raises ResponseTimeout, UpstreamClosed."""
        try:
            return self.sock.recv(most)
        except (BlockingIOError, TimeoutError) as error:
            raise ResponseTimeout("nothing more came from the backend in time", begun=True) from error
        except OSError as error:
            raise UpstreamClosed(str(error)) from error

    def receive_now(self, most: int) -> bytes | None:
        """The same without waiting; None when nothing has come."""
        try:
            return self.sock.recv(most, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise UpstreamClosed(str(error)) from error

    def read_head(self, client: Any = None, upload: Upload | None = None) -> tuple[ResponseHead, bytes]:
        """The final response head (101 is one), and the bytes that came with it.

        Interim responses are given to the client's connection, `client`, but for 100, which lets the body of `upload` go. That
        goes on after an interim response, as they may come while a request body is still on its way. A head that has begun
        must be whole in the time of a single wait. Raises StaleConnection, UpstreamClosed, ResponseTimeout, BadResponse.
        """
        responses = self.responses
        try:
            block = self.sock.recv(BLOCK_BYTES)
        except (BlockingIOError, TimeoutError) as error:
            raise ResponseTimeout("no response in time") from error
        except OSError as error:
            raise (StaleConnection if self.used else UpstreamClosed)(str(error)) from error
        if not block:
            raise (StaleConnection if self.used else UpstreamClosed)(self.broken or "closed before a response")
        for _ in range(MAX_INTERIM_HEADS):
            end = block.find(b"\r\n\r\n")
            if end < 0:
                block, end = self._rest_of_head(block)
            if end > responses.max_head_bytes:
                raise BadResponse("the response head is too large")
            raw = block[:end]
            head = responses.head_cache.get(raw) or responses.read(raw)
            block = block[end + 4 :]
            if not self.used:
                self.connecting.accepted(self)
            if head.code >= 200 or head.code == 101:
                self.used = True
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
        """What has come when the head that begins with `block` is whole, and where it ends."""
        until = monotonic() + self._wait_seconds
        end = -1
        judged = searched = 0
        while end < 0:
            judged = self.responses.check_incomplete(block, judged, searched)
            if len(block) > self.responses.max_head_bytes:
                raise BadResponse("the response head is too large")
            if monotonic() > until:
                raise ResponseTimeout("the response head was not whole in time", begun=True)
            more = self.receive()
            if not more:
                raise UpstreamClosed("closed within the response head")
            searched = len(block)
            block += more
            end = block.find(b"\r\n\r\n", max(searched - 3, 0))
        return block, end

    def abort(self) -> None:
        """End a connection that another thread may be blocked on, because the client has left. Never raises.

        Within an upload it wakes that thread only, which then resets the connection: the backend must not see an end.
        """
        self.aborted = True
        with contextlib.suppress(OSError, AttributeError):
            if self.uploading:
                self.set_rst_on_close()
            self.sock.shutdown(socket.SHUT_RD if self.uploading else socket.SHUT_RDWR)

    def set_rst_on_close(self) -> None:
        """Have close() end the connection with a reset: what has been sent must not look complete. Never raises."""
        with contextlib.suppress(OSError, AttributeError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class UpstreamConnection(_RawConnection):
    """A plain connection."""


class UpstreamTLSConnection(_RawConnection, HTTPSConnection):
    """A TLS connection. urllib3's own way would make a socket of it that cannot be polled; only its options are used."""

    _stream: TLSStream | None = None

    def connect(self) -> None:
        """Connect and shake hands, all within `timeout`. Raises what urllib3 does, and OSError."""
        until = monotonic() + float(self.timeout or 0)
        assert self.ssl_context is not None
        self.sock = sock = self._new_conn()
        sock.setblocking(True)
        try:
            stream = TLSStream(sock, self.ssl_context, (self.server_hostname or self.host).rstrip("."))
        except ValueError as error:
            raise ssl.SSLError(f"no name that a certificate could be for: {error}") from None
        self.sock = cast(socket.socket, stream)
        self._stream = stream
        stream.connect(until)

    def close(self) -> None:
        """Close, and tell the backend, unless another thread has ended it already."""
        if self._stream is not None and not self.aborted and not self.uploading:
            self._stream.send_close_notify()
        super().close()

    def is_quiet(self) -> bool:
        return super().is_quiet() or not self.has_come

    @property
    def has_come(self) -> bool:  # type: ignore[override]
        return self._stream is None or self._stream.has_come

    @property
    def holds(self) -> bool:  # type: ignore[override]
        return self._stream is not None and self._stream.holds


class _ConnectionPool(HTTPConnectionPool):
    """A pool whose resting connections lie in a deque: taking and giving back is atomic and needs no lock."""

    ConnectionCls = UpstreamConnection
    responses: ResponseParser

    def __init__(self, host: str, port: int | None = None, **options: Any) -> None:
        super().__init__(host, port, **{**options, "maxsize": 1})
        self.resting: deque[UpstreamConnection] = deque()
        self.connecting = ConnectQueue()
        self.retired = False  # the endpoint is gone; what is still under way is closed at its end

    def fresh(self, timeouts: Timeouts) -> UpstreamConnection:
        """A new connection, open. Raises Unavailable faults."""
        connection = self._new_conn()
        assert isinstance(connection, _RawConnection)
        connection.responses = self.responses
        connection.connecting = self.connecting
        connection.open(timeouts)
        return connection  # type: ignore[return-value]

    def take(self, timeouts: Timeouts) -> UpstreamConnection:
        """A resting connection that is still good, or a new one. Each is looked at, however short its rest (0.9 µs): what has
        come meanwhile, asked for by nobody, would be taken for the answer to the next request, and so on. Raises
        Unavailable faults."""
        while True:
            try:
                connection = self.resting.pop()
            except IndexError:
                return self.fresh(timeouts)
            rested = monotonic() - connection.rested_since
            if rested > MAX_IDLE_SECONDS or not connection.is_quiet():
                connection.close()
                continue
            return connection

    def give_back(self, connection: UpstreamConnection) -> None:
        """Let a connection rest whose exchange is complete on both sides."""
        connection.rested_since = monotonic()
        if len(self.resting) < MAX_IDLE_CONNECTIONS and not self.retired and not connection.broken:
            self.resting.append(connection)
        else:
            connection.close()

    def rest(self, may: bool) -> None:
        """Let connections rest here, or close those that do and each one at the end of its exchange."""
        self.retired = not may
        while self.retired and self.resting:
            with contextlib.suppress(IndexError):
                self.resting.pop().close()

    def expire(self) -> None:
        """Close what has rested too long. The oldest lie on the left."""
        while self.resting:
            try:
                connection = self.resting.popleft()
            except IndexError:
                return
            if monotonic() - connection.rested_since <= MAX_IDLE_SECONDS:
                self.resting.appendleft(connection)
                return
            connection.close()

    def close(self) -> None:
        self.rest(False)
        super().close()


class _RestingTLSPool(_ConnectionPool, HTTPSConnectionPool):
    ConnectionCls = UpstreamTLSConnection  # type: ignore[assignment]


class Upstream:
    """One endpoint's pool, kept at hand with what is constant for it."""

    __slots__ = ("address", "pool", "tls")

    def __init__(self, address: Address, tls: UpstreamTLS, pool: _ConnectionPool) -> None:
        self.address = address
        self.tls = tls
        self.pool = pool


class UpstreamPools:
    """All pools of a gateway, in one urllib3 PoolManager. Response heads over the limits are no responses."""

    def __init__(self, max_head_bytes: int = 65_536, max_headers: int = 500) -> None:
        self._responses = ResponseParser(max_headers, max_head_bytes)  # one memory of header lines; it is bounded
        self._pools = urllib3.PoolManager(num_pools=100_000)
        self._pools.pool_classes_by_scheme = {"http": _ConnectionPool, "https": _RestingTLSPool}
        self._known: dict[tuple[Address, UpstreamTLS], Upstream] = {}
        self._contexts: dict[UpstreamTLS, ssl.SSLContext] = {}

    def limit(self, max_head_bytes: int, max_headers: int) -> None:
        """Have other limits from now on, on the connections that there are as well."""
        self._responses.limit(max_headers, max_head_bytes)

    def prepare(self, tls: UpstreamTLS) -> None:
        """Read the files that options of TLS name, so that what is wrong with them shows now. Raises PemError."""
        if tls not in self._contexts:
            self._contexts[tls] = context_for(tls)

    def forget(self, but: Collection[UpstreamTLS]) -> None:
        """Forget what prepare() has read, `but` for these."""
        for tls in [tls for tls in self._contexts if tls not in but]:
            self._contexts.pop(tls, None)

    def at(self, address: Address, tls: UpstreamTLS = UpstreamTLS()) -> Upstream:  # noqa: B008 - frozen
        """The upstream of an address that is spoken to in this way, made when it is first asked for. Thread-safe."""
        upstream = self._known.get((address, tls))
        if upstream is None:
            options: dict[str, Any] = {}
            if address.scheme == "https":
                self.prepare(tls)
                options = {"ssl_context": self._contexts[tls], "server_hostname": tls.server_name}
            pool = self._pools.connection_from_host(address.host, address.port, address.scheme, options)
            assert isinstance(pool, _ConnectionPool)
            pool.responses = self._responses
            pool.retired = False  # the manager has kept it if the endpoint was here before
            upstream = self._known.setdefault((address, tls), Upstream(address, tls, pool))
        return upstream

    def keep(self, wanted: Collection[tuple[Address, UpstreamTLS]]) -> None:
        """Drop the pools of addresses that are no longer endpoints or are spoken to in another way, and what has rested too
        long in the others."""
        for key in [known for known in self._known if known not in wanted]:
            upstream = self._known.pop(key, None)
            if upstream is not None and not any(other.pool is upstream.pool for other in list(self._known.values())):
                upstream.pool.close()
        for upstream in list(self._known.values()):
            upstream.pool.expire()

    def close(self) -> None:
        """Close every resting connection."""
        self.keep(())
        self._pools.clear()


def translate(error: BaseException) -> GatewayError:
    """The fault that an exception of urllib3 or the system stands for; the most specific first."""
    for kinds, fault in _TRANSLATION:
        if isinstance(error, kinds):
            if fault is Unreachable and isinstance(error.__cause__, ConnectionRefusedError):
                return ConnectionRefused(str(error))
            return fault(str(error))
    return BadGateway(str(error))


# Refusal and name errors are subclasses of ConnectTimeoutError, so they stand before it.
_TRANSLATION: Final[tuple[tuple[tuple[type[BaseException], ...], type[GatewayError]], ...]] = (
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
