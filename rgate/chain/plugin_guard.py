"""One plugin's middleware kept apart from the rest of the chain, so that its failures are its own: `on_error: …`.

    outside ⇄ Isolated ⇄ the middleware ⇄ Isolated ⇄ inside

It stands on both sides of the middleware, so it knows whether an exception is the middleware's own or only came through it,
how far the request had come, and what the inside had answered. A middleware without `on_error` has none of this.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

from ..errors import GatewayError, is_process_exit
from ..log import exception_key
from .exchange import Exchange
from .middleware import Middleware
from .pipeline import validate_app

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["PluginGuard", "isolated"]

_log = logging.getLogger("rgate.chain")


class PluginGuard:
    """What becomes of the failures of one plugin's middleware: one for all routes of a gateway, used by many threads.

    skip       requests go on without the middleware where that can be done
    limit      after so many failures in a row it is out of the chains; None: never
    out        it is
    on_change  called when `notice`, what an operator should know, has changed
    """

    def __init__(self, plugin: str, *, skip: bool, limit: int | None, on_change: Callable[[], object]) -> None:
        self._plugin = plugin
        self.skip = skip
        self.limit = limit
        self.out = False
        self.notice = ""
        self._on_change = on_change
        self._in_a_row = 0
        self._skipped = 0
        self._lock = threading.Lock()

    def passed(self) -> None:
        """A request has been through the middleware without a failure of it."""
        if self._in_a_row:
            self._in_a_row = 0

    def skipped(self, exchange: Exchange, error: BaseException) -> None:
        """The middleware has failed, and its request goes on without it."""
        _log.error(
            "%s: plugin %s failed in rgate_middlewares, so this request goes on without it: %r",
            exchange.id, self._plugin, error, exc_info=error, extra={"dedup_key": (self._plugin, *exception_key(error))},
        )  # fmt: skip
        with self._lock:
            self._skipped += 1
            self.notice = f"plugin {self._plugin} has failed and was skipped, for {self._skipped} requests so far: {error!r}"
        self._on_change()

    def failed(self, error: BaseException) -> None:
        """The middleware has failed, and with it the request, which is told where it is answered."""
        if self.limit is None:
            return
        with self._lock:
            self._in_a_row += 1
            if self._in_a_row < self.limit or self.out:
                return
            self.out = True
            row = f"after {self.limit} failures in a row, the last of them {error!r}"
            self.notice = f"plugin {self._plugin} is out of the chains {row}"
        _log.error("plugin %s is out of the chains %s; a reload brings it back", self._plugin, row)
        self._on_change()


def isolated(middleware: Middleware, isolation: PluginGuard) -> Middleware:
    """The middleware with its failures dealt with as `isolation` says."""

    def wrap(app: WSGIApplication, options: Any) -> WSGIApplication:
        return _Isolated(middleware, app, options, isolation)

    return replace(middleware, wrap=wrap)


class _Isolated:
    def __init__(self, middleware: Middleware, app: WSGIApplication, options: Any, isolation: PluginGuard) -> None:
        self._app = app
        self._isolation = isolation
        self._key = f"rgate.isolated.{middleware.name}"
        self._wrapped = validate_app(middleware.name, middleware.wrap(self._inside, options))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._isolation.out:
            return self._app(environ, start_response)
        passage = environ[self._key] = _GuardedRequest(self._isolation, environ, start_response)
        try:
            body = self._wrapped(environ, passage.start)
            if type(body) is not list:
                body = _Outside(body, passage)
        except BaseException as error:
            if is_process_exit(error):
                raise
            return passage.without(error, self._app)
        return passage.through(body)

    def _inside(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # A middleware that makes an environ of its own fails here, before anything could run twice.
        passage: _GuardedRequest = environ[self._key]
        return passage.inside(self._app, environ, start_response)


class _GuardedRequest:
    """One request on its way through the middleware, with what it takes to go on without."""

    def __init__(self, isolation: PluginGuard, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        self._isolation = isolation
        self._start_response = start_response
        self._environ = environ
        self._exchange = exchange = Exchange.of(environ)
        self._input = environ["wsgi.input"]
        self._before = environ.copy() if isolation.skip else None
        self._so_far = (exchange.route, exchange.candidates, exchange.tunnel)
        self._watched: _Watched | None = None
        if isolation.skip and not isinstance(self._input, BytesIO):
            self._watched = environ["wsgi.input"] = _Watched(self._input)
        self._entered = False  # the inside has been asked
        self._head: tuple[str, list[tuple[str, str]]] | None = None  # what it has begun to answer
        self._body: list[bytes] | _Inside | None = None  # and the rest of it
        self._begun = False  # the outside has been given a head
        self._returned = False  # the middleware has
        self._left_out = False  # it has failed with the head, which has gone past it
        self._over = False
        self.foreign: BaseException | None = None  # what the middleware may let through without its being its failure

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None) -> Callable[[bytes], object]:
        """The outside's start_response, as the middleware calls it."""
        try:
            write = self._start_response(status, headers, exc_info) if exc_info else self._start_response(status, headers)
        except BaseException as error:
            if exc_info is None or error is not exc_info[1]:
                self.foreign = error
            raise
        self._begun = True
        return write

    def inside(self, app: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The inside, as the middleware calls it."""
        if environ["wsgi.input"] is self._watched:
            environ["wsgi.input"] = self._input
        self._entered = True
        own: BaseException | None = None

        def start(status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None) -> Callable[[bytes], object]:
            nonlocal own
            self._head = (status, headers.copy())
            try:
                return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)
            except BaseException as error:
                if self._is_own(error) and self._may_be_left_out() and exc_info is None:
                    self._isolation.skipped(self._exchange, error)
                    self._left_out = True
                    return self.start(*self._head)
                own = error if error is not self.foreign else None
                raise

        try:
            body = app(environ, start)
            self._body = body.copy() if type(body) is list else _Inside(body, self)
        except BaseException as error:
            if error is not own:
                self.foreign = error
            raise
        return body if type(body) is list else self._body

    def through(self, body: Iterable[bytes]) -> Iterable[bytes]:
        """The response, when the middleware has returned one."""
        if self._left_out and self._body is not None:
            return _Instead(self._body, body)
        self._returned = True
        if type(body) is list:
            self.ended()
        return body

    def without(self, error: BaseException, app: WSGIApplication) -> Iterable[bytes]:
        """The response, when the middleware has raised: the inside's if the request can go on without it. Else raises `error`."""
        if self._left_out and self._body is not None:
            return self._body
        if self._is_own(error) and self._may_be_left_out():
            if not self._entered and self._restored():
                self._isolation.skipped(self._exchange, error)
                return app(self._environ, self._start_response)
            if self._head is not None and self._body is not None and not getattr(self._body, "touched", False):
                self._isolation.skipped(self._exchange, error)
                self.start(*self._head)
                return self._body
        self.broke(error)
        self.ended()
        raise error

    def broke(self, error: BaseException) -> None:
        """Count an exception that ends the request, if it is a failure of the middleware."""
        if self._is_own(error) and not self._over:
            self._over = True
            self._isolation.failed(error)

    def ended(self) -> None:
        """The middleware is done with the request; so must the inside be."""
        if isinstance(self._body, _Inside):
            self._body.close()
        if not self._over:
            self._over = True
            self._isolation.passed()

    def _is_own(self, error: BaseException) -> bool:
        return error is not self.foreign and not isinstance(error, GatewayError) and not is_process_exit(error)

    def _may_be_left_out(self) -> bool:
        return self._before is not None and not self._begun and not self._returned

    def _restored(self) -> bool:
        """The request made what it was before the middleware; False when some of its body has been read and is gone."""
        if self._watched is not None and self._watched.touched:
            return False
        if isinstance(self._input, BytesIO):
            self._input.seek(0)
        self._environ.clear()
        self._environ.update(self._before or {})
        self._exchange.route, self._exchange.candidates, self._exchange.tunnel = self._so_far
        return True


class _Watched:
    """A request body that comes piece by piece, and whether any of it has been read."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.touched = False

    def __getattr__(self, name: str) -> Any:
        self.touched = True
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[bytes]:
        self.touched = True
        return iter(self._stream)


class _Outside:
    """The middleware's body, as the outside reads it."""

    def __init__(self, body: Iterable[bytes], passage: _GuardedRequest) -> None:
        self._body = body
        self._blocks = iter(body)
        self._passage = passage

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._blocks)
        except StopIteration:
            raise
        except BaseException as error:
            self._passage.broke(error)
            raise

    def close(self) -> None:
        try:
            _close(self._body)
        except BaseException as error:
            self._passage.broke(error)
            raise
        finally:
            self._passage.ended()


class _Inside:
    """The inside's body, as the middleware reads it. It may be closed by both."""

    def __init__(self, body: Iterable[bytes], passage: _GuardedRequest) -> None:
        self._body: Iterable[bytes] | None = body
        self._blocks = iter(body)
        self._passage = passage
        self.touched = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.touched = True
        try:
            return next(self._blocks)
        except StopIteration:
            raise
        except BaseException as error:
            self._passage.foreign = error
            raise

    def close(self) -> None:
        body, self._body = self._body, None
        try:
            _close(body)
        except BaseException as error:
            self._passage.foreign = error
            raise


class _Instead:
    """The inside's body in place of the middleware's, which is closed with it."""

    def __init__(self, body: list[bytes] | _Inside, unused: Iterable[bytes]) -> None:
        self._body = body
        self._unused = unused

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        try:
            _close(self._unused)
        finally:
            _close(self._body)


def _close(body: object) -> None:
    close = getattr(body, "close", None)
    if close is not None:
        close()
