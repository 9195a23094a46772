"""`timed: true`: the time spent in one middleware, without the time spent in what it wraps.

The clock is stopped or resumed at every call, in either direction, between the middleware and what is around it. The total is
in `exchange.plugin_seconds`, for plugins that report it. A middleware without `timed` has none of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

from .body_wrapper import BodyWrapper, close_body
from .exchange import Exchange
from .middleware import Middleware
from .pipeline import validate_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["timed"]

_Callback: TypeAlias = "Callable[[], None]"


def timed(middleware: Middleware) -> Middleware:
    """The middleware with its clock on both sides of it."""

    def wrap(app: WSGIApplication, options: Any) -> WSGIApplication:
        return _Timed(middleware, app, options)

    return replace(middleware, wrap=wrap)


class _Timed:
    def __init__(self, middleware: Middleware, app: WSGIApplication, options: Any) -> None:
        self._app = app
        self._name = middleware.name
        self._key = f"rgate.timed.{middleware.name}"
        self._middleware = validate_app(middleware.name, middleware.wrap(self._call_inside, options))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        exchange = Exchange.of(environ)
        if exchange.plugin_seconds is None:
            exchange.plugin_seconds = {}
        clock = environ[self._key] = _Clock(exchange.plugin_seconds, self._name)
        return _timed_call(self._middleware, environ, start_response, clock.resume, clock.stop)

    def _call_inside(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        clock: _Clock = environ[self._key]
        return _timed_call(self._app, environ, start_response, clock.stop, clock.resume)


class _Clock:
    """Counts the time between resume() and stop()."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds = seconds
        self._name = name
        self._resumed_at = 0.0
        seconds.setdefault(name, 0.0)  # a second call, by a retry outside of the middleware, adds to the first

    def resume(self) -> None:
        self._resumed_at = perf_counter()

    def stop(self) -> None:
        self._seconds[self._name] += perf_counter() - self._resumed_at


def _timed_call(
    app: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse, enter: _Callback, leave: _Callback
) -> Iterable[bytes]:
    """Call `app`, with `enter` called whenever control passes to it and `leave` whenever it comes back."""

    def start(*arguments: Any) -> Callable[[bytes], object]:
        leave()
        try:
            return start_response(*arguments)
        finally:
            enter()

    enter()
    try:
        body = app(environ, start)
    finally:
        leave()
    return body if type(body) is list else _TimedBody(body, enter, leave)


class _TimedBody(BodyWrapper):
    __slots__ = ("_enter", "_leave")

    def __init__(self, body: Iterable[bytes], enter: _Callback, leave: _Callback) -> None:
        super().__init__(body)
        self._enter = enter
        self._leave = leave

    def __next__(self) -> bytes:
        self._enter()
        try:
            return next(self.blocks)
        finally:
            self._leave()

    def close(self) -> None:
        self._enter()
        try:
            close_body(self.body)
        finally:
            self._leave()
