"""bulkhead: a backend that hangs takes down its own routes and nothing else.

    server: {max_in_flight: 256}     # default: requests that wait for backends at one time, in each worker process
    backends:
      - name: reports
        match_labels: [app_name=reports]
        max_in_flight: 20            # default: 80 % of the server's, all of it for the only backend

A request over either limit is answered at once, 503 `overloaded` with Retry-After. Each request that waits holds a thread,
so there is always one left to say so, to answer `/stats` and `/-/ready`, and to serve the other backends.

In flight is a request while it waits for its backend: until the head of the response has come, and then, if something in the
chain wraps the response, for each further block. A response that nothing wraps is relayed by an event loop: however long it
streams, it holds no thread and does not count. While a request waits for its own client, who sends or reads slowly, it does
not count either; those have a limit of their own (`server.max_slow_clients`). Whether a body is slow in coming is only looked
at when the limit is reached.
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

LOOK_SECONDS: Final = 0.05
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
    most = config.server.max_in_flight
    places: list[tuple[tuple[str | int, ...], BulkheadOptions]] = [
        (("backends", index), backend.options["bulkhead"])
        for index, backend in enumerate(config.backends)
        if "bulkhead" in backend.options
    ]
    for path, options in [*places, (("plugins", "bulkhead"), config.options("bulkhead") or BulkheadOptions())]:
        if options.max_in_flight is not None and options.max_in_flight > most:
            message = f"is more than server.max_in_flight, which is {most} for all backends together; raise that too"
            yield ConfigProblem((*path, "max_in_flight"), message)


@hookimpl
def rgate_middlewares(gateway: Gateway) -> Middleware:
    most = gateway.config.server.max_in_flight
    whole = gateway.resource("bulkhead", most, lambda: ConcurrencyLimit(f"all {len(gateway.backends)} backends", most))
    limits = {backend.name: _limit(gateway, backend) for backend in gateway.backends.values()}
    own = {name: _of(gateway, name, limit) for name, limit in limits.items()}
    # While the server is calm no more requests wait than it has base threads, so only lower limits can be reached.
    lowest = min(limits.values(), default=most)
    always = lowest < gateway.config.server.threads

    load = gateway.readiness.server

    def wrap(app: WSGIApplication, options: Any) -> WSGIApplication:
        def look(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            if not (load.saturated or always):
                return app(environ, start_response)
            exchange = Exchange.of(environ)
            assert exchange.route is not None
            compartment = own[exchange.route.backend.name]
            waiting, all_waiting = compartment.waiting, whole.waiting
            if len(waiting) >= compartment.most:
                compartment.check()
            most = whole.most if load.max_in_flight is None else min(whole.most, load.max_in_flight)
            if len(all_waiting) >= most:
                whole.check(most)
            waiting[exchange] = all_waiting[exchange] = environ.get("rgate.request_stream")
            try:
                body = app(environ, start_response)
            finally:
                del waiting[exchange], all_waiting[exchange]
            if type(body) is list:
                return body
            upstream_body = exchange.upstream_body
            if body is upstream_body and upstream_body is not None:
                upstream_body.count_waits(_Waits(exchange, (waiting, all_waiting)))  # unwrapped, so that it can be relayed
                return body
            return _Body(body, exchange, (waiting, all_waiting))

        return look

    return Middleware("bulkhead", wrap, modifies_request=False)


def _limit(gateway: Gateway, backend: Backend) -> int:
    options: BulkheadOptions | None = gateway.options("bulkhead", backend=backend)
    own = options.max_in_flight if options is not None else None
    return own or gateway.config.backend_share(gateway.config.server.max_in_flight)


def _of(gateway: Gateway, backend: str, limit: int) -> ConcurrencyLimit:
    return gateway.resource(f"bulkhead.{backend}", limit, lambda: ConcurrencyLimit(f"backend {backend!r}", limit))


class ConcurrencyLimit:
    """What waits for one backend, or for all of them: at most `most` exchanges at one time.

    `waiting` has the exchanges, each with its RequestStream or None. Setting and popping a key are atomic, so there is no lock
    and nothing drifts; threads that come at the same moment may bring it over the limit by their number.
    """

    __slots__ = ("_held", "_looked", "_name", "_seen", "most", "waiting")

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self.most = most
        self.waiting: dict[Exchange, RequestStream | None] = {}
        self._held = self._seen = 0
        self._looked = float("-inf")

    def check(self, most: int | None = None) -> None:
        """Raise Overloaded, unless enough of those in here wait for their own clients. For when the limit is reached: its own,
        or `most`."""
        most = self.most if most is None else most
        now, count = monotonic(), len(self.waiting)
        if now - self._looked >= LOOK_SECONDS or count > self._seen:
            self._held = _held_by_clients(list(self.waiting.values()))
            self._looked, self._seen = now, count  # after it: until then others look for themselves
        if count - self._held < most:
            return
        words = "%s: %d requests in flight, which is max_in_flight; more are answered 503"
        _log.warning(words, self._name, most, extra={"dedup_key": self._name})
        raise Overloaded(f"{self._name}: {most} requests in flight")


class _Waits:
    """Counts an exchange as waiting for the backend while one more block of its response is waited for."""

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


class _Body:
    """A response body that counts as waiting for the backend while its next block is asked for."""

    __slots__ = ("_blocks", "_waits", "close")

    def __init__(
        self, body: Iterable[bytes], exchange: Exchange, where: tuple[dict[Exchange, RequestStream | None], ...]
    ) -> None:
        self._blocks = iter(body)
        self._waits = _Waits(exchange, where)
        self.close = getattr(body, "close", _nothing)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._waits:
            return next(self._blocks)


def _nothing() -> None:
    pass


def _held_by_clients(streams: Iterable[RequestStream | None]) -> int:
    """The number of these request bodies that wait for more from their clients."""
    poll = select.poll()
    count = 0
    for stream in streams:
        if stream is not None and not stream.complete:
            try:
                poll.register(stream.fileno(), select.POLLIN)
                count += 1
            except (OSError, ValueError):  # closed at this moment
                continue
    return count - len(poll.poll(0))
