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
from typing import TYPE_CHECKING, Any, Final

from rgate import Backend, BodyWrapper, Config, ConfigProblem, Exchange, Gateway, Middleware, Overloaded, hookimpl

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["ConcurrencyLimit"]

LOOK_SECONDS: Final = 0.05
_log = logging.getLogger("rgate.plugins.bulkhead")


@hookimpl
def rgate_check_config(config: Config) -> Iterator[ConfigProblem]:
    most = config.server.max_in_flight
    for index, backend in enumerate(config.backends):
        if backend.max_in_flight is not None and backend.max_in_flight > most:
            message = f"is more than server.max_in_flight, which is {most} for all backends together; raise that too"
            yield ConfigProblem(("backends", index, "max_in_flight"), message)


@hookimpl
def rgate_middlewares(gateway: Gateway) -> Middleware:
    most = gateway.config.server.max_in_flight
    whole = gateway.resource("bulkhead", most, lambda: ConcurrencyLimit(f"all {len(gateway.backends)} backends", most))
    own = {backend.name: _of(gateway, backend) for backend in gateway.backends.values()}
    # While the server is calm no more requests wait than it has base threads, so only lower limits can be reached.
    lowest = min((backend.max_in_flight for backend in gateway.backends.values()), default=most)
    always = lowest < gateway.config.server.threads

    condition = gateway.readiness

    def wrap(app: WSGIApplication, options: Any) -> WSGIApplication:
        def look(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            if condition.calm and not always:
                return app(environ, start_response)
            exchange = Exchange.of(environ)
            assert exchange.route is not None
            compartment = own[exchange.route.backend.name]
            waiting, all_waiting = compartment.waiting, whole.waiting
            if len(waiting) >= compartment.most:
                compartment.check()
            most = whole.most if condition.max_in_flight is None else min(whole.most, condition.max_in_flight)
            if len(all_waiting) >= most:
                whole.check(most)
            waiting[exchange] = all_waiting[exchange] = environ["wsgi.input"]
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


def _of(gateway: Gateway, backend: Backend) -> ConcurrencyLimit:
    most = backend.max_in_flight
    return gateway.resource(f"bulkhead.{backend.name}", most, lambda: ConcurrencyLimit(f"backend {backend.name!r}", most))


class ConcurrencyLimit:
    """What waits for one backend, or for all of them: at most `most` exchanges at one time.

    `waiting` has the exchanges, each with its wsgi.input. Setting and popping a key are atomic, so there is no lock and
    nothing drifts; threads that come at the same moment may bring it over the limit by their number.
    """

    __slots__ = ("_held", "_looked", "_name", "_seen", "most", "waiting")

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self.most = most
        self.waiting: dict[Exchange, Any] = {}
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
        _log.warning(words, self._name, most, extra={"about": self._name})
        raise Overloaded(f"{self._name}: {most} requests in flight")


class _Waits:
    """Counts an exchange as waiting for the backend while one more block of its response is waited for."""

    __slots__ = ("_exchange", "_where")

    def __init__(self, exchange: Exchange, where: tuple[dict[Exchange, Any], ...]) -> None:
        self._exchange = exchange
        self._where = where

    def __enter__(self) -> None:
        for waiting in self._where:
            waiting[self._exchange] = None

    def __exit__(self, *failure: object) -> None:
        for waiting in self._where:
            del waiting[self._exchange]


class _Body(BodyWrapper):
    """A response body that counts as waiting for the backend while its next block is asked for."""

    __slots__ = ("_waits",)

    def __init__(self, body: Iterable[bytes], exchange: Exchange, where: tuple[dict[Exchange, Any], ...]) -> None:
        super().__init__(body)
        self._waits = _Waits(exchange, where)

    def __next__(self) -> bytes:
        with self._waits:
            return next(self.blocks)


def _held_by_clients(streams: Iterable[Any]) -> int:
    """How many of these request bodies wait for more of their clients. Those of rgate's own server can say."""
    poll = select.poll()
    count = 0
    for stream in streams:
        if not getattr(stream, "complete", True):
            try:
                poll.register(stream.fileno(), select.POLLIN)
                count += 1
            except (OSError, ValueError):  # closed at this moment
                continue
    return count - len(poll.poll(0))
