"""The pools of idle connections to backends, one for each endpoint address, in one urllib3 PoolManager."""

from __future__ import annotations

import contextlib
import ssl
from collections import deque
from collections.abc import Collection
from time import monotonic
from typing import Any, Final

import urllib3
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from ..config import Timeouts, UpstreamTLS
from ..discovery.model import Address
from ..http1.response import ResponseParser
from ..tls.client_context import client_context
from .connecting import ConnectQueue
from .connection import UpstreamConnection, UpstreamTLSConnection

__all__ = ["Upstream", "UpstreamPools"]

# Less than the keep-alive time of common servers (5 s), so that requests seldom meet a connection that is just being closed.
MAX_IDLE_SECONDS: Final = 4.0
MAX_IDLE_CONNECTIONS: Final = 256


class _ConnectionPool(HTTPConnectionPool):
    """The connections to one address. Thread-safe: deque.append() and pop() are atomic under the interpreter's lock.

    urllib3's class keeps the options of an address and makes connections with them (`_new_conn()`), and the PoolManager
    finds one pool for each address; its queue and urlopen() are not used.

    idle    the connections that wait for a request; the one that was used last is on the right
    closed  the endpoint is gone or stopping: connections are closed at the end of their exchange instead of becoming idle
    """

    ConnectionCls = UpstreamConnection
    response_parser: ResponseParser

    def __init__(self, host: str, port: int | None = None, **options: Any) -> None:
        super().__init__(host, port, **{**options, "maxsize": 1})
        self.idle: deque[UpstreamConnection] = deque()
        self.connect_queue = ConnectQueue()
        self.closed = False

    def connect_new(self, timeouts: Timeouts) -> UpstreamConnection:
        """Open a new connection. Raises Unavailable faults."""
        connection = self._new_conn()
        assert isinstance(connection, UpstreamConnection)
        connection.response_parser = self.response_parser
        connection.connect_queue = self.connect_queue
        connection.open(timeouts)
        return connection

    def acquire(self, timeouts: Timeouts) -> UpstreamConnection:
        """An idle connection that is still usable, or a new one. Raises Unavailable faults.

        Each idle one is polled, however short its idle time (0.9 µs): unsolicited bytes on it would be taken for the response to
        the next request, and so on.
        """
        while True:
            try:
                connection = self.idle.pop()
            except IndexError:
                return self.connect_new(timeouts)
            if monotonic() - connection.idle_since > MAX_IDLE_SECONDS or connection.has_input():
                connection.close()
                continue
            return connection

    def release(self, connection: UpstreamConnection) -> None:
        """Keep a connection whose exchange is complete on both sides for the next request."""
        connection.idle_since = monotonic()
        if len(self.idle) < MAX_IDLE_CONNECTIONS and not self.closed and not connection.write_error:
            self.idle.append(connection)
        else:
            connection.close()

    def close_idle(self) -> None:
        """Close the idle connections, and from now on each other one at the end of its exchange. Until reopen()."""
        self.closed = True
        while self.idle:
            with contextlib.suppress(IndexError):  # another thread has taken the last one
                self.idle.pop().close()

    def reopen(self) -> None:
        """Undo close_idle(): the endpoint is back."""
        self.closed = False

    def close_expired(self) -> None:
        """Close the connections that have been idle for MAX_IDLE_SECONDS. The oldest are on the left."""
        while self.idle:
            try:
                connection = self.idle.popleft()
            except IndexError:
                return
            if monotonic() - connection.idle_since <= MAX_IDLE_SECONDS:
                self.idle.appendleft(connection)
                return
            connection.close()

    def close(self) -> None:
        self.close_idle()
        super().close()


class _TLSConnectionPool(_ConnectionPool, HTTPSConnectionPool):
    ConnectionCls = UpstreamTLSConnection


class Upstream:
    """The pool of one endpoint, with what is constant for it. Each endpoint's state keeps a reference to its own."""

    __slots__ = ("address", "pool", "tls")

    def __init__(self, address: Address, tls: UpstreamTLS, pool: _ConnectionPool) -> None:
        self.address = address
        self.tls = tls
        self.pool = pool


class UpstreamPools:
    """All pools of a process, in one urllib3 PoolManager, and the parser of all responses. Thread-safe.

    Response heads over `max_head_bytes` or `max_headers` are BadResponse faults.
    """

    def __init__(self, max_head_bytes: int = 65_536, max_headers: int = 500) -> None:
        self._response_parser = ResponseParser(max_headers, max_head_bytes)
        self._pools = urllib3.PoolManager(num_pools=100_000)
        self._pools.pool_classes_by_scheme = {"http": _ConnectionPool, "https": _TLSConnectionPool}
        self._upstreams: dict[tuple[Address, UpstreamTLS], Upstream] = {}
        self._tls_contexts: dict[UpstreamTLS, ssl.SSLContext] = {}

    @property
    def idle_connections(self) -> int:
        """The number of idle connections in all pools."""
        return sum(len(upstream.pool.idle) for upstream in list(self._upstreams.values()))

    def set_limits(self, max_head_bytes: int, max_headers: int) -> None:
        """Apply other limits from now on, to existing connections as well."""
        self._response_parser.set_limits(max_headers, max_head_bytes)

    def load_tls_context(self, tls: UpstreamTLS) -> None:
        """Load the files that TLS options name, so that an error in them shows now. Raises PemError."""
        if tls not in self._tls_contexts:
            self._tls_contexts[tls] = client_context(tls)

    def prune_tls_contexts(self, wanted: Collection[UpstreamTLS]) -> None:
        """Drop the contexts of load_tls_context() for all options but `wanted`."""
        for tls in [tls for tls in self._tls_contexts if tls not in wanted]:
            self._tls_contexts.pop(tls, None)

    def get(self, address: Address, tls: UpstreamTLS = UpstreamTLS()) -> Upstream:  # noqa: B008 - frozen
        """The upstream for an address and TLS options, created on first use."""
        upstream = self._upstreams.get((address, tls))
        if upstream is None:
            options: dict[str, Any] = {}
            if address.scheme == "https":
                self.load_tls_context(tls)
                options = {"ssl_context": self._tls_contexts[tls], "server_hostname": tls.server_name}
            pool = self._pools.connection_from_host(address.host, address.port, address.scheme, options)
            assert isinstance(pool, _ConnectionPool)
            pool.response_parser = self._response_parser
            pool.reopen()  # the manager has kept it if the endpoint was here before
            upstream = self._upstreams.setdefault((address, tls), Upstream(address, tls, pool))
        return upstream

    def prune(self, wanted: Collection[tuple[Address, UpstreamTLS]]) -> None:
        """Close the pools of all addresses and TLS options but `wanted`, and in those the connections that have expired."""
        for key in [key for key in self._upstreams if key not in wanted]:
            upstream = self._upstreams.pop(key, None)
            if upstream is not None and not any(other.pool is upstream.pool for other in list(self._upstreams.values())):
                upstream.pool.close()
        for upstream in list(self._upstreams.values()):
            upstream.pool.close_expired()

    def close(self) -> None:
        """Close all idle connections."""
        self.prune(())
        self._pools.clear()
