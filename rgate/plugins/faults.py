"""faults: turns whatever is raised inside of it into the answer that the client gets.

A GatewayError becomes its own status and, in the one shape of all answers that the gateway makes itself,

    {"status_code": 503, "body": "The service is not available.", "reason": "refused", "request_id": "6f0c…-1a"}

with Retry-After, Location and other headers when the fault has some, and `Cache-Control: no-store` unless it is the config's
default_response. Every other exception is a bug, in a plugin or in rgate: the client gets a 500 that says nothing about the
inside, the log gets the traceback. Plugins give another answer with the hook `rgate_fault_response`; this one is given when
none does, or when the one that does fails itself.

An exception after the response has begun is handed to the server with the answer (PEP 3333, `exc_info`); once the head
has left, the server raises it again and cuts the connection.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from rgate import (
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

__all__ = ["answer"]

_log = logging.getLogger("rgate.plugins.faults")
_REASON_PHRASES = {status.value: status.phrase for status in HTTPStatus} | {ClientClosed.status: "Client Closed Request"}
_QUIET = (RequestError, NoRoute, Unavailable)
"""Logged as debug, not as warning: the client's own doing, and outages, which would log a line for every request. So is all
that has a status below 500, and everything where a plugin logs each failed request anyway, as `access_log` does by default."""


def answer(exchange: Exchange, error: GatewayError) -> WSGIApplication:
    """The WSGI app that answers `error`. Without a body where HTTP allows none (RFC 9110 §6.4.1)."""

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
        if status in (204, 205, 304):
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
                return _Late(body, lambda error: respond(error, environ, start_response), Exchange.of(environ))
            return body

        return guard

    def respond(error: Exception, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        exchange = Exchange.of(environ)
        exchange.error = fault = error if isinstance(error, GatewayError) else InternalError(repr(error))
        if fault is error:
            _tell(exchange, fault, gateway.logs_failed_requests)
        else:
            registry.report_failure(exchange, error)
        try:
            response = registry.hook.rgate_fault_response(exchange=exchange, error=fault) or answer(exchange, fault)
            body: Iterable[bytes] = response(environ, _starting(exchange, start_response))
        except Exception as failure:
            if failure is error:
                raise  # by the server: the head has left
            registry.report_failure(exchange, failure)
            body = answer(exchange, fault)(environ, _starting(exchange, start_response))
        return body

    return Middleware("faults", wrap, modifies_request=False, essential=True)


class _Late(BodyWrapper):
    """A response that begins later: an exception raised before it has begun is answered, too."""

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


def _tell(exchange: Exchange, fault: GatewayError, logged: bool) -> None:
    if logged or fault.status < 500 or isinstance(fault, _QUIET):
        _log.debug("%s: %s", exchange.id, fault)
        return
    where = exchange.whereabouts
    _log.warning("%s: %s%s", exchange.id, fault, where, extra={"about": (where, type(fault).__name__, fault.reason)})


def _starting(exchange: Exchange, start_response: StartResponse) -> StartResponse:
    """`start_response`, with the exception at hand if it has been called before, as PEP 3333 wants it."""
    if not exchange.status:
        return start_response
    exc_info = sys.exc_info()

    def start(status: str, headers: list[tuple[str, str]], _: OptExcInfo | None = None) -> Callable[[bytes], object]:
        return start_response(status, headers, exc_info)

    return start
