"""ExchangeScope: the outermost app of a gateway. It gives every request its exchange, and every failure an answer."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ..errors import GatewayError, InternalError, PluginError, RequestError, is_process_exit
from ..http1.environ import REJECTION_KEY, TARGET_KEY, TRAILERS_KEY, from_foreign_environ
from ..log import exception_key
from .body_wrapper import BodyWrapper, close_body
from .exchange import ENVIRON_KEY, Exchange, RelayableBody
from .middleware import LocalRoute

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..http1.target import Target

__all__ = ["ExchangeScope", "FailureReporter", "OnFailed", "reject"]

OnFailed: TypeAlias = "Callable[[Exchange, WSGIEnvironment], object]"
_log = logging.getLogger("rgate.chain")


class FailureReporter(Protocol):
    """Called with an unexpected exception. `hook` is the hook that brought the code in which it was raised, if known."""

    def __call__(self, exchange: Exchange, error: BaseException, hook: str = ...) -> object: ...


def reject(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The innermost app for requests that the server has rejected: raises the fault in environ["rgate.rejection"].

    That is a GatewayError, or a function that makes one of the environ (such as a redirect to the same URL with https).
    """
    error: GatewayError | Callable[[WSGIEnvironment], GatewayError] = environ[REJECTION_KEY]
    raise error if isinstance(error, GatewayError) else error(environ)


def answer_asterisk(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """`OPTIONS *` asks about the gateway itself (RFC 9110 §9.3.7)."""
    start_response("204 No Content", [])
    return []


def allow_all(environ: WSGIEnvironment) -> bool:
    """`allows` of a local route for all clients."""
    return True


class ExchangeScope:
    """The outermost app: gives every request its Exchange, answers local routes, and finishes the exchange in time.

    app           the outer chain
    rejected      the outer chain around reject(), for requests that the server has rejected
    local_routes  by exact path. A route that does not allow a request does not answer it, nor one whose path is spelled in
                  another way (`/%2d/config`), which a proxy in front with a rule about the path may not have recognised:
                  such a request continues in the chain
    on_failure    called with everything unexpected, and with the hook that brought the code where the traceback cannot tell
    on_failed     called with the exchange and environ of every request that has failed, once it is over, except those to local
                  routes: it ended in a fault with a status of 400 or more, or with a status of 500 or more from its backend

    An exception that comes out of the chain before the response has begun becomes an answer in the common shape. A response
    that streams from the backend is closed at the end, whatever the chain has done with it.

    lowest_body_limit   the server calls the app for a body of more than this many bytes before the body has arrived, because
                        it may be refused by its length; None: never
    """

    lowest_body_limit: int | None = None

    def __init__(
        self,
        app: WSGIApplication,
        rejected: WSGIApplication,
        local_routes: Mapping[str, WSGIApplication | LocalRoute],
        on_failure: FailureReporter,
        on_failed: Sequence[OnFailed] = (),
    ) -> None:
        self._app = app
        self._rejected = rejected
        self._local_routes = {
            path: local if isinstance(local, LocalRoute) else LocalRoute(local, allow_all)
            for path, local in {"*": answer_asterisk, **local_routes}.items()
        }
        self._on_failure = on_failure
        self._on_failed = on_failed
        self._on_local_failure = partial(on_failure, hook="rgate_local_routes")

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        app = self._app
        on_failure, on_failed = self._on_failure, self._on_failed
        if TARGET_KEY not in environ:
            try:
                from_foreign_environ(environ)
            except ValueError as error:
                environ[REJECTION_KEY] = RequestError(str(error))
        if REJECTION_KEY in environ:
            app = self._rejected
        elif (
            (local := self._local_routes.get(environ["PATH_INFO"])) is not None
            and _is_plain(environ[TARGET_KEY])
            and self._allows(local, environ)
        ):
            app = local.app  # outside the chain: never forwarded and never counted
            on_failure, on_failed = self._on_local_failure, ()
        environ[ENVIRON_KEY] = exchange = Exchange()
        if TRAILERS_KEY in environ:
            exchange._request_trailers = environ[TRAILERS_KEY]
        sent: list[tuple[str, str]] = []

        def begin(status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None) -> Callable[[bytes], object]:
            nonlocal sent
            exchange.status = int(status[:3])
            sent = headers
            return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

        try:
            body = app(environ, begin)
            if type(body) is not list:
                upstream_body = exchange.upstream_body
                if body is upstream_body and upstream_body is not None and upstream_body.relayable:
                    return _RelayableExchangeBody(exchange, upstream_body, begin, lambda: sent, on_failure, on_failed, environ)
                return _ExchangeBody(exchange, body, begin, lambda: sent, on_failure, on_failed, environ)
            for block in body:
                exchange.bytes_sent += len(block)
        except BaseException as error:
            if is_process_exit(error):
                raise
            on_failure(exchange, error)
            try:
                body = _fallback_response(exchange, error, begin)
            except BaseException:
                _report_if_failed(exchange, environ, on_failed)
                raise
            exchange.bytes_sent = len(body[0])
        if exchange.upstream_body is not None:
            _close_upstream_body(exchange, on_failure)
        exchange.finish(on_failure)
        if exchange.error is not None or exchange.status >= 500:
            _report_if_failed(exchange, environ, on_failed)
        return body

    def _allows(self, local: LocalRoute, environ: WSGIEnvironment) -> bool:
        try:
            return local.allows(environ)
        except BaseException as error:
            if is_process_exit(error):
                raise
            self._on_local_failure(Exchange(), error)
            return False


class _ExchangeBody(BodyWrapper):
    """A response body that finishes its exchange before its last byte is sent.

    An app may call start_response as late as with its first block (PEP 3333): `headers()` is not called before that, and an
    exception raised before it still becomes an answer.
    """

    __slots__ = ("_begin", "_environ", "_exchange", "_headers", "_on_failed", "_on_failure", "_remaining_bytes")

    def __init__(
        self,
        exchange: Exchange,
        body: Iterable[bytes],
        begin: StartResponse,
        headers: Callable[[], list[tuple[str, str]]],
        on_failure: FailureReporter,
        on_failed: Sequence[OnFailed],
        environ: WSGIEnvironment,
    ) -> None:
        if body is None:
            raise PluginError("a middleware has returned None instead of a response body")
        super().__init__(body)
        self._exchange = exchange
        self._begin = begin
        self._headers: Callable[[], list[tuple[str, str]]] | None = headers
        self._on_failure = on_failure
        self._on_failed = on_failed
        self._environ = environ
        self._remaining_bytes: int | None = None

    def __next__(self) -> bytes:
        try:
            block = next(self.blocks)
            size = len(block)
        except StopIteration:
            self._exchange.finish(self._on_failure)
            raise
        except BaseException as error:
            block = self._on_body_error(error)
            size = len(block)
        if size:  # otherwise the response may not have begun
            self._count(size)
        return block

    def _count(self, size: int) -> None:
        if self._headers is not None:
            self._remaining_bytes, self._headers = _content_length(self._headers()), None
        self._exchange.bytes_sent += size
        if self._remaining_bytes is not None:
            self._remaining_bytes -= size
            if self._remaining_bytes <= 0:
                self._exchange.finish(self._on_failure)

    def _on_body_error(self, error: BaseException) -> bytes:
        """The answer instead of a body that breaks off. Raises `error` if some of the response has been sent."""
        if is_process_exit(error):
            raise error
        exchange = self._exchange
        if not isinstance(error, RequestError):  # a client that leaves or sends nonsense is not reported
            self._on_failure(exchange, error)
        answer = _fallback_response(exchange, error, self._begin)
        self.blocks = iter(())
        return answer[0]

    def close(self) -> None:
        exchange = self._exchange
        try:
            _close(exchange, self.body, self._on_failure)
            if exchange.upstream_body is not None:
                _close_upstream_body(exchange, self._on_failure)
        finally:
            exchange.finish(self._on_failure)
            if exchange.error is not None or exchange.status >= 500:
                on_failed, self._on_failed = self._on_failed, ()
                _report_if_failed(exchange, self._environ, on_failed)


class _RelayableExchangeBody(_ExchangeBody, RelayableBody):
    """The same for a body that nothing in the chain has wrapped."""

    __slots__ = ("_upstream_body", "wait_seconds")

    def __init__(
        self,
        exchange: Exchange,
        body: RelayableBody,
        begin: StartResponse,
        headers: Callable[[], list[tuple[str, str]]],
        on_failure: FailureReporter,
        on_failed: Sequence[OnFailed],
        environ: WSGIEnvironment,
    ) -> None:
        super().__init__(exchange, body, begin, headers, on_failure, on_failed, environ)
        self._upstream_body = body
        self.wait_seconds = body.wait_seconds

    def fileno(self) -> int:
        return self._upstream_body.fileno()

    def count_waits(self, counting: AbstractContextManager[object]) -> None:
        self._upstream_body.count_waits(counting)

    @property
    def complete(self) -> bool:
        return self._upstream_body.complete

    def read_now(self, most_bytes: int, timed_out: bool = False) -> bytes | None:
        try:
            block = self._upstream_body.read_now(most_bytes, timed_out)
        except BaseException as error:
            block = self._on_body_error(error)
        if block:
            self._count(len(block))
        elif block is not None:
            self._exchange.finish(self._on_failure)
        return block


def _report_if_failed(exchange: Exchange, environ: WSGIEnvironment, on_failed: Sequence[OnFailed]) -> None:
    error = exchange.error
    if error.status >= 400 if error is not None else exchange.status >= 500:
        for callback in on_failed:
            try:
                callback(exchange, environ)
            except Exception as failure:
                _log.exception("%s: callback %r failed", exchange.id, callback, extra={"dedup_key": exception_key(failure)})


def _close_upstream_body(exchange: Exchange, on_failure: FailureReporter) -> None:
    """Close the backend's response, which the chain may have left open."""
    body, exchange.upstream_body = exchange.upstream_body, None
    _close(exchange, body, on_failure)


def _close(exchange: Exchange, body: object, on_failure: FailureReporter) -> None:
    """Close a body. What that raises is reported only, because the response is over."""
    try:
        close_body(body)
    except BaseException as error:
        if is_process_exit(error):
            raise
        on_failure(exchange, error)


def _is_plain(target: Target) -> bool:
    """Whether the path is spelled as a local route's is: without escapes and the like."""
    return target.is_normalized and target.normalized_path == target.path


def _content_length(headers: list[tuple[str, str]]) -> int | None:
    value = next((value for name, value in headers if name.lower() == "content-length"), "")
    return int(value) if value.isascii() and value.isdigit() else None


def _fallback_response(exchange: Exchange, error: BaseException, start_response: StartResponse) -> list[bytes]:
    """The answer if nothing in the chain has made one: the fault's own status, otherwise 500, in the common shape.

    Called while `error` is handled. If the head of the response has been sent, it finishes the exchange and raises `error`, so
    that the server cuts the connection.
    """
    fault = error if isinstance(error, GatewayError) else InternalError(repr(error))
    exchange.error = exchange.error or fault
    body = fault.json(exchange.id)
    phrase = HTTPStatus(fault.status).phrase if fault.status in HTTPStatus._value2member_map_ else "Unknown"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *fault.headers]
    status_before = exchange.status
    try:
        start_response(f"{fault.status} {phrase}", headers, sys.exc_info() if status_before else None)
    except BaseException:
        exchange.status = status_before
        exchange.finish()
        raise
    return [body]
