"""load(): from the file to a Config, step by step.

    read (YAML) → environment variables → plugins → their sections in backends → shape (models) → other sections → cross checks

Each step continues with what the previous ones have found valid, so that one run reports everything there is to correct.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ConfigProblem
from . import certificates, checks, environment, yaml_reader
from .messages import did_you_mean, join_names
from .models import Backend, Config, PluginCommonConfig, PluginsConfig, changed
from .tree import Node, Report
from .validation import keys_of, unknown_key, validate

if TYPE_CHECKING:
    from ..plugin.hookspecs import ConfigSection

__all__ = ["PluginHost", "load", "load_text"]

_COMMON_KEYS = frozenset(PluginCommonConfig.model_fields)


class PluginHost(Protocol):
    """The part of a plugin registry that the loader uses. `rgate.plugin.registry.Registry` implements it."""

    def activate(self, wanted: Collection[str], disabled: Collection[str]) -> Iterable[ConfigProblem]:
        """Activate the wanted plugins and the built-ins that are not disabled. Returns what went wrong."""

    @property
    def names(self) -> Collection[str]:
        """The active plugins."""

    @property
    def sections(self) -> Mapping[str, ConfigSection]:
        """The options that active plugins declare, by plugin."""

    def check(self, config: Config) -> Iterable[ConfigProblem]:
        """The problems that the plugins, and the chain they form, find in a config."""


def load(path: str | os.PathLike[str], plugins: PluginHost, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the config in a file and activate the plugins that it names in `plugins`.

        registry = Registry()
        gateway = build(load("config.yml", registry), registry)

    `environ` is where `${NAME}` is looked up. Raises ConfigError with every problem that the file has.
    """
    report = Report(os.fspath(path))
    try:
        with open(path, "rb") as file:
            content = file.read(yaml_reader.MAX_BYTES + 1)
    except FileNotFoundError:
        raise report.fail("no such file") from None
    except IsADirectoryError:
        raise report.fail("is a directory, not a file") from None
    except PermissionError:
        raise report.fail("cannot be read: no permission") from None
    except (OSError, ValueError) as error:
        raise report.fail(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > yaml_reader.MAX_BYTES:
        raise report.fail(f"is larger than {yaml_reader.MAX_BYTES // 1024 // 1024} MiB")
    return _load(content, plugins, environ, report)


def load_text(text: str, plugins: PluginHost, environ: Mapping[str, str] = os.environ, *, file: str = "config.yml") -> Config:
    """Like load(), for a config in a string. `file` is its name in problems."""
    return _load(text.encode("utf-8", "surrogateescape"), plugins, environ, Report(file))


def _load(content: bytes, plugins: PluginHost, environ: Mapping[str, str], report: Report) -> Config:
    root = yaml_reader.read(content, report)
    environment.expand(root, environ, report)
    report.hide_secrets(root)
    if (node := root.drop(("disabled",))) is not None:
        report.add(node, "unknown key 'disabled'; built-ins are disabled by plugins: {disable: [NAME, …]}")
    names = {str(name.value) for entry in _children(root, "backends") if (name := entry.get("name")) is not None}

    section = root.get("plugins") or Node(("plugins",), root.line, {})
    disabled = _disabled(section, report)
    for problem in plugins.activate(_wanted(section, report), disabled):
        report.add_check(root, problem)
    sections = _Sections(plugins, section, disabled, report)
    own = {entry.path: sections.of_backend(entry) for entry in _children(root, "backends")}

    config = checks.assign_names(validate(Config, root, report) or Config(), root)
    backends = [
        changed(backend, options=own[entry.path])
        for backend, entry in zip(config.backends, _children(root, "backends"), strict=False)
    ]
    by_name = {backend.name: backend for backend in reversed(backends)}
    routes = [
        changed(
            route,
            backend=by_name.get(route.backend.name, route.backend),
            options=sections.of_route(entry, route.backend.name, {str(used.name) for used in config.use}),
        )
        for route, entry in zip(config.routes, _children(root, "routes"), strict=False)
    ]
    config = config.model_copy(
        update={
            "routes": tuple(routes),
            "backends": tuple(backends),
            "plugins": {name: sections.global_options(name) for name in plugins.names},
            "disabled": disabled,
        }
    )

    config._plugin_common.update({name: found for name in _names(section) if (found := _plugin_common(name, section, report))})
    config._plugin_common.update({str(entry.name): entry for entry in config.use})
    for problem in (*checks.check(config, root, names, report), *certificates.check(config), *plugins.check(config)):
        report.add_check(root, problem)
    report.raise_if_any()
    warnings = (*checks.warnings(config), *certificates.warnings(config))
    config._warnings.extend(report.located(root, warning) for warning in warnings)
    config._sources.update({node.path: node.source for node in root.walk() if node.source is not None})
    config._inline = frozenset(name for name, declared in plugins.sections.items() if declared.per_backend == "inline")
    return config


def _children(root: Node, key: str) -> list[Node]:
    node = root.get(key)
    return node.entries() if node is not None else []


def _disabled(section: Node, report: Report) -> frozenset[str]:
    node = section.get("disable")
    only = Node(section.path, section.line, {"disable": node} if node is not None else {})
    return frozenset((validate(PluginsConfig, only, report) or PluginsConfig()).disable)


def _names(section: Node) -> list[str]:
    return [name for name in section.items() if name != "disable"]


def _wanted(section: Node, report: Report) -> list[str]:
    """The plugins that have a key of their own."""
    wanted = _names(section)
    for name in tuple(wanted):
        node = section.items()[name]
        if node.value is False:
            wanted.remove(name)
            report.add(node, f"a plugin is off when its key is left out; a built-in is turned off by disable: [{name}]")
        elif not isinstance(node.value, dict) and node.value is not True and node.value is not None:
            report.add(node, f"expected options (key: value), or true for a plugin without any, found {node.shown()}")
    return wanted


def _plugin_common(name: str, section: Node, report: Report) -> PluginCommonConfig | None:
    """The keys that every plugin can have, from the section of one of them."""
    node = section.items()[name]
    own = {key: below for key, below in node.items().items() if key in _COMMON_KEYS}
    return validate(PluginCommonConfig, Node(node.path, node.line, own), report)


class _Sections:
    """The options of plugins, validated by their models: the global ones, those of a backend, which take what they do not say
    from the global section, and those of a route, which take it from its backend's and then the global section. `section` is the
    node of the top-level key `plugins`."""

    def __init__(self, plugins: PluginHost, section: Node, disabled: frozenset[str], report: Report) -> None:
        self._plugins = plugins
        self._disabled = disabled - {*plugins.names}
        self._section = section
        self._report = report
        declared = plugins.sections.values()
        self._by_backend = {section.name: section for section in declared if section.per_backend is True}
        self._inline = {key: section for section in declared if section.per_backend == "inline" for key in keys_of(section.model)}
        self._of_backends: dict[tuple[str, str], Node] = {}  # by the names of backend and plugin

    def global_options(self, name: str) -> Any:
        given = self._global(name)
        declared = self._plugins.sections.get(name)
        if declared is not None:
            return validate(declared.model, given, self._report) or declared.model()
        for node in given.items().values():
            self._report.add(node, f"the plugin {name!r} has no options")
        return None

    def of_backend(self, entry: Node) -> dict[str, Any]:
        """The options of plugins in one entry of `backends`. Keys that neither a plugin nor the core knows are reported."""
        own: dict[str, Node] = {}
        known = {*keys_of(Backend), *self._by_backend, *self._inline} - {"options"}
        for key, given in entry.items().items():
            if key in self._inline:
                own.setdefault(self._inline[key].name, Node(entry.path, entry.line, {})).value[key] = given
            elif key in self._disabled:
                self._report.add(given, f"{key!r} is an option of the built-in plugin of that name, which is disabled")
            elif key not in known:
                self._report.add(given, unknown_key(key, known))
            elif key in self._by_backend and self._is_section(given):
                own[key] = given
        name = entry.get("name")
        if name is not None and isinstance(name.value, str):
            self._of_backends |= {(name.value, plugin): given for plugin, given in own.items()}
        return {plugin: self._merged(plugin, given) if given.value is not False else None for plugin, given in own.items()}

    def of_route(self, entry: Node, backend: str, used: Collection[str]) -> dict[str, Any]:
        """The options of plugins in one entry of `routes`, its key `plugins`. `used` are the names under `use`."""
        found: dict[str, Any] = {}
        known = {*self._plugins.names, *_names(self._section), *used}
        given_options = entry.get("plugins")
        for name, given in given_options.items().items() if given_options is not None else ():
            declared = self._plugins.sections.get(name)
            if name not in known:
                hint = did_you_mean(name, known) or f"; active are {join_names(known)}"
                self._report.add(given, f"no active plugin is named {name!r}{hint}")
            elif given.value is False:
                found[name] = None
            elif not self._is_section(given):
                continue
            elif name in used:
                self._report.add(
                    given, "the options of a 'use' entry are set in that entry; a route can only turn it off, with false"
                )
            elif common := next((key for key in given.value if key in _COMMON_KEYS), None):
                message = f"{common} is the same for every route; set it under the top-level 'plugins'"
                self._report.add(given.value[common], message)
            elif name in self._plugins.names:
                if declared is None or not declared.per_route:
                    message = f"the plugin {name!r} takes no options of a route, only those under the top-level 'plugins'"
                    self._report.add(given, message)
                    continue
                found[name] = self._merged(name, given, self._of_backends.get((backend, name)))
        return found

    def _is_section(self, given: Node) -> bool:
        if given.value is False or isinstance(given.value, dict):
            return True
        self._report.add(given, f"expected options (key: value), or false to turn it off, found {given.shown()}")
        return False

    def _merged(self, name: str, given: Node, backend: Node | None = None) -> Any:
        model = self._plugins.sections[name].model
        nodes = {**self._global(name).items(), **(backend.items() if backend is not None else {}), **given.items()}
        return validate(model, Node(given.path, given.line, nodes), self._report) or model()

    def _global(self, name: str) -> Node:
        """The options of a plugin under the top-level `plugins`; an empty mapping if it has none."""
        node = self._section.get(name)
        if node is None:
            return Node((*self._section.path, name), self._section.line, {})
        return Node(node.path, node.line, {key: below for key, below in node.items().items() if key not in _COMMON_KEYS})
