"""Exchange: the state of one request and its response, from the first middleware to after the response. Tunnel: what it may
become.

It travels in the WSGI environ; `Exchange.of(environ)` finds it. Each field has one writer (see the attributes).
One thread at a time works on an exchange; nothing here needs a lock.
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
    """A response body as it comes from the backend, which can be read without waiting as well as iterated.

    ExchangeScope returns one when nothing in the chain has wrapped what the forwarder has returned. The server may then relay
    it from an event loop, so that a slow backend or client holds no thread.

    wait_seconds   how long the backend may be silent
    """

    __slots__ = ()
    wait_seconds: float

    @abstractmethod
    def __iter__(self) -> Iterator[bytes]: ...

    @abstractmethod
    def fileno(self) -> int:
        """The backend's socket, for waiting. Only after read_now() has returned None."""

    @abstractmethod
    def read_now(self, most_bytes: int, timed_out: bool = False) -> bytes | None:
        """What has come of the body, some `most_bytes` of it; None: nothing yet; b"": that was all.

        Raises Truncated when the backend has broken off. With `timed_out` it has if nothing has come.
        """

    @abstractmethod
    def count_waits(self, counting: AbstractContextManager[object]) -> None:
        """Have `counting` entered whenever a thread waits for a further block; that is, never while it is relayed."""

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether the next read_now() returns b"" without asking the backend."""

    @property
    def relayable(self) -> bool:
        """Whether it needs nothing else than to be read."""
        return True

    @abstractmethod
    def close(self) -> None:
        """Give up what has not been read. May be called again."""


def _log_failure(exchange: Exchange, error: BaseException) -> None:
    _log.error(
        "%s: an on_finish callback failed: %r", exchange.id, error, exc_info=error, extra={"dedup_key": exception_key(error)}
    )


_numbers = itertools.count(1)
_prefix = secrets.token_hex(4)


def _renew_prefix() -> None:
    # A forked worker must not repeat its sibling's ids.
    global _prefix
    _prefix = secrets.token_hex(4)


os.register_at_fork(after_in_child=_renew_prefix)


class Exchange:
    """One request and its response.

    started     monotonic seconds, set at creation by ExchangeScope
    route       the route that matched, or None; written by `routing` or an earlier router
    candidates  endpoints still eligible; set by RouteDispatch from the snapshot, only narrowed after that
    affinity    what the same endpoint is wanted for (a client, a session), or ""; written by `selection`
    endpoint    the endpoint chosen; written by `selection`
    attempts    how often an endpoint was tried; written by the forwarder
    tunnel      what the exchange becomes if the backend switches protocols, or None; written by the middleware that lets
                the upgrade pass (`websocket`)
    error       the fault this exchange ended in, or None; written by `faults` (and when a body breaks off)
    status      status code on the wire, 0 before the response begins; written by ExchangeScope
    bytes_sent  body bytes handed to the server; written by ExchangeScope
    finished    monotonic seconds, 0.0 while running; written by ExchangeScope
    plugin_seconds  what has been spent inside of each timed plugin, by name, or None; written by the plugins' clocks
    request_trailers, response_trailers    the trailer fields as (name, value), empty until the body before them has been read to
                its end: the client's, written by the server, and the backend's, written by the forwarder. Middleware may add
                to them and take away. The first go to the backend after a body that streams, or is at hand with a length; the
                second to clients that take them (environ has HTTP_TE), after a body without a Content-Length
    streaming   the backend's response while it streams, or None; written by the forwarder, closed by ExchangeScope at the
                latest, whatever has become of it in the chain
    suspended      what its request waits for without a thread, or None; written by SuspendedResponse and the server
    """

    # Defaults stand on the class: an exchange is made for every request, and most set few of them.
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
    _notes: dict[str, Any] | None = None
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
        """Names this exchange in logs and fault answers; unique per process and start."""
        return f"{_prefix}-{self._number:x}"

    @property
    def whereabouts(self) -> str:
        """How far it has come, for a line of the log: " (route /api, backend orders, endpoint orders_1)", or ""."""
        route, endpoint = self.route, self.endpoint
        if route is None and endpoint is None:
            return ""
        parts = [f"route {route.name}"] if route is not None else []
        backend = endpoint.backend if endpoint is not None else route.backend.name if route is not None else ""
        parts += [f"backend {backend}", *([f"endpoint {endpoint.name}"] if endpoint is not None else [])]
        return f" ({', '.join(parts)})"

    @property
    def state(self) -> dict[str, Any]:
        """What plugins keep with the exchange, each under its own name."""
        if self._notes is None:
            self._notes = {}
        return self._notes

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
        """From start to finish, or to now while it runs."""
        return (self.finished or monotonic()) - self.started

    def on_finish(self, callback: FinishCallback) -> None:
        """Have `callback(exchange)` run once the response is decided, before the client can know that it is over.

        Callbacks run in order of registration, each isolated: what one raises is logged and stops nothing. They run in the
        thread of the request, or, when the response was relayed, in the one that relays all of them; so they hold up the
        last bytes of this response and perhaps those of others: they must be quick and must not block.
        """
        self._callbacks.append(callback)

    def finish(self, on_failure: Callable[[Exchange, BaseException], object] = _log_failure) -> None:
        """End the exchange; only the first call counts. ExchangeScope calls it; plugins never do.

        `on_failure` is told of what a callback raises.
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

    False, and nothing is sent, when the client is not to have any (see `server.interim_responses`), when its response has begun
    or it is gone, and under another WSGI server than rgate's own. Headers of the connection are left out, and those of a body
    that does not come. May be called any number of times; raises ValueError for what is not an interim status (102 to 199)
    or no header may contain. It waits for a client that reads slowly, as any part of a response does.
    """
    client: ClientConnection | None = environ.get(CONNECTION_KEY)
    return client is not None and client.send_interim(status, headers)


class Tunnel:
    """Bytes both ways in place of a response body: what an exchange becomes when an upgrade succeeds (RFC 9110 §7.8).

    A middleware lets an upgrade pass by setting `exchange.tunnel` to one of these, for a request that has
    environ["rgate.upgrade"] (what the client asks for, lower-case; under rgate's own server only). The backend is asked
    for `protocol` and nothing else. When it switches to that (101) the tunnel has `established`: the exchange is finished, with
    status 101, and client and backend are connected, at no thread's cost, until one of them leaves or a limit ends it.
    Any other response is an ordinary one, and the tunnel is not used.

    idle_seconds   ended when no byte has moved in either direction for so long
    max_duration_seconds  ended after so long in all; None: no limit
    on_close         called once with this tunnel when one that has begun is over, before its ends can see that; by the thread
                   that relays, so it must not block

    established          the backend has switched protocols; written by the forwarder, the rest by the server
    seconds        how long it has lasted, once it is over
    bytes_received, bytes_sent    from the client and to the client
    closed_by       "client", "backend", "idle_seconds", "max_duration_seconds" or "stop"; "" before
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
