"""The order of the chain, and its composition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from rgate import Middleware, PluginError
from rgate.chain.pipeline import STANDARD_ORDER, compose, order
from rgate.testing import client, make_environ, make_exchange, respond_with

App = Callable[..., Iterable[bytes]]


def middleware(name: str, **place: str) -> Middleware:
    return Middleware(name, lambda app, options: app, **place)


def names(*middlewares: Middleware, wanted: list[str] | None = None) -> list[str]:
    return [one.name for one in order(middlewares, wanted)]


# order


def test_order_of_builtins_is_the_standard_one_however_they_come() -> None:
    builtins = [middleware(name) for name in STANDARD_ORDER]
    assert names(*reversed(builtins)) == list(STANDARD_ORDER)
    assert names(*builtins[::2]) == list(STANDARD_ORDER[::2])


def test_order_third_party_is_where_it_says() -> None:
    assert names(
        middleware("routing"), middleware("selection"), middleware("faults"),
        middleware("auth", after="routing"), middleware("cors", before="faults"), middleware("last", after="selection"),
    ) == ["cors", "faults", "routing", "auth", "selection", "last"]  # fmt: skip


def test_order_without_a_position_is_directly_inside_routing() -> None:
    assert names(middleware("selection"), middleware("x"), middleware("routing")) == ["routing", "x", "selection"]


def test_order_at_one_position_is_by_name() -> None:
    assert names(middleware("b"), middleware("routing"), middleware("a", after="routing"), middleware("c")) == [
        "routing",
        "a",
        "b",
        "c",
    ]


def test_order_may_name_a_builtin_that_is_not_active() -> None:
    assert names(middleware("selection"), middleware("x", before="retry"), middleware("y", after="retry")) == [
        "x",
        "y",
        "selection",
    ]


def test_order_of_the_operator_is_used_as_it_is() -> None:
    assert names(middleware("routing"), middleware("x", before="routing"), wanted=["routing", "x"]) == ["routing", "x"]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (["routing"], "missing x"),
        (["routing", "x", "y"], "not active y"),
        (["routing", "y"], "missing x; not active y"),
        (["routing", "x", "x"], "one is named twice"),
    ],
)
def test_order_of_the_operator_must_name_each_once(wanted: list[str], words: str) -> None:
    with pytest.raises(PluginError, match=words):
        names(middleware("routing"), middleware("x"), wanted=wanted)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (middleware("x", before="routing", after="faults"), "both before and after"),
        (middleware("x", before="routnig"), "before='routnig'; the names are stats"),
        (middleware("x", after="y"), "after='y'"),
    ],
)
def test_order_invalid_position_is_refused(bad: Middleware, words: str) -> None:
    with pytest.raises(PluginError, match=words):
        names(middleware("routing"), bad)


def test_order_two_of_one_name_are_refused() -> None:
    with pytest.raises(PluginError, match="two plugins bring a middleware named 'x'"):
        names(middleware("x"), middleware("x"))


# compose


def tagging(tag: str) -> Middleware:
    def wrap(app: App, options: Any) -> App:
        def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            environ.setdefault("seen", []).append((tag, options))
            return app(environ, start_response)

        return call

    return Middleware(tag, wrap)


def test_compose_first_is_outermost_and_has_its_own_options() -> None:
    app = compose(respond_with(b"x"), [tagging("a"), tagging("b")], {"a": 1, "b": 2}.get)
    environ = make_environ()
    app(environ, lambda *_: lambda _: None)
    assert environ["seen"] == [("a", 1), ("b", 2)]


class GeneratorApp:
    def __call__(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        yield b""


def generator_app(environ: Any, start_response: Any) -> Iterator[bytes]:
    yield b""


@pytest.mark.parametrize(
    ("wrapped", "words"),
    [
        (None, "wrap\\(\\) returned None, which is not a WSGI app"),
        (generator_app, "generator function"),
        (GeneratorApp(), "generator function"),
    ],
)
def test_compose_what_is_not_a_wsgi_app_is_refused(wrapped: Any, words: str) -> None:
    with pytest.raises(PluginError, match=f"plugin 'bad': .*{words}"):
        compose(respond_with(b""), [Middleware("bad", lambda app, options: wrapped)], lambda name: None)


def test_compose_wrap_that_raises_is_named() -> None:
    def wrap(app: Any, options: Any) -> Any:
        raise TypeError("no such option")

    with pytest.raises(PluginError, match=r"plugin 'bad': wrap\(\) raised TypeError: no such option"):
        compose(respond_with(b""), [Middleware("bad", wrap)], lambda name: None)


def test_compose_wrap_that_raises_a_plugin_error_is_left_alone() -> None:
    def wrap(app: Any, options: Any) -> Any:
        raise PluginError("mine")

    with pytest.raises(PluginError, match=r"^mine$"):
        compose(respond_with(b""), [Middleware("bad", wrap)], lambda name: None)


def test_compose_app_may_be_an_object_with_call() -> None:
    class Wrapped:
        def __init__(self, app: App) -> None:
            self.app = app

        def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
            return self.app(environ, start_response)

    app = compose(respond_with(b"x"), [Middleware("ok", lambda app, options: Wrapped(app))], lambda name: None)
    assert client(app, make_exchange()).get("/").data == b"x"
