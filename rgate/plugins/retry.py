"""retry: one more try on another endpoint, when the first has given nothing and the request can be sent again.

    plugins:
      retry: {attempts: 2, budget_percent: 20, on_timeout: true}     # default
    routes:
      - path_prefix: /api/orders
        backend: orders
        plugins: {retry: false}
      - path_prefix: /api/reports        # what is asked for takes long, and should not be made twice
        backend: reports
        plugins: {retry: {on_timeout: false}}

What failed before a connection stood (refused, unreachable, no connection in time) has reached no backend and is tried
elsewhere whatever the method. What was closed before a response, or of which nothing had come after `read_seconds`, may
have been carried out, so it is tried elsewhere only for idempotent methods (RFC 9110 §9.2.2): a POST is never sent twice.
A body must be small enough to be at hand as a whole; one that streams is not sent again. The endpoint that failed is taken
from the candidates. The next one has `read_seconds` of its own.

When nothing was sent and there is no other endpoint to ask, the request waits for one, without a thread, up to the backend's
`queue_seconds`: the only container is being restarted. The same goes for what may be sent again when its endpoint has just
gone. That is not a retry, and takes nothing from the budget.

So that retries cannot double the load on backends that are in trouble, they have a budget: a share of the requests of the
route, of which up to ten retries may be saved up.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from rgate import (
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

IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
SAVED_RETRIES: Final = 10.0
_log = logging.getLogger("rgate.plugins.retry")


class RetryOptions(BaseModel):
    """`attempts` is how many endpoints a request is sent to at most (1 to 10); `budget_percent` (0 to 100) how many
    requests of a hundred may be sent again; `on_timeout` whether that is done when nothing of a response came in time."""

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

    The budget is counted without a lock: two threads that count at the same moment may lose a fraction of a retry. What is
    left of it, where something is missing, stands in `budgets` by route, for the one that takes this one's place.
    """

    __slots__ = ("_app", "_attempts", "_budget", "_budgets", "_is_own", "_on_timeout", "_queue", "_share", "_unproven")

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
        self._budget = SAVED_RETRIES
        self._budgets = {} if budgets is None else budgets
        self._is_own = False  # whether it is known what was left before

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._budget < SAVED_RETRIES:
            self._set(Exchange.of(environ), self._budget + self._share)
        try:
            body = self._app(environ, start_response)
        except GatewayError as error:
            return self._again(environ, start_response, error)
        if self._unproven:
            self._prove(Exchange.of(environ))
        return body

    def _prove(self, exchange: Exchange) -> None:
        if self._queue is not None and exchange.route is not None and exchange.suspended is None:
            self._queue.proven(exchange.route.backend.name)

    def _again(self, environ: WSGIEnvironment, start_response: StartResponse, error: GatewayError) -> Iterable[bytes]:
        exchange = Exchange.of(environ)
        if not self._is_own:
            self._is_own = True
            self._budget = min(self._budget, self._budgets.get(_route(exchange), SAVED_RETRIES))
        while exchange.attempts < self._attempts and self._budget >= 1 and self._can_be_sent_again(environ, error):
            failed = exchange.endpoint
            others = tuple(endpoint for endpoint in exchange.candidates if endpoint is not failed)
            if not others:
                break
            self._set(exchange, self._budget - 1)
            _log.debug("%s: %s; once more on another endpoint", exchange.id, error)
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
        if self._queue is None or exchange.route is None or not self._waits(environ, exchange, error):
            raise error
        return self._wait(environ, start_response, error, self._queue, exchange.route.backend)

    def _waits(self, environ: WSGIEnvironment, exchange: Exchange, error: GatewayError) -> bool:
        """Whether it may wait for another endpoint: nothing was sent, or it can be sent again and its endpoint has gone."""
        if not self._can_be_sent_again(environ, error):
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
        def go_on(in_time: bool) -> Iterable[bytes]:
            endpoints = queue.endpoints(backend.name)
            if not in_time:
                raise error
            if not endpoints:
                return queue.park(environ, backend, go_on, error)
            Exchange.of(environ).candidates = endpoints
            if isinstance(environ["wsgi.input"], BytesIO):
                environ["wsgi.input"].seek(0)
            return self(environ, start_response)

        suspended = queue.park(environ, backend, go_on, error)
        _log.debug("%s: %s; waiting for an endpoint", Exchange.of(environ).id, error)
        return suspended

    def _can_be_sent_again(self, environ: WSGIEnvironment, error: GatewayError) -> bool:
        if isinstance(error, Unavailable):
            return not isinstance(error, NoEndpoint | Overloaded)  # nothing was sent, nothing of the body was read
        if isinstance(error, ResponseTimeout):
            is_unanswered = self._on_timeout and not error.begun
        else:
            is_unanswered = isinstance(error, UpstreamClosed)
        if not is_unanswered or environ["REQUEST_METHOD"] not in IDEMPOTENT:
            return False
        has_body = "CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ
        return not has_body or isinstance(environ["wsgi.input"], BytesIO)

    def _set(self, exchange: Exchange, budget: float) -> None:
        self._budget = self._budgets[_route(exchange)] = budget


def _route(exchange: Exchange) -> str:
    return exchange.route.name if exchange.route is not None else ""
