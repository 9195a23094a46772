"""ActivePlugin: calls the hooks of one plugin, and refuses what they cannot return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import pluggy

from ..chain.middleware import Middleware
from ..config.messages import join_names
from ..errors import ConfigProblem, PluginError
from .entry_points import PluginRecord
from .hookspecs import ConfigSection

__all__ = ["ActivePlugin", "Hook", "hooks_of"]

Hook = Callable[..., object]


def _has(*attributes: str) -> Callable[[object], bool]:
    return lambda value: not isinstance(value, type) and all(hasattr(value, name) for name in attributes)


_RETURNS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "rgate_config_sections": ("a ConfigSection", lambda value: isinstance(value, ConfigSection)),
    "rgate_check_config": ("ConfigProblems", lambda value: isinstance(value, ConfigProblem)),
    "rgate_discovery_sources": ("a DiscoverySource (with name and list)", _has("name", "list")),
    "rgate_selection_policies": ("a SelectionPolicy (with name and pick)", _has("name", "pick")),
    "rgate_middlewares": ("a Middleware", lambda value: isinstance(value, Middleware) and callable(value.wrap)),
    "rgate_local_routes": ("a mapping of paths to WSGI apps", lambda value: isinstance(value, Mapping)),
    "rgate_lifespan": ("a context manager", _has("__enter__", "__exit__")),
}
"""Descriptions and tests of what each hook may return (one, several in an iterable, or None). rgate_fault_response is not here,
because pluggy calls it."""


class ActivePlugin:
    """A plugin that is active.

    record   its name, distribution and version
    hooks    its implementations by hook name, called with keyword arguments
    modules  the modules that are the plugin's code, with everything under them
    """

    def __init__(self, plugin: object, record: PluginRecord, hooks: Mapping[str, Hook]) -> None:
        self.record = record
        self.hooks = hooks
        self.modules = frozenset(_modules(plugin))

    def call(self, hook_name: str, **kwargs: object) -> list[Any]:
        """Call a hook, if the plugin implements it. Returns what it returns as a list, without None.

        Raises PluginError, naming plugin and hook, for any exception in the plugin and for what the hook cannot return.
        """
        hook = self.hooks.get(hook_name)
        if hook is None:
            return []
        words, is_valid = _RETURNS[hook_name]
        try:
            value = hook(**kwargs)
            values: list[Any] = [value]
            if value is None:
                values = []
            elif isinstance(value, Iterable) and not is_valid(value):
                values = list(value)
        except (Exception, SystemExit) as error:
            message = f"plugin {self.record}: {hook_name} raised {type(error).__name__}: {error}"
            raise PluginError(message) from error
        for value in values:
            if not is_valid(value):
                if inspect.iscoroutine(value):
                    value.close()
                raise PluginError(f"plugin {self.record}: {hook_name} must return {words}, not {value!r}")
        names = [value.name for value in values if isinstance(value, Middleware)]
        if names not in ([], [self.record.name]):
            raise PluginError(
                f"plugin {self.record}: brings the middleware {join_names(map(repr, names))}; "
                f"it has at most one, named {self.record.name!r}"
            )
        return values


def hooks_of(manager: pluggy.PluginManager, plugin: object) -> dict[str, Hook]:
    """The implementations of a plugin that is registered with pluggy, by hook name."""
    return {caller.name: _hook(caller, plugin) for caller in manager.get_hookcallers(plugin) or ()}


def _hook(caller: pluggy.HookCaller, plugin: object) -> Hook:
    impl = next(impl for impl in caller.get_hookimpls() if impl.plugin is plugin)
    return lambda **kwargs: impl.function(*(kwargs[argument] for argument in impl.argnames))


def _modules(plugin: object) -> Iterator[str]:
    module = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__module__
    yield module
    top = module.partition(".")[0]
    if top != "rgate":
        yield top
