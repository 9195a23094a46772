"""Registry: the active plugins of one gateway.

A plugin is found by name: the built-ins are modules of `rgate.plugins`, all others are entry points of the group `rgate`,
whose name is the plugin's name. An installed plugin is imported only if the config names it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy
from pydantic import BaseModel

from ..config.messages import did_you_mean, join_names
from ..config.models import Backend, PluginCommonConfig
from ..config.validation import keys_of
from ..errors import ConfigProblem, PluginError
from ..plugins import BUILTIN
from .attribution import report_failure
from .config_checks import check_config
from .entry_points import InstalledPlugins, PluginRecord, builtin_record
from .hook_calls import ActivePlugin, hooks_of
from .hookspecs import NAMESPACE, ConfigSection, HookSpecs
from .lifespan import Lifespan
from .wsgi_middleware import load_middleware

if TYPE_CHECKING:
    from ..chain.exchange import Exchange
    from ..chain.middleware import Middleware
    from ..config import Config
    from ..runtime.gateway import Gateway

__all__ = ["PluginRecord", "Registry"]


class Registry:
    """The active plugins of one gateway, in order of registration: built-ins first, then by distribution and name.

    Everything but `hook` and report_failure() is for start-up and for one thread.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(NAMESPACE)
        self._manager.add_hookspecs(HookSpecs)
        self._active: dict[str, ActivePlugin] = {}
        self._sections: dict[str, ConfigSection] = {}
        self._wsgi_modules: dict[str, str] = {}  # module of a `use` entry → its name

    @property
    def hook(self) -> pluggy.HookRelay:
        """Calls a hook of every plugin, by pluggy; the plugin registered last is called first."""
        return self._manager.hook

    @property
    def names(self) -> tuple[str, ...]:
        """The active plugins, in order of registration."""
        return tuple(self._active)

    @property
    def sections(self) -> Mapping[str, ConfigSection]:
        """The config sections of the active plugins, by plugin."""
        return self._sections

    def activate(self, wanted: Collection[str] = (), disabled: Collection[str] = ()) -> list[ConfigProblem]:
        """Activate the built-ins, except those in `disabled`, and the installed plugins that are `wanted`.

        Returns a problem, at its place in the config, for each wanted plugin that cannot be activated. Raises PluginError if a
        built-in fails, because no config can repair that.
        """
        problems = []
        for name in sorted(set(disabled) - set(BUILTIN)):
            hint = did_you_mean(name, BUILTIN) or f"; they are {join_names(BUILTIN)}"
            problems.append(ConfigProblem(("plugins", "disable"), f"no built-in plugin is named {name!r}{hint}"))
        early = self.names
        for name in BUILTIN:
            if name not in disabled:
                self._add(_import_builtin(name), builtin_record(name))
        for name in early:  # so that the built-ins are first in order, and called last where the first answer counts
            self._manager.register(self._manager.unregister(name=name), name)
            self._active[name] = self._active.pop(name)
        installed = InstalledPlugins()
        for name in installed.sorted_names(wanted):
            if name in early or (name in self._active and name not in installed):
                continue
            try:
                self._add(*installed.load(name, {name: plugin.record for name, plugin in self._active.items()}))
            except PluginError as error:
                problems.append(ConfigProblem(("plugins", name), str(error)))
        return problems

    def register(self, name: str, plugin: object) -> None:
        """Activate a module or object that implements hooks under `name`, although it is not installed.

        Must be called before the config is loaded. Raises PluginError if it is not a plugin, if a hook is misspelt or has
        arguments that its specification does not have, or if its config section is not valid.
        """
        self._add(plugin, PluginRecord(name))

    def collect(self, hook_name: str, **kwargs: object) -> list[Any]:
        """Call a hook of all plugins, in order of registration. Returns what they return, without None, iterables flattened.

        Raises PluginError, naming plugin and hook, for any exception in a plugin and for what the hook cannot return.
        """
        return [value for plugin in self._active.values() for value in plugin.call(hook_name, **kwargs)]

    def lifespans(self, gateway: Gateway) -> Iterator[Lifespan]:
        """The lifespans of all plugins, in order of registration. A hook is called after the lifespans before it have started."""
        for plugin in self._active.values():
            for context in plugin.call("rgate_lifespan", gateway=gateway):
                yield Lifespan(plugin.record, context)

    def check(self, config: Config) -> Iterator[ConfigProblem]:
        """Every problem that the plugins, or the chain that they make, have with a config that is valid by itself."""
        return check_config(config, self._active, self._sections)

    def wsgi_middlewares(self, config: Config) -> list[Middleware]:
        """The middlewares under `use:`. Raises PluginError."""
        for entry in config.use:
            self._wsgi_modules[entry.app.partition(":")[0]] = entry.name or entry.default_name
        return [load_middleware(entry) for entry in config.use]

    def records(self) -> list[PluginRecord]:
        """All plugins, active or not: the built-ins, then the installed ones. Those that are not active are not imported."""
        active = [plugin.record for plugin in self._active.values()]
        inactive = [replace(record, active=False, hooks=None) for record in active]
        known = [*map(builtin_record, BUILTIN), *InstalledPlugins()]
        found = [active[inactive.index(record)] if record in inactive else record for record in known]
        return found + [record for record in active if record not in found]

    def report_failure(self, exchange: Exchange, error: BaseException, hook: str = "") -> None:
        """Log an exception that came out of the chain, with the request's id and the plugin in whose code it was raised.

        `hook` is the hook that brought that code, if it is known. A fault (GatewayError) is reported only where no plugin
        `faults` answers it, and needs no traceback.
        """
        owners = {module: name for name, plugin in self._active.items() for module in plugin.modules} | self._wsgi_modules
        report_failure(exchange, error, hook, owners, self.describe)

    def describe(self, name: str) -> str:
        """A plugin's name with its distribution and version; the name of a `use` entry with "(use)"."""
        plugin = self._active.get(name)
        return f"{name!r} (use)" if plugin is None else str(plugin.record)

    def _add(self, plugin: object, record: PluginRecord) -> None:
        name = record.name
        if name in self._active or name == "disable":
            raise PluginError(f"plugin {record}: the name is taken")
        if isinstance(plugin, type):
            raise PluginError(f"plugin {record}: is a class; name a module or an object with hook implementations")
        if (other := self._manager.get_name(plugin)) is not None:
            raise PluginError(f"plugin {record}: is active already, under the name {other!r}")
        try:
            self._manager.register(plugin, name)
            self._check_hooks(record, plugin)
            self._manager.check_pending()
            hooks = hooks_of(self._manager, plugin)
            active = ActivePlugin(plugin, replace(record, active=True, hooks=tuple(sorted(hooks))), hooks)
            self._active[name] = active
            self._register_section(active)
        except pluggy.PluginValidationError as error:
            self._unregister(name)
            raise PluginError(f"plugin {record}: {self._reword(error)}") from error
        except PluginError:
            self._unregister(name)
            raise

    def _unregister(self, name: str) -> None:
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)
        self._active.pop(name, None)
        self._sections.pop(name, None)

    def _check_hooks(self, record: PluginRecord, plugin: object) -> None:
        callers = self._manager.get_hookcallers(plugin) or []
        known = [name for name in dir(HookSpecs) if name.startswith("rgate_")]
        if not callers:
            raise PluginError(f"plugin {record}: implements no hook; mark its functions with @rgate.hookimpl")
        for caller in callers:
            if not caller.has_spec():
                hint = did_you_mean(caller.name, known) or f"; the hooks are {join_names(known)}"
                raise PluginError(f"plugin {record}: there is no hook {caller.name!r}{hint}")
            for impl in caller.get_hookimpls():
                if impl.plugin is plugin and (impl.wrapper or impl.hookwrapper):
                    raise PluginError(f"plugin {record}: {caller.name} is a hook wrapper; rgate calls plain functions only")

    def _register_section(self, plugin: ActivePlugin) -> None:
        record, name = plugin.record, plugin.record.name
        sections: list[ConfigSection] = plugin.call("rgate_config_sections")
        if len(sections) > 1:
            raise PluginError(f"plugin {record}: rgate_config_sections returns {len(sections)} sections; a plugin has one")
        for section in sections:
            if section.name != name:
                raise PluginError(f"plugin {record}: its ConfigSection is named {section.name!r}; it must be {name!r}")
            if not (isinstance(section.model, type) and issubclass(section.model, BaseModel)):
                raise PluginError(f"plugin {record}: the model of its ConfigSection is not a pydantic class: {section.model!r}")
            if taken := section.model.model_fields.keys() & PluginCommonConfig.model_fields.keys():
                raise PluginError(
                    f"plugin {record}: its model has {join_names(sorted(taken))}, which rgate itself adds to every plugin"
                )
            try:
                section.model()
            except Exception as error:
                raise PluginError(f"plugin {record}: every field of its model needs a default: {error}") from error
            self._check_backend_keys(record, section)
            self._check_backend_keys(record, section)
            self._sections[name] = section

    def _check_backend_keys(self, record: PluginRecord, section: ConfigSection) -> None:
        """Raise PluginError if a key that the section adds to backends is taken."""
        taken = dict.fromkeys(keys_of(Backend), "rgate")
        for other in self._sections.values():
            taken |= dict.fromkeys(_backend_keys(other), f"the plugin {other.name!r}")
        for key in _backend_keys(section):
            if key in taken:
                raise PluginError(f"plugin {record}: its key {key!r} of a backend is taken by {taken[key]}")

    def _reword(self, error: Exception) -> str:
        """The last line of pluggy's message, which says what is wrong, with the hook and its arguments."""
        words = str(error).strip()
        match = re.search(r"hook '(\w+)'", words)
        spec = getattr(self.hook, match[1]).spec if match else None
        if match is None or spec is None:
            return words
        return f"{match[1]}: {words.splitlines()[-1]}; the hook's arguments are ({', '.join(spec.argnames)})"


def _backend_keys(section: ConfigSection) -> list[str]:
    if section.per_backend == "inline":
        return list(keys_of(section.model))
    return [section.name] if section.per_backend else []


def _import_builtin(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"rgate.plugins.{name}")
    except Exception as error:
        message = f"plugin {builtin_record(name)} cannot be imported: {type(error).__name__}: {error}; reinstall rgate"
        raise PluginError(message) from error
