"""The time that is spent inside of one middleware, without what it wraps: `timed: true`.

Every crossing between the middleware and what stands around it, in either direction, stops or goes on with its clock. What
it has spent is in `exchange.plugin_seconds`, for whoever counts it. A middleware that is not timed has none of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

from .exchange import Exchange
from .middleware import Middleware
from .pipeline import validate_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["timed"]

_Turn: TypeAlias = "Callable[[], None]"


def timed(middleware: Middleware) -> Middleware:
    """The middleware, with its clock on both sides of it."""

    def wrap(app: WSGIApplication, options: Any) -> WSGIApplication:
        return _Timed(middleware, app, options)

    return replace(middleware, wrap=wrap)


class _Timed:
    def __init__(self, middleware: Middleware, app: WSGIApplication, options: Any) -> None:
        self._app = app
        self._name = middleware.name
        self._key = f"rgate.timed.{middleware.name}"
        self._wrapped = validate_app(middleware.name, middleware.wrap(self._inside, options))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        exchange = Exchange.of(environ)
        if exchange.plugin_seconds is None:
            exchange.plugin_seconds = {}
        clock = environ[self._key] = _Clock(exchange.plugin_seconds, self._name)
        return _cross(self._wrapped, environ, start_response, clock.go, clock.stop)

    def _inside(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        clock: _Clock = environ[self._key]
        return _cross(self._app, environ, start_response, clock.stop, clock.go)


class _Clock:
    """Runs between go() and stop()."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds = seconds
        self._name = name
        self._since = 0.0
        seconds.setdefault(name, 0.0)  # asked again, by a retry outside of it, it goes on

    def go(self) -> None:
        self._since = perf_counter()

    def stop(self) -> None:
        self._seconds[self._name] += perf_counter() - self._since


def _cross(
    app: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse, enter: _Turn, leave: _Turn
) -> Iterable[bytes]:
    """Call `app`, with `enter` on the way in and `leave` on the way out, however it goes there."""

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
    return body if type(body) is list else _Crossed(body, enter, leave)


class _Crossed:
    """A body that is read from the other side."""

    def __init__(self, body: Iterable[bytes], enter: _Turn, leave: _Turn) -> None:
        self._body = body
        self._blocks = iter(body)
        self._enter = enter
        self._leave = leave

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._enter()
        try:
            return next(self._blocks)
        finally:
            self._leave()

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            self._enter()
            try:
                close()
            finally:
                self._leave()
