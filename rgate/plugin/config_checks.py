"""Checks a config, which is valid by itself, against the active plugins and the chain that they make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ..chain.pipeline import ROUTING, STANDARD_ORDER, chain_problem
from ..config.messages import did_you_mean, join_names
from ..config.models import PluginCommonConfig
from ..errors import ConfigProblem, PluginError
from ..plugins import BUILTIN
from .wsgi_middleware import check_entries

if TYPE_CHECKING:
    from ..config import Config
    from .hook_calls import ActivePlugin
    from .hookspecs import ConfigSection, SelectionPolicy

__all__ = ["check_config"]


def check_config(
    config: Config, plugins: Mapping[str, ActivePlugin], sections: Mapping[str, ConfigSection]
) -> Iterator[ConfigProblem]:
    """Every problem that the plugins, or the chain, have with `config`."""
    yield from check_entries(config.use, plugins.keys())
    yield from _check_chain(config, plugins, sections)
    policies: dict[str, SelectionPolicy] = {}
    for name, plugin in plugins.items():
        try:
            policies |= {policy.name: policy for policy in plugin.call("rgate_selection_policies", config=config)}
        except PluginError as error:
            yield ConfigProblem(("plugins", name), str(error))
            return
    for name, plugin in plugins.items():
        try:
            yield from plugin.call("rgate_check_config", config=config, policies=policies)
        except PluginError as error:
            yield ConfigProblem(("plugins", name), str(error))


def _check_chain(
    config: Config, plugins: Mapping[str, ActivePlugin], sections: Mapping[str, ConfigSection]
) -> Iterator[ConfigProblem]:
    """The names in `pipeline`, keys of plugins without a middleware, and routes that configure what does not run per route."""
    entries = {entry.name or entry.default_name: entry for entry in config.use}
    active = {name for name, plugin in plugins.items() if "rgate_middlewares" in plugin.hooks} | entries.keys()
    chain = config.pipeline if config.pipeline is not None else STANDARD_ORDER
    outer = set(chain[: chain.index(ROUTING) + 1]) if ROUTING in chain else set()
    if config.pipeline is None:
        outer |= {name for name, entry in entries.items() if entry.after in outer - {ROUTING} or entry.before in outer}
    place: tuple[str | int, ...] = ("pipeline",) if config.pipeline is not None else ("plugins", "disable")
    named = active & {ROUTING, "selection"} <= {*chain}  # otherwise build() reports what is missing
    if named and (problem := chain_problem([name for name in chain if name in active], active - {*BUILTIN})):
        yield ConfigProblem(place, f"no request could be answered: {problem}")
    for index, name in enumerate(config.pipeline or ()):
        if name not in active:
            hint = did_you_mean(name, active) or f"; the active ones are {join_names(active)}"
            yield ConfigProblem(("pipeline", index), f"no active middleware is named {name!r}{hint}")
    for name in plugins.keys() - active:
        if config.plugin_common(name) != PluginCommonConfig():
            yield ConfigProblem(("plugins", name), "has no middleware, so on_error and timed have no effect")
    for index, route in enumerate(config.routes):
        for name in route.options:
            place = ("routes", index, "plugins", name)
            if name not in active:
                yield ConfigProblem(place, f"{name!r} has no middleware, so it cannot be configured per route")
            elif name in outer and not (name in sections and sections[name].per_route):
                yield ConfigProblem(place, f"{name!r} runs before the route is known, and so is the same for every route")
