"""load(): from the file to a Config, in the order in which things are found out.

    read (YAML) → environment variables → shape (models) → plugins → their sections → cross checks

A step goes on with what the one before has found good, so that one run shows everything there is to correct.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ConfigProblem
from . import certificates, checks, environment
from . import yaml_reader as document
from .messages import did_you_mean, listed
from .models import Config, PluginCommonConfig, PluginsConfig, RouteConfig
from .tree import Node, Report
from .validation import validate

if TYPE_CHECKING:
    from ..plugin.hookspecs import ConfigSection

__all__ = ["Plugins", "load", "load_text"]


_OF_THE_CORE = frozenset(PluginCommonConfig.model_fields)


class Plugins(Protocol):
    """What loading a config needs of the plugins; `rgate.plugin.registry.Registry` is one."""

    def activate(self, wanted: Collection[str], disabled: Collection[str]) -> Iterable[ConfigProblem]:
        """Make the built-ins that are not disabled and the wanted plugins active; what went wrong."""

    @property
    def names(self) -> Collection[str]:
        """The active plugins."""

    @property
    def sections(self) -> Mapping[str, ConfigSection]:
        """The options that active plugins understand, by plugin."""

    def check(self, config: Config) -> Iterable[ConfigProblem]:
        """What the plugins, and the chain they make, have against a config."""


def load(path: str | os.PathLike[str], plugins: Plugins, environ: Mapping[str, str] = os.environ) -> Config:
    """The config in a file, with the plugins that it names activated in `plugins`.

        registry = Registry()
        gateway = build(load("config.yml", registry), registry)

    `environ` is where `${NAME}` is looked up. Raises ConfigError with every problem there is.
    """
    report = Report(os.fspath(path))
    try:
        with open(path, "rb") as file:
            content = file.read(document.MAX_BYTES + 1)
    except FileNotFoundError:
        raise report.fail("no such file") from None
    except IsADirectoryError:
        raise report.fail("is a directory, not a file") from None
    except PermissionError:
        raise report.fail("cannot be read: no permission") from None
    except (OSError, ValueError) as error:
        raise report.fail(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > document.MAX_BYTES:
        raise report.fail(f"is larger than {document.MAX_BYTES // 1024 // 1024} MiB")
    return _load(content, plugins, environ, report)


def load_text(text: str, plugins: Plugins, environ: Mapping[str, str] = os.environ, *, file: str = "config.yml") -> Config:
    """The config in a text, as `load` has it from a file. `file` is what problems call it."""
    return _load(text.encode("utf-8", "surrogateescape"), plugins, environ, Report(file))


def _load(content: bytes, plugins: Plugins, environ: Mapping[str, str], report: Report) -> Config:
    root = document.read(content, report)
    environment.expand(root, environ, report)
    report.hide_secrets(root)
    if (node := root.cut(("disabled",))) is not None:
        report.add(node, "unknown key 'disabled'; built-ins are disabled by plugins: {disable: [NAME, …]}")
    backends = {str(name.value) for entry in _below(root, "backends") if (name := entry.get("name")) is not None}
    config = validate(Config, root, report) or Config()

    section = root.get("plugins") or Node(("plugins",), root.line, {})
    disabled = _disabled(section, report)
    for problem in plugins.activate(_wanted(section, report), disabled):
        report.add_check(root, problem)
    config = checks.named(config)
    config = config.model_copy(
        update={
            "routes": tuple(
                _route(route, node, config, section, plugins, report)
                for route, node in zip(config.routes, _below(root, "routes"), strict=False)
            ),
            "plugins": {name: _options(name, section, plugins, report) for name in plugins.names},
            "disabled": disabled,
        }
    )

    config._treatments.update({name: found for name in _names(section) if (found := _treatment(name, section, report))})
    config._treatments.update({str(entry.name): entry for entry in config.use})
    for problem in (*checks.check(config, root, backends, report), *certificates.check(config), *plugins.check(config)):
        report.add_check(root, problem)
    report.raise_any()
    notices = (*checks.notices(config), *certificates.notices(config))
    config._notices.extend(report.sockname(root, notice) for notice in notices)
    config._sources.update({node.path: node.source for node in root.walk() if node.source is not None})
    return config


def _below(root: Node, key: str) -> list[Node]:
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


def _given(section: Node, name: str) -> Node:
    """The options of a plugin as the file has them; an empty mapping where it has none."""
    node = section.get(name)
    if node is None:
        return Node((*section.path, name), section.line, {})
    return Node(node.path, node.line, {key: below for key, below in node.items().items() if key not in _OF_THE_CORE})


def _treatment(name: str, section: Node, report: Report) -> PluginCommonConfig | None:
    """What the core's own keys say in the section of a plugin."""
    node = section.items()[name]
    own = {key: below for key, below in node.items().items() if key in _OF_THE_CORE}
    return validate(PluginCommonConfig, Node(node.path, node.line, own), report)


def _options(name: str, section: Node, plugins: Plugins, report: Report) -> Any:
    given = _given(section, name)
    declared = plugins.sections.get(name)
    if declared is not None:
        return validate(declared.model, given, report) or declared.model()
    for node in given.items().values():
        report.add(node, f"the plugin {name!r} has no options")
    return None


def _route(route: RouteConfig, node: Node, config: Config, section: Node, plugins: Plugins, report: Report) -> RouteConfig:
    """The route with plugin options of its own validated; what they do not say is taken from the global section."""
    used = {str(entry.name) for entry in config.use}
    known = {*plugins.names, *_names(section), *used}
    own: dict[str, Any] = {}
    for name, given in node.items()["plugins"].items().items() if route.plugins else ():
        if name not in known:
            report.add(given, f"no active plugin is named {name!r}{did_you_mean(name, known) or f'; active are {listed(known)}'}")
        elif given.value is False:
            own[name] = False
        elif not isinstance(given.value, dict):
            report.add(given, f"expected options (key: value), or false to turn it off, found {given.shown()}")
        elif name in used:
            report.add(given, "the options of a 'use' entry stand with it; a route can only turn it off, with false")
        elif own_key := next((key for key in given.value if key in _OF_THE_CORE), None):
            report.add(given.value[own_key], f"{own_key} is the same for every route; it stands under the top-level 'plugins'")
        elif name in plugins.names:
            declared = plugins.sections.get(name)
            if declared is None or not declared.per_route:
                report.add(given, f"the plugin {name!r} takes no options of a route, only those under the top-level 'plugins'")
                continue
            merged = Node(given.path, given.line, {**_given(section, name).items(), **given.value})
            own[name] = validate(declared.model, merged, report) or declared.model()
    return route.model_copy(update={"plugins": own})
