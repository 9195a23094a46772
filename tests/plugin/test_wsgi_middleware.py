from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from rgate import ConfigError, Middleware
from rgate.config import load_text
from rgate.plugin.registry import Registry
from rgate.testing import client, respond_with, running_gateway

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

Install = Callable[..., None]

PROXY_FIX = "werkzeug.middleware.proxy_fix:ProxyFix"

SHOUTING = """
    class Shouting:
        def __init__(self, app, word, sign="!", marks=()):
            self.app, self.word, self.marks = app, word + sign, marks

        def __call__(self, environ, start_response):
            return [self.word.encode(), *self.app(environ, start_response)]

    def paste_app(app, global_conf, word="paste"):
        assert global_conf == {}
        return Shouting(app, word)

    def paste_filter(global_conf, word="filter"):
        return lambda app: Shouting(app, word)

    class shout:
        loud = Shouting

    constant = 5
"""


@pytest.fixture
def shouting(install: Install) -> None:
    points = {
        "paste.filter_app_factory": {"main": "shouting:paste_app"},
        "paste.filter_factory": {"second": "shouting:paste_filter"},
    }
    install("Shout-Dist", "1.0", {**points, "console_scripts": {"third": "shouting:shout"}}, shouting=SHOUTING)


def used(entries: str) -> list[Middleware]:
    registry = Registry()
    return registry.wsgi_middlewares(load_text(f"use: {entries}", registry, {}))


def problems(entries: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        used(entries)
    return [line.removeprefix("config.yml:1: use") for line in str(caught.value).splitlines()]


def answer(middleware: Middleware) -> bytes:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        return [b"app"]

    wrapped: WSGIApplication = middleware.wrap(app, None)
    return b" ".join(wrapped({}, lambda *_: lambda _: None))


def test_use_callable_is_called_with_the_app_and_its_options() -> None:
    (middleware,) = used(f"[{{app: '{PROXY_FIX}', options: {{x_for: 2, x_proto: 0}}}}]")
    fix: Any = middleware.wrap(lambda environ, start_response: [], None)
    assert (type(fix).__name__, fix.x_for, fix.x_proto) == ("ProxyFix", 2, 0)
    assert (middleware.name, middleware.before, middleware.after, middleware.modifies_request) == ("ProxyFix", None, None, True)


def test_use_entry_may_have_a_name_and_a_place() -> None:
    first, second = used(f"[{{app: '{PROXY_FIX}', name: outer, before: stats}}, {{app: '{PROXY_FIX}', after: retry}}]")
    assert (first.name, first.before, first.after) == ("outer", "stats", None)
    assert (second.name, second.before, second.after) == ("ProxyFix", None, "retry")


@pytest.mark.usefixtures("shouting")
@pytest.mark.parametrize(
    ("entry", "name", "body"),
    [
        ("{app: 'shouting:Shouting', options: {word: hey}}", "Shouting", b"hey! app"),
        ("{app: 'shouting:Shouting', options: {word: hey, sign: '?'}}", "Shouting", b"hey? app"),
        ("{app: 'shouting:shout.loud', options: {word: hey}}", "loud", b"hey! app"),
        ("{app: 'egg:Shout-Dist'}", "Shout-Dist", b"paste! app"),
        ("{app: 'egg:Shout-Dist#main', options: {word: hey}}", "main", b"hey! app"),
        ("{app: 'egg:shout_dist#second', options: {word: hey}}", "second", b"hey! app"),
        ("{app: 'egg:Shout-Dist#second'}", "second", b"filter! app"),
    ],
)
def test_use_finds_and_wraps(entry: str, name: str, body: bytes) -> None:
    (middleware,) = used(f"[{entry}]")
    assert middleware.name == name
    assert answer(middleware) == body


@pytest.mark.usefixtures("shouting")
def test_use_options_are_each_apps_own() -> None:
    (middleware,) = used("[{app: 'shouting:Shouting', options: {word: hey, marks: [1]}}]")
    one: Any = middleware.wrap(lambda environ, start_response: [], None)
    other: Any = middleware.wrap(lambda environ, start_response: [], None)
    one.marks.append(2)
    assert other.marks == [1]


@pytest.mark.usefixtures("shouting")
@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{app: shouting}", "[0].app: 'shouting' is neither module:callable nor egg:Distribution#name"),
        ("{app: 'shouting:'}", "[0].app: 'shouting:' is neither module:callable nor egg:Distribution#name"),
        ("{app: ':x'}", "[0].app: ':x' is neither module:callable nor egg:Distribution#name"),
        ("{app: 'no.such:x'}", "[0].app: 'no.such:x' cannot be imported: ModuleNotFoundError: No module named 'no'"),
        (
            "{app: 'shouting:x'}",
            "[0].app: 'shouting:x' cannot be imported: AttributeError: module 'shouting' has no attribute 'x'",
        ),
        ("{app: '.rel:x'}", "[0].app: '.rel:x' cannot be imported: TypeError: "),
        ("{app: 'shouting:constant'}", "[0].app: 'shouting:constant' is not callable, it is int"),
        ("{app: 'egg:NoDist#main'}", "[0].app: no distribution named 'NoDist' is installed"),
        ("{app: 'egg:'}", "[0].app: no distribution named '' is installed"),
        ("{app: 'egg:Shout-Dist#third'}", "[0].app: Shout-Dist has no PasteDeploy filter named 'third'; it has main, second"),
        (
            "{app: 'shouting:Shouting', options: {word: hey, loud: 1}}",
            "[0].options: shouting:Shouting takes the options marks, sign, word: got an unexpected keyword argument 'loud'",
        ),
        ("{app: 'shouting:Shouting'}", "[0].options: shouting:Shouting takes the options marks, sign, word: missing a required"),
        ("{app: 'shouting:Shouting', options: {app: 1, word: x}}", "[0].options: shouting:Shouting takes the options"),
        (
            f"{{app: '{PROXY_FIX}', before: rooting}}",
            "[0].before: no built-in middleware is named 'rooting'; did you mean 'routing'?",
        ),
        (
            f"{{app: '{PROXY_FIX}', after: me}}",
            "[0].after: no built-in middleware is named 'me'; the names are stats, access_log, ",
        ),
        (
            f"{{app: '{PROXY_FIX}', after: stats, before: routing}}",
            "[0].after: cannot be combined with `before`",
        ),
        (f"{{app: '{PROXY_FIX}', name: stats}}", "[0]: a plugin is called 'stats'; give this one another `name`"),
        (f"{{app: '{PROXY_FIX}', name: retry}}", "[0]: a plugin is called 'retry'; give this one another `name`"),
        (
            f"{{app: '{PROXY_FIX}'}}, {{app: '{PROXY_FIX}'}}",
            "[1]: another entry is called 'ProxyFix'; give this one another `name`",
        ),
        ("{name: x}", "[0].app: is missing"),
    ],
)
def test_use_mistake_is_a_problem_at_its_place(entry: str, words: str) -> None:
    (found,) = problems(f"[{entry}]")
    assert found.startswith(words)


def test_use_module_that_fails_is_a_problem(install: Install) -> None:
    install("bad", "1", {"paste.filter_factory": {"main": "bad_filter:f"}}, bad_filter="raise SystemExit(1)")
    assert problems("[{app: 'bad_filter:f'}]") == ["[0].app: 'bad_filter:f' cannot be imported: SystemExit: 1"]
    assert problems("[{app: 'egg:bad'}]") == ["[0].app: 'bad_filter:f' of bad cannot be imported: SystemExit: 1"]


def test_use_callable_without_a_signature_is_taken_as_it_is(install: Install) -> None:
    install("c", "1", {}, unsigned="class F:\n  __signature__ = 5\n  def __call__(self, app, **options): return app\nf = F()")
    (middleware,) = used("[{app: 'unsigned:f', options: {x: 1}}]")
    assert answer(middleware) == b"app"


ROUTES = f"""
backends: [{{name: b, match_labels: [a=b]}}]
use: [{{app: '{PROXY_FIX}', PLACE}}]
routes:
  - {{path_prefix: /a, backend: b, plugins: {{ProxyFix: VALUE}}}}
"""


def test_use_entry_can_be_turned_off_by_a_route() -> None:
    config = load_text(ROUTES.replace("PLACE", "name: ~").replace("VALUE", "false"), Registry(), {})
    assert config.routes[0].options == {"ProxyFix": None}


@pytest.mark.parametrize("place", ["before: routing", "before: stats", "after: faults"])
def test_use_entry_outside_of_routing_cannot_be_turned_off_by_a_route(place: str) -> None:
    with pytest.raises(ConfigError, match=r"routes\[0\]\.plugins\.ProxyFix: 'ProxyFix' runs before the route is known"):
        load_text(ROUTES.replace("PLACE", place).replace("VALUE", "false"), Registry(), {})


@pytest.mark.parametrize("place", ["after: routing", "before: retry", "after: selection"])
def test_use_entry_inside_of_routing_can_be_turned_off_by_a_route(place: str) -> None:
    assert load_text(ROUTES.replace("PLACE", place).replace("VALUE", "false"), Registry(), {})


def test_use_entry_has_no_options_of_a_route() -> None:
    with pytest.raises(
        ConfigError, match="ProxyFix: the options of a 'use' entry are set in that entry; a route can only turn it off"
    ):
        load_text(ROUTES.replace("PLACE", "name: ~").replace("VALUE", "{x_for: 2}"), Registry(), {})


@pytest.mark.usefixtures("shouting")
def test_use_entries_run_in_their_places_and_only_where_they_are_not_turned_off() -> None:
    config = {
        "use": [
            {"app": "shouting:Shouting", "name": "inner", "options": {"word": "inner"}},
            {"app": "shouting:Shouting", "name": "outer", "before": "routing", "options": {"word": "outer"}},
        ],
        "routes": [
            {"path_prefix": "/all", "backend": "orders"},
            {"path_prefix": "/some", "backend": "orders", "plugins": {"inner": False}},
        ],
    }
    with running_gateway(config, {"orders": respond_with([b"app"])}) as gateway:
        assert client(gateway).get("/all").data == b"outer!inner!app"
        assert client(gateway).get("/some").data == b"outer!app"
        assert [name for name in gateway.chains["/all"] if name in ("outer", "routing", "inner", "selection")] == [
            "outer", "routing", "inner", "selection",
        ]  # fmt: skip
        assert "inner" not in gateway.chains["/some"]
