from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from rgate import ConfigError, PluginError, hookimpl
from rgate.config import Config, load
from rgate.config.yaml_reader import MAX_BYTES
from rgate.errors import ConfigProblem
from rgate.plugin.registry import Registry

from .configs import ONE_BACKEND, loaded, problems

SEED = """
routes:
  - path_prefix: /api/payment
    backend: payment
  - path_prefix: /api/orders
    backend: orders
default_response: {body: "This is not reachable", status_code: 403}
backends:
  - name: payment
    match_labels: [app_name=payment, env=production]      # every one must be on the container
  - name: orders
    match_labels: [app_name=orders, env=production]
  - name: legacy
    endpoints: ["http://127.0.0.1:9000"]                  # fixed addresses, no discovery
"""


def test_load_seed_format_is_read_unchanged() -> None:
    config = loaded(SEED)
    assert [(route.path_prefix, route.backend.name, route.name) for route in config.routes] == [
        ("/api/payment", "payment", "/api/payment"),
        ("/api/orders", "orders", "/api/orders"),
    ]
    assert (config.default_response.body, config.default_response.status_code) == ("This is not reachable", 403)
    assert [backend.name for backend in config.backends] == ["payment", "orders", "legacy"]
    assert config.backends[0].match_labels == (("app_name", "payment"), ("env", "production"))
    assert config.options("static_endpoints", backend=config.backends[2]).endpoints == ("http://127.0.0.1:9000",)


def test_load_many_mistakes_are_reported_at_once_in_order_of_lines() -> None:
    found = problems("""
        routes:
          - path_prefix: /orders
            backend: ordres
          - path_prefix: api
            backnd: orders
          - path_prefix: /orders
            backend: orders
            timeouts: {connect_seconds: soon}
        backends:
          - name: orders
            match_labels: [app_name]
            policy: randm
          - name: orders
            endpoints: ["http://127.0.0.1:9"]
        server:
          port: 70000
        plugins:
          disable: [statz]
          normalize: {format: envelop}
          nothing_of_the_kind:
        colour: red
    """)
    assert [line.partition(": ")[0] + " " + line.split(": ")[1] for line in found] == [
        "config.yml:3 routes[0].backend",
        "config.yml:4 routes[1].path_prefix",
        "config.yml:4 routes[1].backend",
        "config.yml:5 routes[1].backnd",
        "config.yml:6 routes[2].path_prefix",
        "config.yml:8 routes[2].timeouts.connect_seconds",
        "config.yml:11 backends[0].match_labels[0]",
        "config.yml:12 backends[0].policy",
        "config.yml:13 backends[1].name",
        "config.yml:16 server.port",
        "config.yml:18 plugins.disable",
        "config.yml:19 plugins.normalize.format",
        "config.yml:20 plugins.nothing_of_the_kind",
        "config.yml:21 colour",
    ]
    assert found[0] == "config.yml:3: routes[0].backend: no backend named 'ordres'; did you mean 'orders'?"


def test_load_wrong_entry_does_not_move_places_of_later_ones() -> None:
    found = problems("""
        routes:
          - 5
          - {path_prefix: /a, backend: nobody}
        backends:
          - {match_labels: [a=b]}
          - {name: orders, endpoints: ["ftp://x"]}
    """)
    assert [line.split(": ")[1] for line in found] == [
        "routes[0]",
        "routes[1].backend",
        "backends[0].name",
        "backends[1].endpoints[0]",
    ]


def test_load_backend_that_is_wrong_itself_is_not_missed_by_its_routes() -> None:
    assert problems("""
        routes: [{path_prefix: /a, backend: orders}]
        backends:
          - {name: orders, match_labels: [x], policy: 5}
    """) == [
        "config.yml:3: backends[0].policy: expected text, found 5; put it in quotes",
        "config.yml:3: backends[0].match_labels[0]: 'x' is not a label; write name=value, without spaces around the '='",
    ]


def test_load_missing_key_is_reported_on_the_line_of_its_parent() -> None:
    assert problems("routes: []\nbackends:\n  - endpoints: [http://127.0.0.1:9]\n") == [
        "config.yml:3: backends[0].name: is missing"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- routes\n", "must be a mapping with keys like `routes` and `backends`; found a list"),
        (b"routes\n", "must be a mapping with keys like `routes` and `backends`; found 'routes'"),
        ("routes: []".encode("utf-16"), "is not UTF-8: byte 0xff on line 1"),
        (b"a: 1\nb: caf\xe9\n", "is not UTF-8: byte 0xe9 on line 2"),
        (b"a: " + b"[" * 5_000, "is nested more than"),
        (b"#" * (MAX_BYTES + 1), "is larger than 8 MiB"),
    ],
)
def test_load_file_that_is_no_config_is_one_clear_message(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "gateway.yml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path, Registry())
    assert str(caught.value).startswith(f"{path}: {message}")
    assert len(caught.value.problems) == 1


def test_load_file_with_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_bytes(b"\xef\xbb\xbf" + ONE_BACKEND.encode())
    assert load(path, Registry()).backends[0].name == "orders"


def test_load_missing_file_and_directory_are_said_to_be_that(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yml: no such file$"):
        load(tmp_path / "absent.yml", Registry())
    with pytest.raises(ConfigError, match=r": is a directory, not a file$"):
        load(tmp_path, Registry())
    with pytest.raises(ConfigError, match=r": cannot be read: Not a directory$"):
        load("/dev/null/config.yml", Registry())
    with pytest.raises(ConfigError, match=r": cannot be read: .*null"):
        load("a\0b", Registry())


def test_load_file_without_permission_is_said_to_be_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # root, who runs tests in containers, may read everything
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "config.yml", Registry())
    assert str(caught.value).endswith("config.yml: cannot be read: no permission")


def test_load_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(ONE_BACKEND,))
    writer.start()
    try:
        assert load(path, Registry()).backends[0].name == "orders"
    finally:
        writer.join(5)


def test_load_problem_says_the_file_as_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yml").write_text("nope: 1\n")
    with pytest.raises(ConfigError, match=r"^my\.yml:1: nope: unknown key 'nope'"):
        load("my.yml", Registry())


# plugins


def test_plugins_absent_means_every_builtin_with_its_defaults() -> None:
    registry = Registry()
    config = loaded(ONE_BACKEND, registry)
    assert tuple(config.plugins) == registry.names
    assert config.plugins["normalize"].format == "passthrough"
    assert config.plugins["routing"] is None
    assert config.disabled == frozenset()


@pytest.mark.parametrize("value", ["", "true", "{}", "null"])
def test_plugins_section_without_options_gives_the_defaults(value: str) -> None:
    assert loaded(f"{ONE_BACKEND}plugins: {{normalize: {value}}}").plugins["normalize"].format == "passthrough"


def test_plugins_section_is_validated_by_the_plugins_model() -> None:
    assert loaded(ONE_BACKEND + "plugins: {normalize: {format: envelope}}").plugins["normalize"].format == "envelope"
    assert problems(ONE_BACKEND + "plugins:\n  normalize: {fromat: envelope}\n  routing: {fast: true}\n") == [
        "config.yml:3: plugins.normalize.fromat: unknown key 'fromat'; did you mean 'format'?",
        "config.yml:4: plugins.routing.fast: the plugin 'routing' has no options",
    ]


def test_plugins_section_of_another_type_is_a_problem() -> None:
    assert problems(ONE_BACKEND + "plugins: {normalize: envelope, stats: false}") == [
        "config.yml:2: plugins.normalize: expected options (key: value), or true for a plugin without any, found 'envelope'",
        "config.yml:2: plugins.stats: a plugin is off when its key is left out; a built-in is turned off by disable: [stats]",
    ]
    assert problems(ONE_BACKEND + "plugins: [stats]") == ["config.yml:2: plugins: expected a mapping (key: value), found a list"]
    assert problems(ONE_BACKEND + "plugins: {disable: stats}") == [
        "config.yml:2: plugins.disable: expected a list, found 'stats'; write [stats]"
    ]


def test_disable_takes_builtins_away() -> None:
    registry = Registry()
    config = loaded(ONE_BACKEND + "plugins: {disable: [stats, normalize]}", registry)
    assert config.disabled == {"stats", "normalize"}
    assert not {"stats", "normalize"} & {*registry.names, *config.plugins}


def test_disabled_is_no_key_of_the_file() -> None:
    assert problems(ONE_BACKEND + "disabled: [stats]") == [
        "config.yml:2: disabled: unknown key 'disabled'; built-ins are disabled by plugins: {disable: [NAME, …]}"
    ]


# per route


def test_route_options_take_what_they_do_not_say_from_the_global_section() -> None:
    config = loaded(
        ONE_BACKEND
        + """
routes:
  - {path_prefix: /a, backend: orders, plugins: {normalize: {format: passthrough}}}
  - {path_prefix: /b, backend: orders, plugins: {normalize: {}}}
  - {path_prefix: /c, backend: orders, plugins: {normalize: false}}
  - {path_prefix: /d, backend: orders}
plugins: {normalize: {format: envelope, max_body_bytes: 5000}}
"""
    )
    options: list[Any] = [route.options.get("normalize", ...) for route in config.routes]
    assert (options[0].format, options[0].max_body_bytes) == ("passthrough", 5000)
    assert (options[1].format, options[1].max_body_bytes) == ("envelope", 5000)
    assert options[2:] == [None, ...]


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        ("{normalise: false}", ".normalise: no active plugin is named 'normalise'; did you mean 'normalize'?"),
        ("{zzz: false}", ".zzz: no active plugin is named 'zzz'; active are access_log, "),
        ("{normalize: true}", ".normalize: expected options (key: value), or false to turn it off, found true"),
        ("{normalize: {format: 5}}", ".normalize.format: expected 'passthrough' or 'envelope', found 5"),
        ("{selection: {a: 1}}", ".selection: the plugin 'selection' takes no options of a route, only those under the top-level"),
        ("{routing: false}", ".routing: 'routing' runs before the route is known, and so is the same for every route"),
        ("{access_log: false}", ".access_log: 'access_log' runs before the route is known"),
        ("{docker: false}", ".docker: 'docker' has no middleware"),
        ("[normalize]", ": expected a mapping (key: value), found a list"),
    ],
)
def test_route_says_what_a_plugin_does_not_understand_is_a_problem(plugins: str, message: str) -> None:
    (found,) = problems(f"{ONE_BACKEND}routes: [{{path_prefix: /a, backend: orders, plugins: {plugins}}}]")
    assert found.startswith(f"config.yml:2: routes[0].plugins{message}")


def test_route_with_wrong_global_section_says_so_once() -> None:
    assert len(problems(ONE_BACKEND + "routes: [{path_prefix: /a, backend: orders, plugins: {normalize: {}}}]\n"
                        "plugins: {normalize: {format: no}}")) == 1  # fmt: skip


# hooks


def test_check_config_problem_is_placed_by_its_path() -> None:
    class Checker:
        @hookimpl
        def rgate_check_config(self, config: Config) -> list[ConfigProblem]:
            return [ConfigProblem(("server", "port"), "is odd"), ConfigProblem(("backends", 0, "absent"), "should be there")]

    registry = Registry()
    registry.register("checker", Checker())
    assert problems(ONE_BACKEND + "server:\n  host: x\n  port: 81\n", registry) == [
        "config.yml:1: backends[0].absent: should be there",
        "config.yml:4: server.port: is odd",
    ]


def test_check_config_that_raises_is_a_problem_of_that_plugin() -> None:
    class Checker:
        @hookimpl
        def rgate_check_config(self, config: Config) -> None:
            raise KeyError("oops")

    registry = Registry()
    registry.register("checker", Checker())
    assert problems(ONE_BACKEND + "plugins:\n  checker:\n", registry) == [
        "config.yml:3: plugins.checker: plugin 'checker': rgate_check_config raised KeyError: 'oops'"
    ]


def test_selection_policies_that_cannot_be_had_are_a_problem_of_that_plugin() -> None:
    class Policies:
        @hookimpl
        def rgate_selection_policies(self, config: Config) -> None:
            raise ValueError("no")

    registry = Registry()
    registry.register("policies", Policies())
    assert problems("plugins:\n  policies:\n", registry) == [
        "config.yml:2: plugins.policies: plugin 'policies': rgate_selection_policies raised ValueError: no"
    ]


def test_plugin_registered_by_the_name_of_an_active_builtin_is_no_problem_of_the_config() -> None:
    class Nothing:
        @hookimpl
        def rgate_check_config(self, config: Config) -> None:
            return None

    registry = Registry()
    registry.register("stats", Nothing())
    with pytest.raises(PluginError, match=r"'stats' \(rgate .*: the name is taken"):
        loaded(ONE_BACKEND, registry)


def test_load_is_deterministic() -> None:
    text = SEED + "x: 1\ny: 2\nbackends: 5\n"
    assert problems(text) == problems(text)


# keys of every plugin


@pytest.mark.parametrize(
    ("section", "on_error", "timed"),
    [
        ("true", "fail", False),
        ("{format: envelope, timed: true}", "fail", True),
        ("{on_error: skip}", "skip", False),
        ("{on_error: {disable_after: 5}, timed: true}", 5, True),
    ],
)
def test_common_keys_stands_beside_the_plugins_own_options(section: str, on_error: Any, timed: bool) -> None:
    config = loaded(f"{ONE_BACKEND}plugins: {{normalize: {section}}}")
    found = config.plugin_common("normalize")
    assert (getattr(found.on_error, "disable_after", found.on_error), found.timed) == (on_error, timed)
    assert config.timed == ({"normalize"} if timed else set())
    assert config.plugins["normalize"].format == ("envelope" if "envelope" in section else "passthrough")


def test_common_keys_of_a_plugin_without_options_and_of_a_use_entry() -> None:
    config = loaded("plugins: {routing: {timed: true}}\nuse: [{app: 'json:loads', name: x, on_error: skip}]")
    assert config.timed == {"routing"}
    assert config.plugin_common("x").on_error == "skip"
    assert config.plugin_common("stats").on_error == "fail"


def test_common_keys_problems_have_their_place() -> None:
    must = "must be fail, skip, or {disable_after: N} with N from 1 to 1,000,000"
    assert problems(
        ONE_BACKEND
        + """plugins:
  normalize: {on_error: ignore}
  routing:
    on_error: {disable_after: 0}
  retry: {timed: often}
  docker: {timed: true}
routes:
  - {path_prefix: /, backend: orders, plugins: {normalize: {on_error: skip}}}
"""
    ) == [
        f"config.yml:3: plugins.normalize.on_error: {must}",
        f"config.yml:5: plugins.routing.on_error: {must}",
        "config.yml:6: plugins.retry.timed: expected true or false, found 'often'",
        "config.yml:7: plugins.docker: has no middleware, so on_error and timed have no effect",
        "config.yml:9: routes[0].plugins.normalize.on_error: on_error is the same for every route; "
        "set it under the top-level 'plugins'",
    ]


# chains that cannot work


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "plugins: {disable: [routing]}",
            "config.yml:1: plugins.disable: no request could be answered: no plugin finds the route of a request: "
            "remove 'routing' from disable, or install a plugin of that name and name it under plugins",
        ),
        (
            "plugins: {disable: [selection]}",
            "config.yml:1: plugins.disable: no request could be answered: no plugin chooses an endpoint: "
            "remove 'selection' from disable, or install a plugin of that name and name it under plugins",
        ),
        (
            "pipeline: [stats, access_log, normalize, routing, faults, retry, selection, websocket]",
            "config.yml:1: pipeline: no request could be answered: 'faults' must come before 'routing': "
            "it answers when no route matches",
        ),
        (
            "pipeline: [stats, access_log, normalize, faults, retry, routing, selection, websocket]",
            "config.yml:1: pipeline: no request could be answered: 'routing' must come before 'retry': "
            "only a route has endpoints",
        ),
        (
            "pipeline: [stats, access_log, normalize, faults, routing, selection, retry, websocket]",
            "config.yml:1: pipeline: no request could be answered: 'retry' must come before 'selection': "
            "another endpoint must be chosen for a second attempt",
        ),
    ],
)
def test_chain_that_cannot_work_is_a_problem(text: str, problem: str) -> None:
    assert problems(text) == [problem]


def test_chain_with_another_router_of_the_name_is_none() -> None:
    class Router:
        @hookimpl
        def rgate_middlewares(self, gateway: object) -> None: ...

    registry = Registry()
    registry.register("routing", Router())
    assert loaded("plugins: {disable: [routing], routing: true}", registry).disabled == {"routing"}
