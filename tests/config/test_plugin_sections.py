"""Options of plugins in a backend: as a section of its own, and as keys of the backend itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import pytest
from pydantic import BaseModel

from rgate import ConfigSection, Gateway, Middleware, PluginError, hookimpl
from rgate.plugin.registry import Registry
from rgate.testing import client, respond_with, running_gateway

from .configs import loaded, problems

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Options(BaseModel, extra="forbid"):
    greeting: str = "hello"
    repeat: int = 1


class Greeter:
    """A third-party plugin that says in every response what the options of its route are."""

    def __init__(self, per_backend: bool | Literal["inline"] = True, model: type[BaseModel] = Options) -> None:
        self.section = ConfigSection("greeter", model, per_route=True, per_backend=per_backend)

    @hookimpl
    def rgate_config_sections(self) -> ConfigSection:
        return self.section

    @hookimpl
    def rgate_middlewares(self, gateway: Gateway) -> Middleware:
        def wrap(app: WSGIApplication, options: Options) -> WSGIApplication:
            def greet(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
                backend = environ["rgate.exchange"].route.backend
                assert options == gateway.options("greeter", route=environ["rgate.exchange"].route)
                own = gateway.options("greeter", backend=backend)

                def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
                    said = f"{options.greeting} {options.repeat} {own.greeting}"
                    return start_response(status, [*headers, ("X-Greeting", said)], *exc_info)

                return app(environ, start)

            return greet

        return Middleware("greeter", wrap)


def registry(plugin: object) -> Registry:
    made = Registry()
    made.register("greeter", plugin)
    return made


def test_section_of_a_backend_reaches_the_middleware_of_its_routes() -> None:
    config = {
        "backends": [
            {"name": "a", "match_labels": ["testing=a"], "greeter": {"greeting": "hi"}},
            {"name": "b", "match_labels": ["testing=b"]},
            {"name": "c", "match_labels": ["testing=c"], "greeter": False},
        ],
        "routes": [
            *({"path_prefix": f"/{name}", "backend": name} for name in "abc"),
            {"path_prefix": "/own", "backend": "a", "plugins": {"greeter": {"repeat": 7}}},
            {"path_prefix": "/off", "backend": "a", "plugins": {"greeter": False}},
        ],
        "plugins": {"greeter": {"repeat": 3}},
    }
    apps = dict.fromkeys("abc", respond_with(b""))
    with running_gateway(config, apps, {"greeter": Greeter()}) as gateway:
        said = {path: client(gateway).get(path).headers.get("X-Greeting") for path in ("/a", "/b", "/c", "/own", "/off")}
        assert said == {"/a": "hi 3 hi", "/b": "hello 3 hello", "/c": None, "/own": "hi 7 hi", "/off": None}
        assert gateway.options("greeter", backend=gateway.backends["c"]) is None


def test_keys_of_a_plugin_in_a_backend_are_merged_over_its_global_section() -> None:
    text = """
        backends:
          - {name: a, match_labels: [x=y], repeat: 2}
          - {name: b, match_labels: [x=z]}
        plugins: {greeter: {greeting: hi}}
    """
    config = loaded(text, registry(Greeter("inline")))
    assert [config.options("greeter", backend=backend) for backend in config.backends] == [
        Options(greeting="hi", repeat=2),
        Options(greeting="hi"),
    ]
    assert config.redacted()["backends"][0]["repeat"] == 2


@pytest.mark.parametrize(
    ("per_backend", "key", "problem"),
    [
        (True, "greeter: {greting: x}", "greeter.greting: unknown key 'greting'; did you mean 'greeting'?"),
        (True, "greeter: {repeat: many}", "greeter.repeat: expected a whole number, found 'many'"),
        (True, "greeter: true", "greeter: expected options (key: value), or false to turn it off, found true"),
        (True, "greeter: ", "greeter: expected options (key: value), or false to turn it off, found nothing"),
        (True, "greter: {}", "greter: unknown key 'greter'; did you mean 'greeter'?"),
        ("inline", "repeet: 1", "repeet: unknown key 'repeet'; did you mean 'repeat'?"),
        ("inline", "repeat: many", "repeat: expected a whole number, found 'many'"),
        (False, "greeter: {}", "greeter: unknown key 'greeter'; the keys here are "),
        (True, "options: {}", "options: unknown key 'options'; the keys here are "),
    ],
)
def test_mistake_in_a_section_of_a_backend_has_its_place(per_backend: Any, key: str, problem: str) -> None:
    text = f"""
        backends:
          - name: a
            match_labels: [x=y]
            {key}
    """
    (found,) = problems(text, registry(Greeter(per_backend)))
    assert found.startswith(f"config.yml:4: backends[0].{problem}")


def test_section_of_a_plugin_that_is_disabled_is_a_problem() -> None:
    text = "backends: [{name: a, match_labels: [x=y], health: {path: /}}]\nplugins: {disable: [health]}\n"
    assert problems(text) == [
        "config.yml:1: backends[0].health: 'health' is an option of the built-in plugin of that name, which is disabled"
    ]


def test_mistake_in_the_global_section_is_reported_once() -> None:
    text = """
        backends: [{name: a, match_labels: [x=y], greeter: {}}, {name: b, match_labels: [x=z], greeter: {}}]
        plugins: {greeter: {repeat: many}}
    """
    assert problems(text, registry(Greeter())) == ["config.yml:2: plugins.greeter.repeat: expected a whole number, found 'many'"]


class Taken(BaseModel):
    policy: str = ""


class TakenByTheCore(BaseModel):
    tls: str = ""


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (Greeter("inline", TakenByTheCore), "its key 'tls' of a backend is taken by rgate"),
        (Greeter("inline", Taken), "its key 'policy' of a backend is taken by the plugin 'greeter'"),
    ],
)
def test_key_that_a_backend_has_already_is_refused(plugin: Greeter, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        registry(plugin).activate()
