"""ExchangeScope: the outermost app of a gateway, which gives every request its exchange and every failure an answer."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ..errors import GatewayError, InternalError, PluginError, RequestError, is_process_exit
from ..http1.environ import REJECTION_KEY, TARGET_KEY, TRAILERS_KEY, from_foreign_environ
from ..log import about
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
    """Is told that somebody's code has failed; `hook` is what has brought that code."""

    def __call__(self, exchange: Exchange, error: BaseException, hook: str = ...) -> object: ...


def reject(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The innermost app for requests that the server refused: raises what it found, or what it makes of the request."""
    error: GatewayError | Callable[[WSGIEnvironment], GatewayError] = environ[REJECTION_KEY]
    raise error if isinstance(error, GatewayError) else error(environ)


def answer_asterisk(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """`OPTIONS *` asks about the gateway itself (RFC 9110 §9.3.7)."""
    start_response("204 No Content", [])
    return []


def admit(environ: WSGIEnvironment) -> bool:
    """A local route for everybody."""
    return True


class ExchangeScope:
    """The outermost app: gives every request its Exchange, answers local routes, and ends the exchange in time.

    A local route that does not admit a request is none for it, nor is one for a path that is spelt otherwise (`/%2d/config`):
    a proxy's rule about the path may not have seen through that. `refused` is the outer chain around `reject`. What
    still comes out of the chain as an exception before the response has begun becomes a plain answer in the common shape.
    `on_failure` is told of everything unexpected, with the hook that has brought the code where it cannot be seen otherwise.
    A response that still streams from the backend is closed at the end, whatever the chain has done with it.

    A body of more than `lowest_body_limit` bytes may be refused by its length, so the server asks before it has come.

    `on_failed` are told of every request that has failed, once it is over, but for those of local routes: one that ended in a
    fault with a status of 400 or more, or with a status of 500 or more from its backend.
    """

    lowest_body_limit: int | None = None

    def __init__(
        self,
        app: WSGIApplication,
        refused: WSGIApplication,
        local_routes: Mapping[str, WSGIApplication | LocalRoute],
        on_failure: FailureReporter,
        on_failed: Sequence[OnFailed] = (),
    ) -> None:
        self._app = app
        self._refused = refused
        self._local_routes = {
            path: local if isinstance(local, LocalRoute) else LocalRoute(local, admit)
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
            app = self._refused
        elif (
            (local := self._local_routes.get(environ["PATH_INFO"])) is not None
            and _is_spelled_plainly(environ[TARGET_KEY])
            and self._admits(local, environ)
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
                body = _last_resort(exchange, error, begin)
            except BaseException:
                _tell_if_failed(exchange, environ, on_failed)
                raise
            exchange.bytes_sent = len(body[0])
        if exchange.upstream_body is not None:
            _close(exchange, exchange.upstream_body, on_failure)
            exchange.upstream_body = None
        exchange.finish(on_failure)
        if exchange.error is not None or exchange.status >= 500:
            _tell_if_failed(exchange, environ, on_failed)
        return body

    def _admits(self, local: LocalRoute, environ: WSGIEnvironment) -> bool:
        try:
            return local.allows(environ)
        except BaseException as error:
            if is_process_exit(error):
                raise
            self._on_local_failure(Exchange(), error)
            return False


class _ExchangeBody:
    """A response body that ends its exchange before its last byte goes out.

    An app may call start_response as late as for its first block (PEP 3333): `headers()` is asked only after that, and
    what is raised before it still becomes an answer.
    """

    __slots__ = ("_begin", "_blocks", "_body", "_environ", "_exchange", "_headers", "_left", "_on_failed", "_on_failure")

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
            raise PluginError("something in the chain has returned None instead of a response body")
        self._exchange = exchange
        self._body = body
        self._begin = begin
        self._headers: Callable[[], list[tuple[str, str]]] | None = headers
        self._on_failure = on_failure
        self._on_failed = on_failed
        self._environ = environ
        self._blocks = iter(body)
        self._left: int | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            block = next(self._blocks)
            size = len(block)
        except StopIteration:
            self._exchange.finish(self._on_failure)
            raise
        except BaseException as error:
            block = self._broken(error)
            size = len(block)
        if size:  # else the response may not have begun
            self._count(size)
        return block

    def _count(self, size: int) -> None:
        if self._headers is not None:
            self._left, self._headers = _content_length(self._headers()), None
        self._exchange.bytes_sent += size
        if self._left is not None:
            self._left -= size
            if self._left <= 0:
                self._exchange.finish(self._on_failure)

    def _broken(self, error: BaseException) -> bytes:
        """The answer in place of a body that breaks off, if nothing of the response has left yet."""
        if is_process_exit(error):
            raise error
        exchange = self._exchange
        if not isinstance(error, RequestError):  # a client that leaves or sends nonsense is no news
            self._on_failure(exchange, error)
        answer = _last_resort(exchange, error, self._begin)
        self._blocks = iter(())
        return answer[0]

    def close(self) -> None:
        exchange = self._exchange
        try:
            _close(exchange, self._body, self._on_failure)
            if exchange.upstream_body is not None:
                _close(exchange, exchange.upstream_body, self._on_failure)
                exchange.upstream_body = None
        finally:
            exchange.finish(self._on_failure)
            if exchange.error is not None or exchange.status >= 500:
                on_failed, self._on_failed = self._on_failed, ()
                _tell_if_failed(exchange, self._environ, on_failed)


def _tell_if_failed(exchange: Exchange, environ: WSGIEnvironment, on_failed: Sequence[OnFailed]) -> None:
    error = exchange.error
    if error.status >= 400 if error is not None else exchange.status >= 500:
        for tell in on_failed:
            try:
                tell(exchange, environ)
            except Exception as failure:
                _log.exception("%s: callback %r failed", exchange.id, tell, extra={"about": about(failure)})


class _RelayableExchangeBody(_ExchangeBody, RelayableBody):
    """The same for a body that nothing in the chain has wrapped."""

    __slots__ = ("_streaming", "wait_seconds")

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
        self._streaming = body
        self.wait_seconds = body.wait_seconds

    def fileno(self) -> int:
        return self._streaming.fileno()

    def count_waits(self, counting: AbstractContextManager[object]) -> None:
        self._streaming.count_waits(counting)

    @property
    def complete(self) -> bool:
        return self._streaming.complete

    def read_now(self, most_bytes: int, timed_out: bool = False) -> bytes | None:
        try:
            block = self._streaming.read_now(most_bytes, timed_out)
        except BaseException as error:
            block = self._broken(error)
        if block:
            self._count(len(block))
        elif block is not None:
            self._exchange.finish(self._on_failure)
        return block


def _is_spelled_plainly(target: Target) -> bool:
    """Whether the path came as it is, without escapes and the like: a local route answers to no other spelling, so that a rule
    about its path in a proxy in front cannot be passed by."""
    return target.is_normalized and target.normalized_path == target.path


def _close(exchange: Exchange, body: object, on_failure: FailureReporter) -> None:
    """Close a body that may have a close(). What that raises is told; by then the response is over."""
    try:
        close = getattr(body, "close", None)
        if close is not None:
            close()
    except BaseException as error:
        if is_process_exit(error):
            raise
        on_failure(exchange, error)


def _content_length(headers: list[tuple[str, str]]) -> int | None:
    value = next((value for name, value in headers if name.lower() == "content-length"), "")
    return int(value) if value.isascii() and value.isdigit() else None


def _last_resort(exchange: Exchange, error: BaseException, start_response: StartResponse) -> list[bytes]:
    """The answer when nothing in the chain made one: the fault's own status, else 500, in the common shape.

    Called while `error` is handled. Ends the exchange and raises `error` when the response's head has left already, so that
    the server cuts it.
    """
    fault = error if isinstance(error, GatewayError) else InternalError(repr(error))
    exchange.error = exchange.error or fault
    body = fault.json(exchange.id)
    phrase = HTTPStatus(fault.status).phrase if fault.status in HTTPStatus._value2member_map_ else "Unknown"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *fault.headers]
    begun = exchange.status
    try:
        start_response(f"{fault.status} {phrase}", headers, sys.exc_info() if begun else None)
    except BaseException:
        exchange.status = begun
        exchange.finish()
        raise
    return [body]
