"""retry: sends a request to another endpoint when the first one gave no response and the request can be repeated.

    plugins:
      retry: {attempts: 2, budget_percent: 20, on_timeout: true}     # default
    routes:
      - path_prefix: /api/orders
        backend: orders
        plugins: {retry: false}
      - path_prefix: /api/reports        # a report takes long and should not be made twice
        backend: reports
        plugins: {retry: {on_timeout: false}}

A request whose connection could not be established (refused, unreachable, timed out) has reached no backend, and is repeated
whatever its method. If the connection was closed before a response, or no byte of one arrived within `read_seconds`, the
request may have been carried out, so only idempotent methods are repeated (RFC 9110 §9.2.2): a POST is never sent twice. The body
must have been collected in memory; a request whose body is streamed is not repeated. The endpoint that failed is removed from
the candidates. The next one has `read_seconds` of its own.

If nothing was sent and there is no other endpoint, the request waits for one, without occupying a thread, for up to the backend's
`queue_seconds`, for example while the only container restarts. So does a request that can be repeated when its endpoint has just
disappeared. Waiting is not a retry and does not use the budget.

Retries have a budget, so that they cannot double the load on backends that are in trouble: a percentage of the requests of the
route, of which up to ten retries can be saved up.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from rgate import (
    IDEMPOTENT_METHODS,
    Backend,
    ConfigSection,
    EndpointQueue,
    Exchange,
    Gateway,
    GatewayError,
    Middleware,
    NoEndpoint,
    Overloaded,
    ResponseTimeout,
    Unavailable,
    UpstreamClosed,
    hookimpl,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

BUDGET_BURST: Final = 10.0
_log = logging.getLogger("rgate.plugins.retry")


class RetryOptions(BaseModel):
    """`attempts` is the largest number of endpoints that a request is sent to (1 to 10); `budget_percent` (0 to 100) is how many
    requests of a hundred may be repeated; `on_timeout` says whether a request is repeated when no response arrived in time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempts: Annotated[int, Field(ge=1, le=10)] = 2
    budget_percent: Annotated[float, Field(ge=0, le=100)] = 20.0
    on_timeout: bool = True


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("retry", RetryOptions, per_route=True)


@hookimpl
def rgate_middlewares(gateway: Gateway) -> Middleware:
    budgets: dict[str, float] = gateway.resource("retry", None, dict)
    for name in budgets.keys() - {route.name for route in gateway.routes}:
        del budgets[name]

    def wrap(app: WSGIApplication, options: RetryOptions | None) -> WSGIApplication:
        return Retry(app, options or RetryOptions(), budgets, gateway)

    return Middleware("retry", wrap, modifies_request=False)


class Retry:
    """The middleware of one route, with the budget of that route.

    The budget is counted without a lock: two threads that count at the same time may lose a fraction of a retry. A budget that is
    not full is kept in `budgets` by route, for the middleware that replaces this one on a reload.
    """

    __slots__ = ("_app", "_attempts", "_budget", "_budget_loaded", "_budgets", "_on_timeout", "_queue", "_share", "_unproven")

    def __init__(
        self,
        app: WSGIApplication,
        options: RetryOptions,
        budgets: dict[str, float] | None = None,
        gateway: Gateway | None = None,
    ) -> None:
        self._app = app
        self._queue = gateway.queue if gateway is not None else None
        self._unproven: Mapping[str, float] = {} if self._queue is None else self._queue.unproven
        self._share = options.budget_percent / 100
        self._attempts = options.attempts if self._share else 1
        self._on_timeout = options.on_timeout
        self._budget = BUDGET_BURST
        self._budgets = {} if budgets is None else budgets
        self._budget_loaded = False  # whether the budget that the previous gateway left was read

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._budget < BUDGET_BURST:
            self._set_budget(Exchange.of(environ), self._budget + self._share)
        try:
            body = self._app(environ, start_response)
        except GatewayError as error:
            return self._retry(environ, start_response, error)
        if self._unproven:
            self._prove(Exchange.of(environ))
        return body

    def _prove(self, exchange: Exchange) -> None:
        if self._queue is not None and exchange.route is not None and exchange.suspended is None:
            self._queue.proven(exchange.route.backend.name)

    def _retry(self, environ: WSGIEnvironment, start_response: StartResponse, error: GatewayError) -> Iterable[bytes]:
        exchange = Exchange.of(environ)
        if not self._budget_loaded:
            self._budget_loaded = True
            self._budget = min(self._budget, self._budgets.get(_route_name(exchange), BUDGET_BURST))
        while exchange.attempts < self._attempts and self._budget >= 1 and self._can_be_repeated(environ, error):
            failed = exchange.endpoint
            others = tuple(endpoint for endpoint in exchange.candidates if endpoint is not failed)
            if not others:
                break
            self._set_budget(exchange, self._budget - 1)
            _log.debug("%s: %s; retrying on another endpoint", exchange.id, error)
            exchange.candidates = others
            if isinstance(environ["wsgi.input"], BytesIO):
                environ["wsgi.input"].seek(0)
            try:
                body = self._app(environ, start_response)
            except GatewayError as next_error:
                error = next_error
                continue
            self._prove(exchange)
            return body
        if self._queue is None or exchange.route is None or not self._may_wait(environ, exchange, error):
            raise error
        return self._wait(environ, start_response, error, self._queue, exchange.route.backend)

    def _may_wait(self, environ: WSGIEnvironment, exchange: Exchange, error: GatewayError) -> bool:
        """Whether the request may wait for another endpoint: nothing was sent, or it can be repeated and its endpoint is gone."""
        if not self._can_be_repeated(environ, error):
            return False
        if isinstance(error, Unavailable):
            return True
        assert self._queue is not None and exchange.route is not None
        endpoint = exchange.endpoint
        if endpoint is None or not isinstance(error, UpstreamClosed):
            return False
        return endpoint.stopping or endpoint not in self._queue.endpoints(exchange.route.backend.name)

    def _wait(
        self, environ: WSGIEnvironment, start_response: StartResponse, error: GatewayError, queue: EndpointQueue, backend: Backend
    ) -> Iterable[bytes]:
        def resume(in_time: bool) -> Iterable[bytes]:
            endpoints = queue.endpoints(backend.name)
            if not in_time:
                raise error
            if not endpoints:
                return queue.park(environ, backend, resume, error)
            Exchange.of(environ).candidates = endpoints
            if isinstance(environ["wsgi.input"], BytesIO):
                environ["wsgi.input"].seek(0)
            return self(environ, start_response)

        suspended = queue.park(environ, backend, resume, error)
        _log.debug("%s: %s; waiting for an endpoint", Exchange.of(environ).id, error)
        return suspended

    def _can_be_repeated(self, environ: WSGIEnvironment, error: GatewayError) -> bool:
        if isinstance(error, Unavailable):
            return not isinstance(error, NoEndpoint | Overloaded)  # nothing was sent, and nothing of the body was read
        if isinstance(error, ResponseTimeout):
            is_unanswered = self._on_timeout and not error.begun
        else:
            is_unanswered = isinstance(error, UpstreamClosed)
        if not is_unanswered or environ["REQUEST_METHOD"] not in IDEMPOTENT_METHODS:
            return False
        has_body = "CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ
        return not has_body or isinstance(environ["wsgi.input"], BytesIO)

    def _set_budget(self, exchange: Exchange, budget: float) -> None:
        self._budget = self._budgets[_route_name(exchange)] = budget


def _route_name(exchange: Exchange) -> str:
    return exchange.route.name if exchange.route is not None else ""
