"""`on_error`: what happens to requests in which a plugin's middleware fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from rgate import ConnectionRefused, Exchange, Gateway, Middleware, PluginError, hookimpl
from rgate.chain.pipeline import compose
from rgate.chain.plugin_guard import PluginGuard, guarded
from rgate.testing import (
    ScriptedBackend,
    assert_error,
    client,
    http_response,
    make_environ,
    make_gateway,
    respond_with,
    running_gateway,
)

from ..support.forwarding import forwarding
from ..support.raw_client import RawClient
from ..support.waiting import eventually

App = Callable[..., Iterable[bytes]]


class Plugin:
    """A plugin named "mine" whose middleware is a function of the app that it wraps."""

    def __init__(self, wrap: Callable[[App], App], **more: Any) -> None:
        self._wrap = wrap
        self._more = more

    @hookimpl
    def rgate_middlewares(self, gateway: Gateway) -> Middleware:
        return Middleware("mine", lambda app, options: self._wrap(app), **self._more)


class Backend:
    """An app that records what a middleware might have changed in its requests."""

    def __init__(self, body: Iterable[bytes] = (b"hello",)) -> None:
        self.body = body
        self.requests: list[tuple[str | None, bytes]] = []
        self.closed = 0

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.requests.append((environ.get("HTTP_X_MINE"), environ["wsgi.input"].read()))
        start_response("200 OK", [("X-Backend", "1")])
        return [*self.body] if isinstance(self.body, tuple) else self

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.body)

    def close(self) -> None:
        self.closed += 1


def before(app: App) -> App:
    """Fails before it has called what it wraps, having changed the request."""

    def call(environ: Any, start_response: Any) -> Iterable[bytes]:
        environ["HTTP_X_MINE"] = environ["wsgi.input"].read().decode()
        Exchange.of(environ).candidates = ()
        raise KeyError("before")

    return call


def with_the_head(app: App) -> App:
    """Fails when the inside calls its start_response."""

    def call(environ: Any, start_response: Any) -> Iterable[bytes]:
        def start(status: str, headers: Any, exc_info: Any = None) -> Any:
            headers.append(("X-Mine", "1"))
            raise KeyError("head")

        return app(environ, start)

    return call


def after(app: App) -> App:
    """Holds the head back, and fails once it has the body."""

    def call(environ: Any, start_response: Any) -> Iterable[bytes]:
        app(environ, lambda *begun: None)
        raise KeyError("after")

    return call


def returns_none(app: App) -> App:
    """Returns None."""

    def call(environ: Any, start_response: Any) -> Iterable[bytes]:
        return None  # type: ignore[return-value]

    return call


def begun(app: App) -> App:
    """Fails after the response has begun."""

    def call(environ: Any, start_response: Any) -> Iterable[bytes]:
        app(environ, start_response)
        raise KeyError("begun")

    return call


def read(app: App) -> App:
    """Fails after it has read some of the response."""

    def call(environ: Any, start_response: Any) -> Iterable[bytes]:
        next(iter(app(environ, lambda *begun: None)))
        raise KeyError("read")

    return call


def gateway(wrap: Callable[[App], App], backend: App, on_error: Any, **more: Any) -> Any:
    config = {"plugins": {"mine": {"on_error": on_error}}}
    return running_gateway(config, {"orders": backend}, {"mine": Plugin(wrap, **more)})


@pytest.mark.parametrize("place", [{}, {"before": "routing"}, {"before": "stats"}, {"after": "selection"}])
@pytest.mark.parametrize("body", [(b"he", b"llo"), [b"he", b"llo"]], ids=["whole", "streamed"])
@pytest.mark.parametrize("wrap", [before, returns_none])
def test_skip_continues_without_a_middleware_that_fails_before_it_calls_the_inside(
    wrap: Callable[[App], App], body: Iterable[bytes], place: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    backend = Backend(body)
    with gateway(wrap, backend, "skip", **place) as running:
        response = client(running).post("/orders", data=b"data")
        assert (response.status_code, response.data) == (200, b"hello")
        assert response.headers["X-Backend"] == "1"
        assert running.readiness.warnings["plugins"].startswith(
            "plugin 'mine' has failed and was skipped, for 1 requests so far: "
        )
    assert backend.requests == [(None, b"data")], "the backend is called once, with the request as the client has sent it"
    assert backend.closed == (1 if isinstance(body, list) else 0)
    (record,) = (record for record in caplog.records if record.name == "rgate.chain")
    assert "plugin 'mine' failed in rgate_middlewares; this request goes on without it: " in record.getMessage()
    assert record.exc_info is not None


@pytest.mark.parametrize("body", [(b"he", b"llo"), [b"he", b"llo"]], ids=["whole", "streamed"])
@pytest.mark.parametrize("wrap", [with_the_head, after, begun, read])
def test_skip_of_a_middleware_that_has_called_the_inside_is_a_fault_of_the_plugin(
    wrap: Callable[[App], App], body: Iterable[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    backend = Backend(body)
    with gateway(wrap, backend, "skip") as running:
        assert_error(client(running).post("/orders", data=b"data"), 500, "internal")
        assert not running.readiness.warnings
    assert len(backend.requests) == 1
    assert any("plugin 'mine' failed in rgate_middlewares: KeyError(" in record.getMessage() for record in caplog.records)


def test_skip_of_a_middleware_that_has_begun_a_response_is_a_fault() -> None:
    def answering_itself(app: App) -> App:
        def call(environ: Any, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [])
            raise KeyError("begun")

        return call

    backend = Backend()
    with gateway(answering_itself, backend, "skip") as running:
        assert_error(client(running).get("/orders"), 500, "internal")
    assert not backend.requests


def test_response_that_a_failing_middleware_has_left_open_is_closed() -> None:
    options = {"mine": {"on_error": "skip"}}
    with (
        ScriptedBackend(http_response(b"x" * 5_000_000)) as backend,
        forwarding(backend, plugins={"mine": Plugin(read)}, options=options) as live,
        RawClient(live.url) as connected,
    ):
        assert connected.get("/").status == 500
        eventually(lambda: live.in_flight == 0, "the response is closed")


def test_skip_returns_the_body_of_the_inside_unwrapped_so_that_it_can_be_relayed() -> None:
    body = Backend([b"hello"])
    guard = PluginGuard("mine", disable_after=None, on_change=lambda: None)
    app = compose(body, [guarded(Middleware("mine", lambda app, options: app), guard)], lambda name: None)
    assert app(make_environ(), lambda *head: lambda block: None) is body


def test_skip_is_not_for_what_a_middleware_refuses_on_purpose() -> None:
    def refusing(app: App) -> App:
        def call(environ: Any, start_response: Any) -> Iterable[bytes]:
            raise ConnectionRefused("not today")

        return call

    backend = Backend()
    with gateway(refusing, backend, "skip") as running:
        assert_error(client(running).get("/orders"), 503, "refused")
        assert not running.readiness.warnings
    assert not backend.requests


def test_skip_is_not_for_failures_of_the_inside() -> None:
    def failing(environ: Any, start_response: Any) -> Iterable[bytes]:
        calls.append(1)
        raise KeyError("inside")

    calls: list[int] = []
    with gateway(lambda app: lambda environ, start: app(environ, start), failing, "skip") as running:
        assert_error(client(running).get("/orders"), 500, "internal")
        assert not running.readiness.warnings
    assert calls == [1]


def test_skip_of_a_middleware_that_makes_an_environ_of_its_own_calls_the_inside_once() -> None:
    def bare(app: App) -> App:
        def call(environ: Any, start_response: Any) -> Iterable[bytes]:
            return app({"wsgi.input": environ["wsgi.input"]}, start_response)

        return call

    backend = Backend()
    with gateway(bare, backend, "skip") as running:
        assert client(running).get("/orders").data == b"hello"
    assert len(backend.requests) == 1


def test_skip_of_what_has_read_from_a_body_that_streams_is_a_fault() -> None:
    def reading(app: App) -> App:
        def call(environ: Any, start_response: Any) -> Iterable[bytes]:
            environ["wsgi.input"].read(1)
            raise KeyError("read")

        return call

    options = {"mine": {"on_error": "skip"}}
    with (
        ScriptedBackend(http_response(b"ok")) as backend,
        forwarding(backend, plugins={"mine": Plugin(reading)}, options=options, body_buffer_bytes=0) as live,
        RawClient(live.url) as connected,
    ):
        connected.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        assert connected.response().status == 500
        assert backend.requests == []


def test_skip_before_a_body_that_streams_lets_it_pass() -> None:
    def failing(app: App) -> App:
        def call(environ: Any, start_response: Any) -> Iterable[bytes]:
            raise KeyError("before")

        return call

    options = {"mine": {"on_error": "skip"}}
    with (
        ScriptedBackend(http_response(b"x" * 500_000)) as backend,
        forwarding(backend, plugins={"mine": Plugin(failing)}, options=options, body_buffer_bytes=0) as live,
        RawClient(live.url) as connected,
    ):
        connected.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        assert connected.response().body == b"x" * 500_000
        assert b"hello" in backend.requests[0].body
        eventually(lambda: live.in_flight == 0, "the response is closed")


# disable_after


class Sometimes:
    """Fails while `failing` is set: before it has called what it wraps, or after that."""

    def __init__(self, *, after: bool = False) -> None:
        self.failing = True
        self.after = after
        self.calls = 0

    def __call__(self, app: App) -> App:
        def call(environ: Any, start_response: Any) -> Iterable[bytes]:
            self.calls += 1
            if self.failing and not self.after:
                raise KeyError("x")
            body = app(environ, start_response)
            if self.failing:
                raise KeyError("x")
            return body

        return call


@pytest.mark.parametrize("after", [False, True], ids=["before the inside", "after the inside"])
def test_disable_after_disables_the_middleware_and_says_so(after: bool, caplog: pytest.LogCaptureFixture) -> None:
    wrap = Sometimes(after=after)
    with gateway(wrap, Backend(), {"disable_after": 3}) as running:
        for _ in range(3):
            assert not running.readiness.warnings
            assert_error(client(running).get("/orders"), 500, "internal")
        notice = "plugin 'mine' is disabled after 3 failures in a row, the last of them KeyError('x')"
        assert running.readiness.warnings == {"plugins": notice}
        assert [client(running).get("/orders").data for _ in range(2)] == [b"hello"] * 2
    assert wrap.calls == 3
    messages = [record.getMessage() for record in caplog.records if record.name == "rgate.chain"]
    assert messages == [f"{notice}; a reload enables it again"]


def test_disable_after_counts_failures_before_and_after_the_inside_together() -> None:
    wrap = Sometimes()
    with gateway(wrap, Backend(), {"disable_after": 4}) as running:
        for wrap.after in (False, True, True, False):
            assert not running.readiness.warnings
            assert_error(client(running).get("/orders"), 500, "internal")
        assert running.readiness.warnings


@pytest.mark.parametrize("after", [False, True], ids=["before the inside", "after the inside"])
def test_disable_after_counts_failures_in_a_row(after: bool) -> None:
    wrap = Sometimes(after=after)
    with gateway(wrap, Backend(), {"disable_after": 2}) as running:
        for failing in (True, False) * 3:
            wrap.failing = failing
            assert client(running).get("/orders").status_code == (500 if failing else 200)
        assert not running.readiness.warnings


@pytest.mark.parametrize("place", ["body", "close"])
def test_disable_after_counts_bodies_that_break_off(place: str) -> None:
    class Broken:
        def __init__(self, body: Iterable[bytes]) -> None:
            self.body = body

        def __iter__(self) -> Iterator[bytes]:
            if place == "body":
                raise KeyError("midway")
            return iter(self.body)

        def close(self) -> None:
            getattr(self.body, "close", lambda: None)()
            if place == "close":
                raise KeyError("close")

    backend = Backend([b"he", b"llo"])
    with gateway(lambda app: lambda *request: Broken(app(*request)), backend, {"disable_after": 1}) as running:
        with suppress(KeyError):
            client(running).get("/orders")
        assert "is disabled" in running.readiness.warnings["plugins"]
        assert backend.closed == 1
        assert client(running).get("/orders").data == b"hello"


@pytest.mark.parametrize("streamed", [False, True], ids=["call", "body"])
def test_disable_after_does_not_count_failures_of_the_inside(streamed: bool) -> None:
    class Broken(Backend):
        def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
            if streamed:
                return super().__call__(environ, start_response)
            raise KeyError("inside")

        def __iter__(self) -> Iterator[bytes]:
            yield b""
            raise KeyError("inside")

    with gateway(lambda app: lambda *request: iter(app(*request)), Broken([]), {"disable_after": 1}) as running:
        with suppress(KeyError):
            client(running).get("/orders")
        assert not running.readiness.warnings


def test_disable_after_does_not_count_failures_of_what_is_outside() -> None:
    def start_response(*head: object) -> Any:
        raise KeyError("outside")

    notices: list[int] = []
    guard = PluginGuard("mine", disable_after=1, on_change=lambda: notices.append(1))
    app = compose(respond_with(b""), [guarded(Middleware("mine", lambda app, options: app), guard)], lambda name: None)
    with pytest.raises(KeyError, match="outside"):
        app(make_environ(), start_response)
    assert not notices and not guard.disabled


def test_disabled_middleware_is_enabled_by_a_reload() -> None:
    from rgate.config import load_text
    from rgate.plugin.registry import Registry
    from rgate.runtime.gateway import build
    from rgate.runtime.runtime import Runtime

    def made(runtime: Runtime | None) -> Gateway:
        registry = Registry()
        registry.register("mine", Plugin(wrap))
        config = "plugins: {mine: {on_error: {disable_after: 1}}, disable: [docker, stats]}"
        return build(load_text(config, registry, {}), registry, runtime)

    wrap = Sometimes()
    first = made(None)
    first.plugin_guards["mine"].record_failure(KeyError("x"))
    assert first.readiness.warnings
    second = made(first.runtime)
    assert second.readiness.warnings, "the first is still the one that serves"
    first.runtime.activate(second)
    assert not second.readiness.warnings and not second.plugin_guards["mine"].disabled


def test_on_error_fail_has_no_guard() -> None:
    plain = Middleware("mine", lambda app, options: app)

    class Plain:
        @hookimpl
        def rgate_middlewares(self, gateway: Gateway) -> Middleware:
            return plain

    assert not make_gateway({"plugins": {"mine": {"on_error": "fail"}}}, {}, {"mine": Plain()}).plugin_guards


@pytest.mark.parametrize("on_error", ["skip", {"disable_after": 5}])
@pytest.mark.parametrize("name", ["routing", "selection", "faults", "mine"])
def test_essential_middleware_can_only_fail(name: str, on_error: Any) -> None:
    with pytest.raises(PluginError, match=f"plugin '{name}': no request may pass without it, so on_error can only be fail"):
        make_gateway({"plugins": {name: {"on_error": on_error}}}, {}, {"mine": Plugin(before, essential=True)})


def test_use_entry_can_be_skipped_too() -> None:
    config = {"use": [{"app": f"{__name__}:before", "name": "used", "on_error": "skip", "timed": True}]}
    with running_gateway(config, {"orders": respond_with(b"ok")}) as running:
        assert client(running).get("/orders").data == b"ok"
        assert "plugin 'used' (use) has failed" in running.readiness.warnings["plugins"]
