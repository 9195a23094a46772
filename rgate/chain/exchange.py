"""Exchange: one request and its response, from the first middleware until the response is over. Tunnel: an upgraded connection.

The exchange is in the WSGI environ; `Exchange.of(environ)` returns it. Each field has one writer (see the attributes). Only one
thread at a time works on an exchange, so that nothing here needs a lock.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import is_process_exit
from ..http1.environ import CONNECTION_KEY
from ..log import exception_key

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ..config import Route
    from ..discovery.model import Endpoint
    from ..errors import GatewayError
    from .client_connection import ClientConnection
    from .suspended import SuspendedResponse

__all__ = ["ENVIRON_KEY", "Exchange", "FinishCallback", "RelayableBody", "Tunnel", "send_interim"]

ENVIRON_KEY = "rgate.exchange"

FinishCallback: TypeAlias = "Callable[[Exchange], None]"

_log = logging.getLogger("rgate.chain")


class RelayableBody(ABC):
    """A response body that streams from the backend, and can be read without blocking as well as iterated.

    ExchangeScope returns one if no middleware has wrapped the forwarder's body. The server may relay it from an event loop, so
    that a slow backend or client does not hold a thread.

    wait_seconds   how long the backend may be silent
    """

    __slots__ = ()
    wait_seconds: float

    @abstractmethod
    def __iter__(self) -> Iterator[bytes]: ...

    @abstractmethod
    def fileno(self) -> int:
        """The backend's socket, to wait on. Only valid after read_now() has returned None."""

    @abstractmethod
    def read_now(self, most_bytes: int, timed_out: bool = False) -> bytes | None:
        """Read what has arrived of the body, about `most_bytes` at most. None: nothing yet; b"": the body has ended.

        Raises UpstreamTruncated if the backend has closed too early; with `timed_out`, also if nothing has arrived.
        """

    @abstractmethod
    def count_waits(self, counting: AbstractContextManager[object]) -> None:
        """Enter `counting` whenever a thread waits for another block; that is, never while the body is relayed."""

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether the next read_now() returns b"" without reading from the backend."""

    @property
    def relayable(self) -> bool:
        """Whether reading it is all that it needs."""
        return True

    @abstractmethod
    def close(self) -> None:
        """Discard what has not been read. May be called more than once."""


def _log_failure(exchange: Exchange, error: BaseException) -> None:
    _log.error(
        "%s: an on_finish callback failed: %r", exchange.id, error, exc_info=error, extra={"dedup_key": exception_key(error)}
    )


_numbers = itertools.count(1)
_prefix = secrets.token_hex(4)


def _renew_prefix() -> None:
    # A forked worker must not repeat the ids of the others.
    global _prefix
    _prefix = secrets.token_hex(4)


os.register_at_fork(after_in_child=_renew_prefix)


class Exchange:
    """One request and its response.

    started     monotonic seconds, set at creation by ExchangeScope
    route       the route that matched, or None; written by `routing` or an earlier router
    candidates  the endpoints that may still be chosen; set by RouteDispatch from the snapshot, later only reduced
    affinity_key    the client or session that should keep its endpoint, or ""; written by `selection`
    endpoint    the chosen endpoint; written by `selection`
    attempts    the number of times that an endpoint was tried; written by the forwarder
    tunnel      the tunnel that the exchange becomes if the backend switches protocols, or None; written by the middleware that
                allows the upgrade (`websocket`)
    error       the fault that this exchange ended in, or None; written by `faults` (and when a body breaks off)
    status      the status code on the wire, 0 before the response begins; written by ExchangeScope
    bytes_sent  the body bytes passed to the server; written by ExchangeScope
    finished    monotonic seconds, 0.0 while running; written by ExchangeScope
    plugin_seconds  the time spent in each timed plugin, by name, or None; written by the plugins' clocks
    request_trailers, response_trailers    the trailer fields as (name, value), empty until the body before them has been read to
                its end: the client's, written by the server, and the backend's, written by the forwarder. Middleware may add
                and remove fields. Request trailers go to the backend after a body that streams, or that is buffered and has a
                length; response trailers go to clients that accept them (environ has HTTP_TE), after a body without a
                Content-Length
    upstream_body   the backend's response while it streams, or None; written by the forwarder, closed by ExchangeScope at the
                latest, whatever the chain has done with it
    suspended   the SuspendedResponse with which its request waits, or None; written by that and by the server
    """

    # The defaults are on the class, because an exchange is made for every request and few of them are ever set.
    finished = 0.0
    route: Route | None = None
    candidates: tuple[Endpoint, ...] = ()
    affinity_key = ""
    endpoint: Endpoint | None = None
    attempts = 0
    tunnel: Tunnel | None = None
    error: GatewayError | None = None
    status = 0
    bytes_sent = 0
    plugin_seconds: dict[str, float] | None = None
    upstream_body: RelayableBody | None = None
    suspended: SuspendedResponse | None = None
    _state: dict[str, Any] | None = None
    _request_trailers: list[tuple[str, str]] | None = None
    _response_trailers: list[tuple[str, str]] | None = None

    def __init__(self) -> None:
        self.started = monotonic()
        self._number = next(_numbers)
        self._callbacks: list[FinishCallback] = []

    @staticmethod
    def of(environ: WSGIEnvironment) -> Exchange:
        """The exchange of a request. KeyError outside the chain."""
        exchange: Exchange = environ[ENVIRON_KEY]
        return exchange

    @property
    def id(self) -> str:
        """The id of this exchange in logs and fault answers; unique across processes and restarts."""
        return f"{_prefix}-{self._number:x}"

    @property
    def whereabouts(self) -> str:
        """Its route, backend and endpoint for a log line, as " (route /api, backend orders, endpoint orders_1)", or ""."""
        route, endpoint = self.route, self.endpoint
        if route is None and endpoint is None:
            return ""
        parts = [f"route {route.name}"] if route is not None else []
        backend = endpoint.backend if endpoint is not None else route.backend.name if route is not None else ""
        parts += [f"backend {backend}", *([f"endpoint {endpoint.name}"] if endpoint is not None else [])]
        return f" ({', '.join(parts)})"

    @property
    def state(self) -> dict[str, Any]:
        """Objects that plugins keep with the exchange, each under the plugin's name."""
        if self._state is None:
            self._state = {}
        return self._state

    @property
    def request_trailers(self) -> list[tuple[str, str]]:
        if self._request_trailers is None:
            self._request_trailers = []
        return self._request_trailers

    @property
    def response_trailers(self) -> list[tuple[str, str]]:
        if self._response_trailers is None:
            self._response_trailers = []
        return self._response_trailers

    @property
    def elapsed_seconds(self) -> float:
        """The time from start to finish, or to now while it runs."""
        return (self.finished or monotonic()) - self.started

    def on_finish(self, callback: FinishCallback) -> None:
        """Call `callback(exchange)` once the response is complete, before the client can know that it is over.

        Callbacks run in order of registration. An exception in one is logged, and the others still run. They run in the thread
        of the request or, if the response is relayed, in the one thread that relays all of them. They delay the last bytes of
        this response and perhaps of others, so they must be quick and must not block.
        """
        self._callbacks.append(callback)

    def finish(self, on_failure: Callable[[Exchange, BaseException], object] = _log_failure) -> None:
        """Finish the exchange and run the callbacks. Only the first call counts. ExchangeScope calls it; plugins never do.

        `on_failure` is called with every exception in a callback.
        """
        if self.finished:
            return
        self.finished = monotonic()
        for callback in self._callbacks:
            try:
                callback(self)
            except BaseException as error:
                if is_process_exit(error):
                    raise
                on_failure(self, error)


def send_interim(environ: WSGIEnvironment, status: str, headers: Iterable[tuple[str, str]] = ()) -> bool:
    """Send the client an interim response: `send_interim(environ, "103 Early Hints", [("Link", "</a.css>; rel=preload")])`.

    Returns False, and sends nothing, if the client must not get any (see `server.interim_responses`), if its response has begun,
    if it has left, and under any WSGI server but rgate's own. Headers of the connection and of a body are omitted. May be called
    any number of times. Blocks while the client reads slowly, as any part of a response does. Raises ValueError for a status that
    is not interim (102 to 199), and for characters that are not allowed in a header.
    """
    client: ClientConnection | None = environ.get(CONNECTION_KEY)
    return client is not None and client.send_interim(status, headers)


class Tunnel:
    """Bytes in both directions instead of a response body, after an upgrade (RFC 9110 §7.8).

    A middleware allows an upgrade by setting `exchange.tunnel` to one of these, for a request that has
    environ["rgate.upgrade"] (the protocols that the client asks for, in lower case; under rgate's own server only). The
    backend is asked for `protocol` only. If it switches to that (101), the tunnel is `established`: the exchange is finished with
    status 101, and client and backend are connected, without holding a thread, until one of them closes or a limit is reached.
    Any other response is handled as usual, and the tunnel is not used.

    idle_seconds          closed if no byte has moved in either direction for this long
    max_duration_seconds  closed after this long; None: no limit
    on_close              called once with this tunnel when it has been established and is over, before client and backend can
                          see that; in the thread that relays, so it must not block

    established           the backend has switched protocols; written by the forwarder, the others by the server
    seconds               how long it lasted, once it is over
    bytes_received, bytes_sent    from the client and to the client
    closed_by             "client", "backend", "idle_seconds", "max_duration_seconds" or "stop"; "" until it is over
    """

    established = False
    seconds = 0.0
    bytes_received = 0
    bytes_sent = 0
    closed_by = ""

    def __init__(
        self,
        protocol: str,
        idle_seconds: float,
        max_duration_seconds: float | None = None,
        on_close: Callable[[Tunnel], object] = lambda tunnel: None,
    ) -> None:
        self.protocol = protocol
        self.idle_seconds = idle_seconds
        self.max_duration_seconds = max_duration_seconds
        self.on_close = on_close
