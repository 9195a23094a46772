"""faults: turns every exception raised inside of it into the response that the client gets.

A GatewayError becomes a response with its own status, in the form that all responses made by the gateway have:

    {"status_code": 503, "body": "The service is not available.", "reason": "refused", "request_id": "6f0c…-1a"}

It has Retry-After, Location and other headers if the fault has them, and `Cache-Control: no-store` unless it is the config's
default_response. Any other exception is a bug in a plugin or in rgate: the client gets a 500 without details, the log gets the
traceback. Plugins can replace the response with the hook `rgate_fault_response`; the standard one is sent if no plugin does, or
if the plugin that does fails itself.

If the response has begun already, the exception is passed to the server with the new response (PEP 3333, `exc_info`); once the
head has been sent, the server raises it again and cuts the connection.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from rgate import (
    CONTENTLESS_STATUSES,
    BodyWrapper,
    ClientClosed,
    Exchange,
    Gateway,
    GatewayError,
    InternalError,
    Middleware,
    NoRoute,
    RequestError,
    Unavailable,
    close_body,
    hookimpl,
)

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["error_app"]

_log = logging.getLogger("rgate.plugins.faults")
_REASON_PHRASES = {status.value: status.phrase for status in HTTPStatus} | {ClientClosed.status: "Client Closed Request"}
_QUIET = (RequestError, NoRoute, Unavailable)
"""Logged at level debug instead of warning: faults of the client, and outages, which would log a line for every request. The same
holds for every status below 500, and for all faults if a plugin logs each failed request, as `access_log` does by default."""


def error_app(exchange: Exchange, error: GatewayError) -> WSGIApplication:
    """A WSGI app that sends the standard response to `error`, without a body for 204, 205 and 304 (RFC 9110 §6.4.1)."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        status = error.status
        body = error.json(exchange.id) if error.content_type is None else error.message.encode("utf-8", "replace")
        headers = [("Content-Type", error.content_type or "application/json"), ("Content-Length", str(len(body)))]
        if error.retry_after_seconds is not None:
            headers.append(("Retry-After", str(error.retry_after_seconds)))
        if error.location is not None:
            headers.append(("Location", error.location))
        headers += error.headers
        if not isinstance(error, NoRoute):
            headers.append(("Cache-Control", "no-store"))
        if status in CONTENTLESS_STATUSES:
            del headers[:2]
            if status == 205:
                headers.append(("Content-Length", "0"))
            body = b""
        start_response(f"{status} {_REASON_PHRASES.get(status, 'Unknown')}", headers)
        return [] if environ.get("REQUEST_METHOD") == "HEAD" or not body else [body]

    return app


@hookimpl
def rgate_middlewares(gateway: Gateway) -> Middleware:
    registry = gateway.registry

    def wrap(app: WSGIApplication, options: Any) -> WSGIApplication:
        def guard(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            try:
                body = app(environ, start_response)
            except Exception as error:
                return respond(error, environ, start_response)
            if type(body) is not list and Exchange.of(environ).suspended is not None:
                return _SuspendedBody(body, lambda error: respond(error, environ, start_response), Exchange.of(environ))
            return body

        return guard

    def respond(error: Exception, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        exchange = Exchange.of(environ)
        exchange.error = fault = error if isinstance(error, GatewayError) else InternalError(repr(error))
        if fault is error:
            _log_error(exchange, fault, gateway.logs_failed_requests)
        else:
            registry.report_failure(exchange, error)
        try:
            response = registry.hook.rgate_fault_response(exchange=exchange, error=fault) or error_app(exchange, fault)
            body: Iterable[bytes] = response(environ, _with_exc_info(exchange, start_response))
        except Exception as failure:
            if failure is error:
                raise  # raised by the server: the head has been sent
            registry.report_failure(exchange, failure)
            body = error_app(exchange, fault)(environ, _with_exc_info(exchange, start_response))
        return body

    return Middleware("faults", wrap, modifies_request=False, essential=True)


class _SuspendedBody(BodyWrapper):
    """The body of a suspended response. Exceptions that are raised before the response begins are answered, too."""

    def __init__(self, body: Iterable[bytes], respond: Callable[[Exception], Iterable[bytes]], exchange: Exchange) -> None:
        super().__init__(body)
        self._bodies = [body]
        self._respond = respond
        self._exchange = exchange

    def __next__(self) -> bytes:
        try:
            return next(self.blocks)
        except StopIteration:
            raise
        except Exception as error:
            if self._exchange.status:
                raise
            answer = self._respond(error)
        self._bodies.append(answer)
        self.blocks = iter(answer)
        return next(self.blocks, b"")

    def close(self) -> None:
        for body in self._bodies:
            close_body(body)


def _log_error(exchange: Exchange, fault: GatewayError, logged: bool) -> None:
    if logged or fault.status < 500 or isinstance(fault, _QUIET):
        _log.debug("%s: %s", exchange.id, fault)
        return
    where = exchange.whereabouts
    _log.warning("%s: %s%s", exchange.id, fault, where, extra={"dedup_key": (where, type(fault).__name__, fault.reason)})


def _with_exc_info(exchange: Exchange, start_response: StartResponse) -> StartResponse:
    """`start_response`; if the response has begun, with the current exception as `exc_info`, as PEP 3333 requires."""
    if not exchange.status:
        return start_response
    exc_info = sys.exc_info()

    def start(status: str, headers: list[tuple[str, str]], _: OptExcInfo | None = None) -> Callable[[bytes], object]:
        return start_response(status, headers, exc_info)

    return start
