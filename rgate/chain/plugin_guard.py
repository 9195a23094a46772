"""`on_error`: what happens when a plugin's middleware fails. PluginGuard decides; a middleware without `on_error` has none.

    skip              if the middleware fails before it has called what it wraps, the request goes on without the middleware
    {disable_after: N}  after N failed requests in a row the middleware is disabled, and requests bypass it

Both stand on either side of the middleware: outside of it, where its exceptions come out, and inside of it, where it calls
what it wraps. A failure is an exception of the middleware itself. A GatewayError, or an exception of the inside that only
passes through the middleware, is not one.
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
from .body_wrapper import BodyWrapper, close_body
from .exchange import Exchange
from .middleware import Middleware
from .pipeline import validate_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["PluginGuard", "guarded"]

_log = logging.getLogger("rgate.chain")


class PluginGuard:
    """Counts the failures of one plugin's middleware, for all routes of a gateway. Used by many threads.

    disable_after  after this many failed requests in a row the middleware is disabled; None: `on_error: skip`
    disabled       whether it is
    notice         what the operator should know, "" for nothing
    on_change      called when `notice` has changed
    """

    def __init__(self, plugin: str, *, disable_after: int | None, on_change: Callable[[], object]) -> None:
        self._plugin = plugin
        self.disable_after = disable_after
        self.disabled = False
        self.notice = ""
        self._on_change = on_change
        self._failures_in_a_row = 0
        self._skipped = 0
        self._lock = threading.Lock()

    def record_success(self) -> None:
        """A request has passed through the middleware without a failure."""
        if self._failures_in_a_row:
            with self._lock:
                self._failures_in_a_row = 0

    def record_skip(self, exchange: Exchange, error: BaseException) -> None:
        """The middleware has failed, and its request goes on without it."""
        _log.error(
            "%s: plugin %s failed in rgate_middlewares; this request goes on without it: %r",
            exchange.id, self._plugin, error, exc_info=error, extra={"dedup_key": (self._plugin, *exception_key(error))},
        )  # fmt: skip
        with self._lock:
            self._skipped += 1
            self.notice = f"plugin {self._plugin} has failed and was skipped, for {self._skipped} requests so far: {error!r}"
        self._on_change()

    def record_failure(self, error: BaseException) -> None:
        """The middleware has failed, and its request ends in a fault, which is logged where that is answered."""
        with self._lock:
            self._failures_in_a_row += 1
            if self.disable_after is None or self._failures_in_a_row < self.disable_after or self.disabled:
                return
            self.disabled = True
            self.notice = (
                f"plugin {self._plugin} is disabled after {self.disable_after} failures in a row, the last of them {error!r}"
            )
        _log.error("%s; a reload enables it again", self.notice)
        self._on_change()


def guarded(middleware: Middleware, guard: PluginGuard) -> Middleware:
    """The middleware with `guard` around it."""
    kind = _Skipping if guard.disable_after is None else _Counting
    return replace(middleware, wrap=lambda app, options: kind(middleware, app, options, guard))


class _Guarded:
    def __init__(self, middleware: Middleware, app: WSGIApplication, options: Any, guard: PluginGuard) -> None:
        self._app = app
        self._guard = guard
        self._key = f"rgate.guarded.{middleware.name}"
        self._middleware = validate_app(middleware.name, middleware.wrap(self._call_inside, options))

    def _call_inside(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The inside, as the middleware calls it. If that passes an environ of its own, the key is missing and it fails here."""
        return environ[self._key].call_inside(self._app, environ, start_response)  # type: ignore[no-any-return]


class _Skipping(_Guarded):
    """`on_error: skip`. The response is returned unwrapped, so that the server can relay it."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = _SkippableRequest(environ, start_response)
        environ[self._key] = request
        try:
            body: Iterable[bytes] | None = self._middleware(environ, request.start_response)
            if body is None:  # otherwise noticed only where the body is iterated
                raise TypeError("the middleware returned None instead of a response body")
            return body
        except BaseException as error:
            if isinstance(error, GatewayError) or is_process_exit(error) or not request.restore():
                raise
            self._guard.record_skip(Exchange.of(environ), error)
        return self._app(environ, start_response)


class _SkippableRequest:
    """A request as it was before the middleware, to be restored if the middleware fails."""

    __slots__ = ("_environ", "_fields", "_input", "_past_skipping", "_saved", "_start_response", "_tracked_input")

    def __init__(self, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        exchange = Exchange.of(environ)
        self._environ = environ
        self._saved = environ.copy()
        self._fields = (exchange.route, exchange.candidates, exchange.tunnel)
        self._start_response = start_response
        self._past_skipping = False  # the middleware has called the inside, or begun a response
        self._input = environ["wsgi.input"]
        self._tracked_input: _TrackedInput | None = None
        if not isinstance(self._input, BytesIO):
            self._tracked_input = environ["wsgi.input"] = _TrackedInput(self._input)

    def start_response(self, *head: Any) -> Callable[[bytes], object]:
        self._past_skipping = True
        return self._start_response(*head)

    def call_inside(self, app: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self._past_skipping = True
        if environ["wsgi.input"] is self._tracked_input:
            environ["wsgi.input"] = self._input
        return app(environ, start_response)

    def restore(self) -> bool:
        """Undo what the middleware has changed. False where it is too late, or some of a body that streams may have been read."""
        if self._past_skipping or (self._tracked_input is not None and self._tracked_input.was_used):
            return False
        if isinstance(self._input, BytesIO):
            self._input.seek(0)
        self._environ.clear()
        self._environ.update(self._saved)
        exchange = Exchange.of(self._environ)
        exchange.route, exchange.candidates, exchange.tunnel = self._fields
        return True


class _TrackedInput:
    """A request body that streams, and whether any of it may have been read."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.was_used = False

    def __getattr__(self, name: str) -> Any:
        self.was_used = True
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[bytes]:
        self.was_used = True
        return iter(self._stream)


class _Counting(_Guarded):
    """`on_error: {disable_after: N}`. A response that streams is wrapped, because its body may fail too."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._guard.disabled:
            return self._app(environ, start_response)
        request = environ[self._key] = _CountedRequest(self._guard)
        try:
            body = self._middleware(environ, _reporting(start_response, request.received))
            if type(body) is not list:
                return _ReportingBody(body, request.end, request.end)
        except BaseException as error:
            request.end(error)
            raise
        request.end()
        return body


class _CountedRequest:
    """One request passing through the middleware, and whose the exception was that crossed a side of the middleware last."""

    __slots__ = ("_guard", "_other_error", "_own_error")

    def __init__(self, guard: PluginGuard) -> None:
        self._guard: PluginGuard | None = guard
        self._own_error: BaseException | None = None
        self._other_error: BaseException | None = None

    def call_inside(self, app: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body: Iterable[bytes] = _reporting(app, self.received)(environ, _reporting(start_response, self._raised))
        return body if type(body) is list else _ReportingBody(body, self.received)

    def received(self, error: BaseException) -> None:
        """The middleware has called something else, which raised `error`."""
        if error is not self._own_error:
            self._other_error = error

    def _raised(self, error: BaseException) -> None:
        """The inside has called the middleware, which raised `error`."""
        if error is not self._other_error:
            self._own_error = error

    def end(self, error: BaseException | None = None) -> None:
        """The middleware is done with the request, or has raised `error`. Only the first call counts."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        if error is None or error is self._other_error or isinstance(error, GatewayError) or is_process_exit(error):
            guard.record_success()
        else:
            guard.record_failure(error)


def _reporting(function: Callable[..., Any], report: Callable[[BaseException], object]) -> Callable[..., Any]:
    """`function`, with what it raises passed to `report` before it is raised."""

    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except BaseException as error:
            report(error)
            raise

    return call


class _ReportingBody(BodyWrapper):
    """The same for a body; `on_close` is called when it has been closed."""

    __slots__ = ("_on_close", "_report")

    def __init__(
        self, body: Iterable[bytes], report: Callable[[BaseException], object], on_close: Callable[[], object] = lambda: None
    ) -> None:
        super().__init__(body)
        self._report = report
        self._on_close = on_close

    def __next__(self) -> bytes:
        try:
            return next(self.blocks)
        except StopIteration:
            raise
        except BaseException as error:
            self._report(error)
            raise

    def close(self) -> None:
        _reporting(close_body, self._report)(self.body)
        self._on_close()
