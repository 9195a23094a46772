"""Plugins that fail while requests are served: each costs its own request, is named, and leaves nothing open."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest

from rgate import Endpoint, Exchange, Gateway, GatewayError, Middleware, hookimpl
from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.forwarding import Forwarding, forwarding
from ..support.raw_client import RawClient
from ..support.waiting import eventually

App = Callable[..., Iterable[bytes]]
LARGE = b"x" * 1_000_000
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Plugin:
    """A plugin named "mine" whose middleware is a function of the app around which it stands."""

    def __init__(self, wrap: Callable[[App], App], **place: str) -> None:
        self._wrap = wrap
        self._place = place

    @hookimpl
    def rgate_middlewares(self, gateway: Gateway) -> Middleware:
        return Middleware("mine", lambda app, options: self._wrap(app), **self._place)


def raises_first(error: BaseException) -> Callable[[App], App]:
    def wrap(app: App) -> App:
        def call(environ: Any, start_response: Any) -> Iterable[bytes]:
            raise error

        return call

    return wrap


def raises_afterwards(error: BaseException) -> Callable[[App], App]:
    """Has the backend's response, and then fails without closing it."""

    def wrap(app: App) -> App:
        def call(environ: Any, start_response: Any) -> Iterable[bytes]:
            app(environ, start_response)
            raise error

        return call

    return wrap


def raises_midway(error: BaseException) -> Callable[[App], App]:
    def wrap(app: App) -> App:
        def blocks(body: Iterable[bytes]) -> Iterator[bytes]:
            yield next(iter(body))
            raise error

        return lambda environ, start_response: blocks(app(environ, start_response))

    return wrap


def forgets_to_close(app: App) -> App:
    def call(environ: Any, start_response: Any) -> Iterable[bytes]:
        return (block for block in app(environ, start_response))

    return call


def upstream_body(connection: ScriptedConnection) -> None:
    while connection.read_request() is not None:
        connection.send(http_response(LARGE))


def at_rest(live: Forwarding) -> bool:
    return live.in_flight == 0


def named(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says about failing plugins, without the ids of requests."""
    messages = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    return [message.partition(": ")[2] for message in messages if "plugin" in message]


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(3), RecursionError("deep"), MemoryError()])
@pytest.mark.parametrize("wrap", [raises_first, raises_afterwards])
def test_middleware_that_raises_costs_each_request_a_500_and_nothing_more(
    wrap: Callable[[BaseException], Callable[[App], App]], error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    with ScriptedBackend(upstream_body) as backend, forwarding(backend, plugins={"mine": Plugin(wrap(error))}, threads=2) as live:
        for _ in range(5):
            with RawClient(live.url) as client:
                response = client.get("/")
                assert (response.status, json.loads(response.body)["reason"]) == (500, "internal")
        assert live.server.threads == 2, "a thread has died"
        eventually(lambda: at_rest(live), "the backend's responses are closed")
    assert named(caplog) == [f"plugin 'mine' failed in rgate_middlewares: {error!r}"] * 5


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(3)])
def test_middleware_that_raises_within_a_body_has_the_connection_cut(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    plugins = {"mine": Plugin(raises_midway(error))}
    with ScriptedBackend(upstream_body) as backend, forwarding(backend, plugins=plugins, threads=2) as live:
        for _ in range(5):
            with RawClient(live.url) as client:
                client.send(GET)
                assert len(client.rest()) < len(LARGE)
        assert live.server.threads == 2, "a thread has died"
        eventually(lambda: at_rest(live), "the backend's responses are closed")
    assert named(caplog) == [f"plugin 'mine' failed in rgate_middlewares: {error!r}"] * 5


def test_middleware_that_forgets_to_close_leaves_nothing_open() -> None:
    with (
        ScriptedBackend(upstream_body) as backend,
        forwarding(backend, plugins={"mine": Plugin(forgets_to_close)}) as live,
        RawClient(live.url) as client,
    ):
        client.send(GET)
        client.until(b"xxx")
        client.close()
        eventually(lambda: at_rest(live), "the backend's response is closed although the client has left")


class Failing:
    """A plugin whose other code that runs for requests fails."""

    name = "failing"

    @hookimpl
    def rgate_selection_policies(self, config: object) -> Failing:
        return self

    def pick(self, candidates: Iterable[Endpoint], exchange: Exchange) -> Endpoint:
        raise KeyError("pick")

    @hookimpl
    def rgate_local_routes(self, gateway: Gateway) -> Mapping[str, App]:
        return {"/local": raises_first(KeyError("local"))(lambda *_: [])}

    @hookimpl
    def rgate_fault_response(self, exchange: Exchange, error: GatewayError) -> None:
        if error.reason == "no_route":
            raise KeyError("fault")

    @hookimpl
    def rgate_middlewares(self, gateway: Gateway) -> Middleware:
        def wrap(app: App, options: object) -> App:
            def call(environ: Any, start_response: Any) -> Iterable[bytes]:
                Exchange.of(environ).on_finish(self.finished)
                return app(environ, start_response)

            return call

        return Middleware("mine", wrap, before="routing")

    def finished(self, exchange: Exchange) -> None:
        raise KeyError("finished")


@pytest.mark.parametrize(
    ("path", "status", "failures"),
    [
        ("/x", 500, ["rgate_selection_policies: KeyError('pick')", "on_finish: KeyError('finished')"]),
        ("/local", 500, ["rgate_local_routes: KeyError('local')"]),
        ("/none", 404, ["rgate_fault_response: KeyError('fault')", "on_finish: KeyError('finished')"]),
    ],
)
def test_plugin_that_fails_outside_of_its_middleware_is_named_with_the_hook(
    path: str, status: int, failures: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    route = {"path_prefix": "/x"}
    with (
        ScriptedBackend() as one,
        ScriptedBackend() as other,
        forwarding(one, other, route=route, plugins={"mine": Failing()}, policy="failing") as live,
        RawClient(live.url) as client,
    ):
        assert client.get(path).status == status
    assert named(caplog) == [f"plugin 'mine' failed in {failure}" for failure in failures]
