"""bulkhead: limits the requests in flight per backend, so that a backend that hangs takes down its own routes and nothing else.

    server: {max_in_flight: 256}     # default: requests that wait for backends at one time, in each worker process
    backends:
      - name: reports
        match_labels: [app_name=reports]
        max_in_flight: 20            # default: 80 % of the server's; all of it for the only backend

A request over either limit is answered at once with 503 `overloaded` and Retry-After. Each request that waits occupies a thread;
the limits keep threads free to refuse requests, to answer `/stats` and `/-/ready`, and to serve the other backends.

A request is in flight while it waits for its backend: until the head of the response has arrived, and then, if a middleware
wraps the response, during the wait for each further block. A response that no middleware wraps is relayed by an event loop: it
occupies no thread however long it streams, and is not counted. A request that waits for its own client, which sends or reads
slowly, is not counted either; such requests have a limit of their own (`server.max_slow_clients`). Whether clients send their
bodies slowly is checked only when a limit is reached.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from rgate import (
    Backend,
    BodyWrapper,
    Config,
    ConfigProblem,
    ConfigSection,
    Exchange,
    Gateway,
    Middleware,
    Overloaded,
    RequestStream,
    StrictInt,
    hookimpl,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["ConcurrencyLimit"]

RECHECK_SECONDS: Final = 0.05
_log = logging.getLogger("rgate.plugins.bulkhead")


class BulkheadOptions(BaseModel):
    """`max_in_flight` is the limit of a backend, a key of the backend itself. None: its share of the server's limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_in_flight: Annotated[StrictInt, Field(ge=1, le=10_000)] | None = None


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("bulkhead", BulkheadOptions, per_backend="inline")


@hookimpl
def rgate_check_config(config: Config) -> Iterator[ConfigProblem]:
    limit = config.server.max_in_flight
    places: list[tuple[tuple[str | int, ...], BulkheadOptions]] = [
        (("backends", index), backend.options["bulkhead"])
        for index, backend in enumerate(config.backends)
        if "bulkhead" in backend.options
    ]
    for path, options in [*places, (("plugins", "bulkhead"), config.options("bulkhead") or BulkheadOptions())]:
        if options.max_in_flight is not None and options.max_in_flight > limit:
            message = f"is more than server.max_in_flight, which is {limit} for all backends together; raise that too"
            yield ConfigProblem((*path, "max_in_flight"), message)


@hookimpl
def rgate_middlewares(gateway: Gateway) -> Middleware:
    limit = gateway.config.server.max_in_flight
    of_all = gateway.resource("bulkhead", limit, lambda: ConcurrencyLimit(f"all {len(gateway.backends)} backends", limit))
    limits = {backend.name: _limit(gateway, backend) for backend in gateway.backends.values()}
    own = {name: _of(gateway, name, limit) for name, limit in limits.items()}
    # While the server has only its base threads, no more requests than these can wait, so only lower limits can be reached.
    lowest = min(limits.values(), default=limit)
    always = lowest < gateway.config.server.threads

    load = gateway.readiness.server

    def wrap(app: WSGIApplication, options: Any) -> WSGIApplication:
        def limit_in_flight(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            if not (load.saturated or always):
                return app(environ, start_response)
            exchange = Exchange.of(environ)
            assert exchange.route is not None
            of_backend = own[exchange.route.backend.name]
            waiting, all_waiting = of_backend.waiting, of_all.waiting
            if len(waiting) >= of_backend.limit:
                of_backend.check()
            limit = of_all.limit if load.max_in_flight is None else min(of_all.limit, load.max_in_flight)
            if len(all_waiting) >= limit:
                of_all.check(limit)
            waiting[exchange] = all_waiting[exchange] = environ.get("rgate.request_stream")
            try:
                body = app(environ, start_response)
            finally:
                del waiting[exchange], all_waiting[exchange]
            if type(body) is list:
                return body
            upstream_body = exchange.upstream_body
            if body is upstream_body and upstream_body is not None:
                upstream_body.count_waits(_Waits(exchange, (waiting, all_waiting)))  # not wrapped, so that it can be relayed
                return body
            return _Body(body, exchange, (waiting, all_waiting))

        return limit_in_flight

    return Middleware("bulkhead", wrap, modifies_request=False)


def _limit(gateway: Gateway, backend: Backend) -> int:
    options: BulkheadOptions | None = gateway.options("bulkhead", backend=backend)
    own = options.max_in_flight if options is not None else None
    return own or gateway.config.backend_share(gateway.config.server.max_in_flight)


def _of(gateway: Gateway, backend: str, limit: int) -> ConcurrencyLimit:
    return gateway.resource(f"bulkhead.{backend}", limit, lambda: ConcurrencyLimit(f"backend {backend!r}", limit))


class ConcurrencyLimit:
    """The exchanges that wait for one backend, or for all of them: at most `limit` at one time.

    `waiting` maps each exchange to its RequestStream, or None. There is no lock: setting and deleting a key are atomic under the
    interpreter's lock. Threads that arrive at the same moment may exceed the limit by their number.
    """

    __slots__ = ("_blocked_on_clients", "_checked", "_checked_count", "_name", "limit", "waiting")

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self.limit = limit
        self.waiting: dict[Exchange, RequestStream | None] = {}
        self._blocked_on_clients = self._checked_count = 0
        self._checked = float("-inf")

    def check(self, limit: int | None = None) -> None:
        """Raise Overloaded, unless enough of the exchanges wait for their own clients. Call it when the limit (its own, or
        `limit`) is reached."""
        limit = self.limit if limit is None else limit
        now, count = monotonic(), len(self.waiting)
        if now - self._checked >= RECHECK_SECONDS or count > self._checked_count:
            self._blocked_on_clients = _count_blocked_on_clients(list(self.waiting.values()))
            self._checked, self._checked_count = now, count  # set last: until then, other threads check for themselves
        if count - self._blocked_on_clients < limit:
            return
        words = "%s: %d requests in flight, which is max_in_flight; more are answered 503"
        _log.warning(words, self._name, limit, extra={"dedup_key": self._name})
        raise Overloaded(f"{self._name}: {limit} requests in flight")


class _Waits:
    """Counts an exchange as waiting for its backend while it waits for one more block of the response."""

    __slots__ = ("_exchange", "_where")

    def __init__(self, exchange: Exchange, where: tuple[dict[Exchange, RequestStream | None], ...]) -> None:
        self._exchange = exchange
        self._where = where

    def __enter__(self) -> None:
        for waiting in self._where:
            waiting[self._exchange] = None

    def __exit__(self, *failure: object) -> None:
        for waiting in self._where:
            del waiting[self._exchange]


class _Body(BodyWrapper):
    """A wrapped response body; its exchange counts as waiting for the backend during each `next()`."""

    __slots__ = ("_waits",)

    def __init__(
        self, body: Iterable[bytes], exchange: Exchange, where: tuple[dict[Exchange, RequestStream | None], ...]
    ) -> None:
        super().__init__(body)
        self._waits = _Waits(exchange, where)

    def __next__(self) -> bytes:
        with self._waits:
            return next(self.blocks)


def _count_blocked_on_clients(streams: Iterable[RequestStream | None]) -> int:
    """How many of these request bodies wait for data from their clients."""
    poll = select.poll()
    count = 0
    for stream in streams:
        if stream is not None and not stream.complete:
            try:
                poll.register(stream.fileno(), select.POLLIN)
                count += 1
            except (OSError, ValueError):  # closed in the meantime
                continue
    return count - len(poll.poll(0))
