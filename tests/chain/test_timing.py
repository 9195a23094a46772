"""`timed: true`: the time spent in one middleware, without the time spent in what it wraps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from rgate import Exchange, Middleware
from rgate.chain.pipeline import compose
from rgate.chain.timing import timed
from rgate.testing import make_environ, make_exchange

App = Callable[..., Iterable[bytes]]


class Time:
    """A clock that only moves by passes()."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr("rgate.chain.timing.perf_counter", clock)
    return clock


def spent(app: App, middleware: Middleware, time: Time, raises: type[Exception] | None = None) -> dict[str, float]:
    """exchange.plugin_seconds after a request through the timed middleware. The outside spends 100 s at each call."""

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        time.passes(100)
        return lambda block: None

    exchange: Exchange = make_exchange()
    composed = compose(app, [timed(middleware)], lambda name: None)
    time.passes(100)
    body = composed(make_environ("/", exchange), start_response)
    for _ in body:
        time.passes(100)
    getattr(body, "close", lambda: None)()
    return {name: round(seconds, 6) for name, seconds in (exchange.plugin_seconds or {}).items()}


def slow(time: Time, upstream_body: bool) -> App:
    """An app that takes 10 s for each thing that it does."""

    def blocks() -> Iterator[bytes]:
        for block in (b"a", b"b"):
            time.passes(10)
            yield block

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        time.passes(10)
        start_response("200 OK", [])
        time.passes(10)
        return blocks() if upstream_body else [b"a", b"b"]

    return app


class Body:
    """Takes 0.01 s for each block and 0.001 s to close."""

    def __init__(self, time: Time, body: Iterable[bytes]) -> None:
        self.time = time
        self.body = body
        self.blocks = iter(body)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block = next(self.blocks)
        self.time.passes(0.01)
        return block

    def close(self) -> None:
        self.time.passes(0.001)
        getattr(self.body, "close", lambda: None)()


@pytest.mark.parametrize(("upstream_body", "seconds"), [(False, 1.2), (True, 1.221)])
def test_timed_middleware_counts_its_own_time_and_nothing_elses(upstream_body: bool, seconds: float, time: Time) -> None:
    def wrap(app: App, options: Any) -> App:
        def call(environ: Any, start_response: Any) -> Iterable[bytes]:
            def start(status: str, headers: Any, exc_info: Any = None) -> Any:
                time.passes(0.2)
                return start_response(status, headers)

            time.passes(0.5)
            body = app(environ, start)
            time.passes(0.5)
            return Body(time, body) if upstream_body else body

        return call

    assert spent(slow(time, upstream_body), Middleware("mine", wrap), time) == {"mine": seconds}


def test_timed_middleware_that_answers_itself_is_counted(time: Time) -> None:
    def wrap(app: App, options: Any) -> App:
        def call(environ: Any, start_response: Any) -> Iterable[bytes]:
            time.passes(0.5)
            start_response("204 No Content", [])
            return []

        return call

    assert spent(slow(time, False), Middleware("mine", wrap), time) == {"mine": 0.5}


def test_timed_middleware_that_calls_or_is_called_twice_is_counted_once(time: Time) -> None:
    def wrap(app: App, options: Any) -> App:
        def call(environ: Any, start_response: Any) -> Iterable[bytes]:
            time.passes(0.5)
            app(environ, lambda *begun: None)
            time.passes(0.5)
            return app(environ, start_response)

        return call

    inner = compose(slow(time, False), [timed(Middleware("mine", wrap))], lambda name: None)
    assert spent(inner, Middleware("again", wrap), time) == {"mine": 2.0, "again": 1.0}


@pytest.mark.parametrize("where", ["middleware", "inside"])
def test_timed_middleware_is_counted_when_something_is_raised(where: str, time: Time) -> None:
    def wrap(app: App, options: Any) -> App:
        def call(environ: Any, start_response: Any) -> Iterable[bytes]:
            time.passes(0.5)
            if where == "inside":
                return app(environ, start_response)
            raise KeyError("x")

        return call

    def failing(environ: Any, start_response: Any) -> Iterable[bytes]:
        time.passes(10)
        raise KeyError("x")

    exchange = make_exchange()
    composed = compose(failing, [timed(Middleware("mine", wrap))], lambda name: None)
    with pytest.raises(KeyError):
        composed(make_environ("/", exchange), lambda *begun: lambda block: None)
    assert exchange.plugin_seconds == {"mine": 0.5}
