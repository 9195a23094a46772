from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from rgate import ConfigProblem, ConfigSection, Exchange, Middleware, NoEndpoint, PluginError, hookimpl
from rgate.config import Config, load_text
from rgate.plugin.entry_points import PluginRecord
from rgate.plugin.registry import Registry
from rgate.plugins import BUILTIN

Install = Callable[..., None]

PLUGIN = """
    from rgate import hookimpl

    @hookimpl
    def rgate_check_config(config):
        return None
"""


class Options(BaseModel):
    size: int = 1


class Plugin:
    """A plugin with the given return values."""

    def __init__(self, **returns: Any) -> None:
        self.returns = returns

    def _answer(self, hook: str) -> Any:
        value = self.returns.get(hook)
        if isinstance(value, Exception):
            raise value
        return value

    @hookimpl
    def rgate_config_sections(self) -> Any:
        return self._answer("sections")

    @hookimpl
    def rgate_check_config(self, config: Config) -> Any:
        return self._answer("check")

    @hookimpl
    def rgate_discovery_sources(self, config: Config) -> Any:
        return self._answer("sources")

    @hookimpl
    def rgate_selection_policies(self, config: Config) -> Any:
        return self._answer("policies")

    @hookimpl
    def rgate_middlewares(self, gateway: Any) -> Any:
        return self._answer("middlewares")

    @hookimpl
    def rgate_local_routes(self, gateway: Any) -> Any:
        return self._answer("local_routes")

    @hookimpl
    def rgate_lifespan(self, gateway: Any) -> Any:
        return self._answer("lifespan")


def with_plugins(**plugins: object) -> Registry:
    registry = Registry()
    for name, plugin in plugins.items():
        registry.register(name, plugin)
    return registry


# built-ins


def test_activate_alone_makes_every_builtin_active_in_order() -> None:
    registry = Registry()
    assert registry.activate() == []
    assert registry.names == BUILTIN


def test_activate_leaves_disabled_builtins_out() -> None:
    registry = Registry()
    assert registry.activate(disabled={"stats", "normalize"}) == []
    assert registry.names == tuple(name for name in BUILTIN if name not in ("stats", "normalize"))


def test_activate_unknown_disabled_name_is_a_problem_that_lists_the_builtins() -> None:
    problems = Registry().activate(disabled=["statz", "zzz"])
    assert [str(problem) for problem in problems] == [
        "plugins.disable: no built-in plugin is named 'statz'; did you mean 'stats'?",
        f"plugins.disable: no built-in plugin is named 'zzz'; they are {', '.join(sorted(BUILTIN))}",
    ]


def test_activate_builtin_that_cannot_be_imported_is_a_plugin_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rgate.plugins.stats", None)
    with pytest.raises(
        PluginError, match=r"^plugin 'stats' \(rgate [\d.]+\) cannot be imported: ModuleNotFoundError: .*reinstall rgate"
    ):
        Registry().activate()


def test_registries_share_nothing() -> None:
    one, other = with_plugins(mine=Plugin()), Registry()
    assert one.names == ("mine",)
    assert other.names == ()
    assert other.hook.rgate_check_config(config=Config(), policies={}) == []


# installed plugins


def test_installed_plugin_is_imported_only_when_it_is_wanted(install: Install) -> None:
    install("acme-gate", "2.1", {"rgate": {"acme": "acme_gate_module"}}, acme_gate_module=PLUGIN)
    registry = Registry()
    registry.activate()
    assert "acme" not in registry.names
    assert "acme_gate_module" not in sys.modules

    registry = Registry()
    assert registry.activate(["acme"]) == []
    assert registry.names == (*BUILTIN, "acme")


def test_installed_plugins_are_registered_by_distribution_and_name(install: Install) -> None:
    install("zoo", "1", {"rgate": {"a_plugin": "zoo_a"}}, zoo_a=PLUGIN)
    install("ark", "1", {"rgate": {"z_plugin": "ark_z", "b_plugin": "ark_b"}}, ark_z=PLUGIN, ark_b=PLUGIN)
    for wanted in (["a_plugin", "b_plugin", "z_plugin"], ["z_plugin", "b_plugin", "a_plugin"]):
        registry = Registry()
        assert registry.activate(wanted) == []
        assert registry.names[len(BUILTIN) :] == ("b_plugin", "z_plugin", "a_plugin")


def test_entry_point_may_name_an_object(install: Install) -> None:
    source = PLUGIN.replace(
        "    @hookimpl\n    def rgate_check_config(config)",
        "    class P:\n     @hookimpl\n     def rgate_check_config(self, config)",
    )
    source = source.replace("        return None", "        return None\n    plugin = P()")
    install("acme-gate", "1", {"rgate": {"acme": "acme_object:plugin"}}, acme_object=source)
    assert Registry().activate(["acme"]) == []


def test_wanted_plugin_that_is_not_installed_is_named_with_what_is(install: Install) -> None:
    install("acme-gate", "2.1", {"rgate": {"acme": "acme_module"}}, acme_module=PLUGIN)
    (problem,) = Registry().activate(["acne"])
    assert str(problem) == (
        "plugins.acne: no plugin named 'acne' is installed; did you mean 'acme'? "
        f"(built in are {', '.join(sorted(BUILTIN))}; installed are acme (acme-gate 2.1))"
    )
    (problem,) = Registry().activate(["qqqqq"])
    assert str(problem).startswith("plugins.qqqqq: no plugin named 'qqqqq' is installed; install it with pip (built in are")


def test_two_distributions_with_one_name_are_a_problem(install: Install) -> None:
    install("one", "1.0", {"rgate": {"acme": "acme_one"}}, acme_one=PLUGIN)
    install("two", "2.0", {"rgate": {"acme": "acme_two"}}, acme_two=PLUGIN)
    (problem,) = Registry().activate(["acme"])
    assert problem.message == "more than one distribution has a plugin named 'acme': one 1.0, two 2.0; uninstall all but one"
    assert Registry().activate() == []


def test_plugin_with_the_name_of_a_builtin_replaces_it_only_if_that_is_disabled(install: Install) -> None:
    install("my-stats", "0.3", {"rgate": {"stats": "my_stats"}}, my_stats=PLUGIN)
    (problem,) = Registry().activate(["stats"])
    assert problem.path == ("plugins", "stats")
    assert problem.message == (
        "'stats' is built in, and my-stats 0.3 has another plugin of that name: to use that one, "
        "write disable: [stats]; to use the built-in, uninstall the other"
    )
    registry = Registry()
    assert registry.activate(["stats"], disabled=["stats"]) == []
    (record,) = [record for record in registry.records() if record.name == "stats" and record.active]
    assert (record.distribution, record.builtin) == ("my-stats", False)

    registry = Registry()
    assert registry.activate() == []
    (record,) = [record for record in registry.records() if record.name == "stats" and record.active]
    assert record.builtin


def test_builtin_that_is_disabled_and_wanted_is_a_problem() -> None:
    (problem,) = Registry().activate(["stats"], disabled=["stats"])
    assert problem.message == "'stats' is disabled and no other plugin of that name is installed; remove it from disable"


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def (", "SyntaxError: invalid syntax"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_plugin_that_cannot_be_imported_is_a_problem_with_its_distribution(install: Install, source: str, cause: str) -> None:
    install("acme-gate", "2.1", {"rgate": {"acme": "acme_broken", "good": "acme_good"}}, acme_broken=source, acme_good=PLUGIN)
    registry = Registry()
    (problem,) = registry.activate(["acme", "good"])
    assert problem.path == ("plugins", "acme")
    assert problem.message.startswith(f"plugin 'acme' (acme-gate 2.1): acme_broken cannot be imported: {cause}")
    assert problem.message.endswith("; repair or upgrade acme-gate, or remove 'acme' from the config")
    assert "good" in registry.names


def test_plugin_whose_attribute_is_missing_is_a_problem(install: Install) -> None:
    install("acme-gate", "2.1", {"rgate": {"acme": "acme_attr:plugin"}}, acme_attr=PLUGIN)
    (problem,) = Registry().activate(["acme"])
    assert "acme_attr:plugin cannot be imported: AttributeError: " in problem.message


def test_problem_with_an_installed_plugin_has_the_line_of_its_section(install: Install) -> None:
    install("acme-gate", "2.1", {"rgate": {"acme": "acme_late"}}, acme_late="from rgate import nothing_like_it")
    with pytest.raises(Exception, match=r"config\.yml:3: plugins\.acme: plugin 'acme' \(acme-gate 2\.1\): .* ImportError"):
        load_text("plugins:\n  normalize:\n  acme: {size: 3}\n", Registry(), {})


# objects that are not plugins


def refusal(plugin: object, name: str = "mine") -> str:
    registry = Registry()
    with pytest.raises(PluginError) as caught:
        registry.register(name, plugin)
    assert registry.names == ()
    assert registry.hook.rgate_middlewares(gateway=None) == [], "a refused plugin is still called"
    return str(caught.value)


def test_register_misspelt_hook_is_refused_with_the_right_name() -> None:
    class Misspelt:
        @hookimpl
        def rgate_middleware(self, gateway: Any) -> None: ...

    assert refusal(Misspelt()) == "plugin 'mine': there is no hook 'rgate_middleware'; did you mean 'rgate_middlewares'?"


def test_register_hook_that_does_not_exist_is_refused_with_those_that_do() -> None:
    class Wishful:
        @hookimpl
        def on_everything(self) -> None: ...

    assert refusal(Wishful()).startswith("plugin 'mine': there is no hook 'on_everything'; the hooks are rgate_check_config, ")


def test_register_hook_with_another_argument_is_refused_with_the_right_ones() -> None:
    class Mistaken:
        @hookimpl
        def rgate_middlewares(self, gate: Any) -> None: ...

    message = refusal(Mistaken())
    assert message.startswith(
        "plugin 'mine': rgate_middlewares: Argument(s) {'gate'} are declared in the hookimpl but can not be"
    )
    assert message.endswith("; the hook's arguments are (gateway)")


def test_register_hook_may_leave_arguments_out() -> None:
    class Frugal:
        @hookimpl
        def rgate_check_config(self) -> list[ConfigProblem]:
            return [ConfigProblem((), "no argument needed")]

    assert [p.message for p in with_plugins(mine=Frugal()).collect("rgate_check_config", config=None)] == ["no argument needed"]


def test_register_object_without_hooks_is_refused() -> None:
    assert refusal(SimpleNamespace()) == "plugin 'mine': implements no hook; mark its functions with @rgate.hookimpl"


def test_register_class_is_refused() -> None:
    assert refusal(Plugin) == "plugin 'mine': is a class; name a module or an object with hook implementations"


def test_register_hook_wrapper_is_refused() -> None:
    import pluggy

    class Wrapping:
        @pluggy.HookimplMarker("rgate")(wrapper=True)
        def rgate_middlewares(self, gateway: Any) -> Iterator[None]:
            return (yield)

    assert refusal(Wrapping()) == "plugin 'mine': rgate_middlewares is a hook wrapper; rgate calls plain functions only"


def test_register_one_name_or_one_plugin_twice_is_refused() -> None:
    plugin = Plugin()
    registry = with_plugins(mine=plugin)
    with pytest.raises(PluginError, match="plugin 'mine': the name is taken"):
        registry.register("mine", Plugin())
    with pytest.raises(PluginError, match="plugin 'other': is active already, under the name 'mine'"):
        registry.register("other", plugin)
    assert registry.names == ("mine",)
    assert "the name is taken" in refusal(Plugin(), "disable")


# sections


def test_register_section_is_known_by_the_plugins_name() -> None:
    section = ConfigSection("mine", Options, per_route=True)
    assert with_plugins(mine=Plugin(sections=section)).sections == {"mine": section}


class NoDefault(BaseModel):
    size: int


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (ConfigSection("yours", Options), "its ConfigSection is named 'yours'; it must be 'mine'"),
        ([ConfigSection("mine", Options)] * 2, "rgate_config_sections returns 2 sections; a plugin has one"),
        (ConfigSection("mine", NoDefault), "every field of its model needs a default: 1 validation error"),
        (ConfigSection("mine", dict), "the model of its ConfigSection is not a pydantic class: <class 'dict'>"),  # type: ignore[arg-type]
        (Options, "rgate_config_sections must return a ConfigSection, not <class"),
        (ValueError("no"), "rgate_config_sections raised ValueError: no"),
    ],
)
def test_register_invalid_section_is_refused(sections: object, words: str) -> None:
    assert refusal(Plugin(sections=sections)).startswith(f"plugin 'mine': {words}")


# collect


def test_collect_flattens_in_order_of_registration() -> None:
    problems = [ConfigProblem((), str(number)) for number in range(5)]
    registry = with_plugins(
        one=Plugin(check=problems[0]),
        none=Plugin(),
        two=Plugin(check=[problems[1], problems[2]]),
        more=Plugin(check=iter(problems[3:])),
    )
    assert registry.collect("rgate_check_config", config=Config()) == problems


def test_collect_mapping_of_local_routes_is_one_value() -> None:
    routes: Any = {"/health": lambda environ, start_response: []}
    assert with_plugins(a=Plugin(local_routes=routes), b=Plugin()).collect("rgate_local_routes", gateway=None) == [routes]


def test_collect_context_manager_is_one_value() -> None:
    lifespan = contextlib.nullcontext()
    assert with_plugins(a=Plugin(lifespan=lifespan)).collect("rgate_lifespan", gateway=None) == [lifespan]


def test_collect_wraps_what_a_plugin_raises_with_its_name_and_hook() -> None:
    cause = KeyError("x")
    with pytest.raises(PluginError, match=r"^plugin 'bad': rgate_middlewares raised KeyError: 'x'$") as caught:
        with_plugins(good=Plugin(), bad=Plugin(middlewares=cause)).collect("rgate_middlewares", gateway=None)
    assert caught.value.__cause__ is cause


def test_collect_wraps_what_a_generator_raises() -> None:
    def generate() -> Iterator[ConfigProblem]:
        yield ConfigProblem((), "one")
        raise RuntimeError("two")

    with pytest.raises(PluginError, match=r"^plugin 'bad': rgate_check_config raised RuntimeError: two$"):
        with_plugins(bad=Plugin(check=generate())).collect("rgate_check_config", config=Config())


class Source:
    name = "source"

    def list(self) -> list[Any]:
        return []


async def _coroutine() -> None: ...


@pytest.mark.parametrize(
    ("hook", "returns", "words"),
    [
        ("rgate_check_config", "a text", "must return ConfigProblems, not 'a'"),
        ("rgate_check_config", 5, "must return ConfigProblems, not 5"),
        ("rgate_check_config", [None], "must return ConfigProblems, not None"),
        ("rgate_middlewares", lambda app: app, "must return a Middleware, not <function"),
        ("rgate_middlewares", Middleware("bad", wrap="no"), "must return a Middleware, not Middleware("),  # type: ignore[arg-type]
        ("rgate_middlewares", Middleware("other", wrap=lambda app, _: app), "brings the middleware 'other'; it has at most one"),
        (
            "rgate_middlewares",
            [Middleware("bad", wrap=lambda app, _: app)] * 2,
            "brings the middleware 'bad'; it has at most one",
        ),
        ("rgate_discovery_sources", Source, "must return a DiscoverySource (with name and list), not <class"),
        ("rgate_discovery_sources", object(), "must return a DiscoverySource (with name and list), not <object"),
        ("rgate_selection_policies", Source(), "must return a SelectionPolicy (with name and pick), not <"),
        ("rgate_local_routes", ["/x"], "must return a mapping of paths to WSGI apps, not '/x'"),
        ("rgate_lifespan", contextlib.nullcontext, "must return a context manager, not <class"),
        ("rgate_lifespan", "coroutine", "must return a context manager, not <coroutine"),
    ],
)
def test_collect_refuses_what_a_hook_cannot_return(hook: str, returns: object, words: str) -> None:
    value = _coroutine() if returns == "coroutine" else returns
    key = (
        hook.removeprefix("rgate_")
        .removesuffix("_config")
        .replace("discovery_sources", "sources")
        .replace("selection_policies", "policies")
    )
    with pytest.raises(PluginError) as caught:
        with_plugins(bad=Plugin(**{key: value})).collect(hook, gateway=None, config=Config())
    assert str(caught.value).startswith(("plugin 'bad': " + words, f"plugin 'bad': {hook} {words}"))


def test_collect_valid_values_of_every_hook_are_accepted() -> None:
    policy = SimpleNamespace(name="p", pick=lambda candidates, exchange: candidates[0])
    middleware = Middleware("good", wrap=lambda app, _: app)
    registry = with_plugins(good=Plugin(sources=Source(), policies=[policy], middlewares=middleware))
    assert len(registry.collect("rgate_discovery_sources", config=Config())) == 1
    assert registry.collect("rgate_selection_policies", config=Config()) == [policy]
    assert registry.collect("rgate_middlewares", gateway=None) == [middleware]


# order of answers


def test_plugin_registered_before_the_builtins_is_called_before_them() -> None:
    answers = []

    class Answering:
        @hookimpl
        def rgate_fault_response(self, exchange: Exchange, error: NoEndpoint) -> Any:
            answers.append(error)
            return lambda environ, start_response: []

    registry = with_plugins(mine=Answering())
    registry.activate(["mine"])
    assert registry.names == (*BUILTIN, "mine")
    registry.hook.rgate_fault_response(exchange=Exchange(), error=NoEndpoint())
    assert len(answers) == 1


# records


def test_records_list_all_installed_plugins_and_import_nothing(install: Install) -> None:
    install("acme-gate", "2.1", {"rgate": {"acme": "acme_listed", "idle": "acme_idle"}}, acme_listed=PLUGIN, acme_idle="1 / 0")
    registry = with_plugins(local=Plugin())
    registry.activate(["acme"], disabled=["stats"])
    records = {record.name: record for record in registry.records()}
    assert list(records) == [*BUILTIN, "acme", "idle", "local"]
    assert records["acme"] == PluginRecord("acme", "acme-gate", "2.1", active=True, hooks=("rgate_check_config",))
    assert records["idle"] == PluginRecord("idle", "acme-gate", "2.1")
    assert records["stats"].active is False
    assert records["stats"].hooks is None
    assert records["routing"].builtin
    assert records["routing"].hooks == ("rgate_middlewares",)
    assert records["local"].active
    assert "acme_idle" not in sys.modules
    assert str(records["acme"]) == "'acme' (acme-gate 2.1)"


def test_records_before_anything_is_active_are_there() -> None:
    assert [record.name for record in Registry().records()][: len(BUILTIN)] == list(BUILTIN)


# failures


def failure(registry: Registry, raising: Callable[[], object], caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    exchange = Exchange()
    caplog.clear()
    try:
        raising()
    except Exception as error:
        registry.report_failure(exchange, error)
    (record,) = caplog.records
    assert exchange.id in record.getMessage()
    return record.levelname, record.getMessage().partition(": ")[2]


RAISING = (
    PLUGIN
    + """
    def fail():
        import json
        return json.loads("{")

    def call(app):
        return app()
"""
)


def test_report_failure_names_the_plugin_whose_code_raised(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install("acme-gate", "2.1", {"rgate": {"acme": "acme_raising"}}, acme_raising=RAISING)
    registry = Registry()
    registry.activate(["acme"])
    module = sys.modules["acme_raising"]
    level, message = failure(registry, module.fail, caplog)
    assert level == "ERROR"
    assert message.startswith("plugin 'acme' (acme-gate 2.1) failed in rgate_middlewares: JSONDecodeError(")
    assert caplog.records[0].exc_info is not None, "the traceback is missing"


def test_report_failure_of_rgate_under_a_plugins_call_is_not_the_plugins(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install("acme-gate", "2.1", {"rgate": {"acme": "acme_calling"}}, acme_calling=RAISING)
    registry = Registry()
    registry.activate(["acme"])
    module = sys.modules["acme_calling"]
    assert failure(registry, lambda: module.call(lambda: Exchange.of({})), caplog)[1].startswith("the gateway failed: KeyError(")


def test_report_failure_names_the_use_entry_whose_code_raised(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install("shop", "1", {}, shop_wsgi=RAISING)
    registry = Registry()
    registry.wsgi_middlewares(load_text("use: [{app: 'shop_wsgi:call', name: shopping}]", registry, {}))
    assert failure(registry, sys.modules["shop_wsgi"].fail, caplog)[1].startswith(
        "plugin 'shopping' (use) failed in rgate_middlewares:"
    )


def test_report_failure_of_a_fault_has_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def raising() -> None:
        raise NoEndpoint("backend 'orders'")

    with caplog.at_level(logging.DEBUG):
        assert failure(Registry(), raising, caplog) == ("WARNING", "no_endpoint: backend 'orders'")
    assert caplog.records[0].exc_info is None
