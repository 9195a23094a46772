"""The plugins of one gateway: loaded, checked while they are loaded, and asked by hook.

A plugin is found by name: the built-ins are modules of `rgate.plugins`, all others are entry points of the group
`rgate`, whose name is the plugin's name. An installed plugin is imported only when the config names it.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy
from pydantic import BaseModel

from ..chain.middleware import Middleware
from ..chain.pipeline import ROUTING, STANDARD_ORDER, chain_problem
from ..config.messages import did_you_mean, join_names
from ..config.models import Backend, PluginCommonConfig
from ..config.validation import keys_of
from ..errors import ConfigProblem, GatewayError, PluginError
from ..log import exception_key
from ..plugins import BUILTIN
from .attribution import attribute_failure
from .entry_points import InstalledPlugins, PluginRecord, builtin_record
from .hookspecs import NAMESPACE, ConfigSection, HookSpecs, SelectionPolicy
from .lifespan import Lifespan
from .wsgi_middleware import check_used, middleware

if TYPE_CHECKING:
    from ..chain.exchange import Exchange
    from ..config import Config
    from ..runtime.gateway import Gateway

__all__ = ["PluginRecord", "Registry"]

_log = logging.getLogger("rgate.plugin")


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
"""What each hook that is collected may return (one, several in an iterable, or None), for messages and as a test."""


@dataclass(frozen=True, slots=True)
class _Active:
    record: PluginRecord
    calls: Mapping[str, Callable[..., object]]  # hook name → implementation, called with keyword arguments
    modules: frozenset[str]  # what is in these, or under them, is the plugin's code


class Registry:
    """The active plugins of one gateway, in order of registration: built-ins first, then by distribution and name.

    Everything but `hook` and `report_failure` belongs to start-up and to one thread.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(NAMESPACE)
        self._manager.add_hookspecs(HookSpecs)
        self._active: dict[str, _Active] = {}
        self._sections: dict[str, ConfigSection] = {}
        self._used_modules: dict[str, str] = {}

    @property
    def hook(self) -> pluggy.HookRelay:
        """pluggy's way to call a hook of every plugin; the last one registered is asked first."""
        return self._manager.hook

    @property
    def names(self) -> tuple[str, ...]:
        """The active plugins, in order of registration."""
        return tuple(self._active)

    @property
    def sections(self) -> Mapping[str, ConfigSection]:
        """The options that active plugins understand, by plugin."""
        return self._sections

    def activate(self, wanted: Collection[str] = (), disabled: Collection[str] = ()) -> list[ConfigProblem]:
        """Make the built-ins active, but for those in `disabled`, and the installed plugins that are `wanted`.

        What keeps a wanted plugin from being active is returned, at its place in the config. Raises PluginError when
        a built-in fails, which no config can mend.
        """
        problems = []
        for name in sorted(set(disabled) - set(BUILTIN)):
            hint = did_you_mean(name, BUILTIN) or f"; they are {join_names(BUILTIN)}"
            problems.append(ConfigProblem(("plugins", "disable"), f"no built-in plugin is named {name!r}{hint}"))
        early = self.names
        for name in BUILTIN:
            if name not in disabled:
                self._add(_import_builtin(name), builtin_record(name))
        for name in early:  # so that the built-ins are first in order, and asked last where one answer counts
            self._manager.register(self._manager.unregister(name=name), name)
            self._active[name] = self._active.pop(name)
        installed = InstalledPlugins()
        for name in installed.in_order(wanted):
            if name in early or (name in self._active and name not in installed):
                continue
            try:
                self._add(*installed.load(name, {name: plugin.record for name, plugin in self._active.items()}))
            except PluginError as error:
                problems.append(ConfigProblem(("plugins", name), str(error)))
        return problems

    def register(self, name: str, plugin: object) -> None:
        """Make a module or object that implements hooks active under `name`, without its being installed.

        To be called before the config is loaded. Raises PluginError when it is no plugin, when a hook is misspelt or
        has other arguments than its specification, or when its options are not declared as they must be.
        """
        self._add(plugin, PluginRecord(name))

    def collect(self, hook_name: str, **kwargs: object) -> list[Any]:
        """What all plugins return for a hook, in order of registration: None left out, iterables taken apart.

        Raises PluginError, naming plugin and hook, for whatever a plugin raises and for what the hook cannot return.
        """
        return [value for name in self._active for value in self._ask(name, hook_name, kwargs)]

    def lifespans(self, gateway: Gateway) -> Iterator[Lifespan]:
        """The lifespans of all plugins, in order of registration; each is asked for when those before it have begun."""
        for name, plugin in self._active.items():
            for context in self._ask(name, "rgate_lifespan", {"gateway": gateway}):
                yield Lifespan(plugin.record, context)

    def check(self, config: Config) -> Iterator[ConfigProblem]:
        """What the plugins, and the chain they make, have against a config that is valid otherwise."""
        yield from check_used(config.use, self.names)
        yield from self._check_chain(config)
        policies: dict[str, SelectionPolicy] = {}
        for name in self._active:
            try:
                policies |= {policy.name: policy for policy in self._ask(name, "rgate_selection_policies", {"config": config})}
            except PluginError as error:
                yield ConfigProblem(("plugins", name), str(error))
                return
        for name in self._active:
            try:
                yield from self._ask(name, "rgate_check_config", {"config": config, "policies": policies})
            except PluginError as error:
                yield ConfigProblem(("plugins", name), str(error))

    def used(self, config: Config) -> list[Middleware]:
        """The middlewares under `use:`. Raises PluginError."""
        for entry in config.use:
            self._used_modules[entry.app.partition(":")[0]] = entry.name or entry.default_name
        return [middleware(entry) for entry in config.use]

    def records(self) -> list[PluginRecord]:
        """Every plugin there is, active or not: the built-ins, then what is installed. Inactive ones are not imported."""
        active = [plugin.record for plugin in self._active.values()]
        inactive = [replace(record, active=False, hooks=None) for record in active]
        known = [*map(builtin_record, BUILTIN), *InstalledPlugins()]
        found = [active[inactive.index(record)] if record in inactive else record for record in known]
        return found + [record for record in active if record not in found]

    def report_failure(self, exchange: Exchange, error: BaseException, hook: str = "") -> None:
        """Log an exception that came out of the chain, with the request's id and the plugin whose code raised it.

        `hook` is what has brought that code, where it is known. A fault (GatewayError) arrives here only where no `faults`
        plugin answers it, and needs no traceback.
        """
        if isinstance(error, GatewayError):
            where = exchange.whereabouts
            _log.warning("%s: %s%s", exchange.id, error, where, extra={"dedup_key": (where, error.reason)})
            return
        owners = {module: name for name, plugin in self._active.items() for module in plugin.modules} | self._used_modules
        found = attribute_failure(error.__traceback__, owners)
        who = f"plugin {self.described(found.plugin)} failed in {hook or found.hook}" if found else "the gateway failed"
        _log.error("%s: %s: %r", exchange.id, who, error, exc_info=error, extra={"dedup_key": (who, *exception_key(error))})

    def described(self, name: str) -> str:
        """A plugin's name with its distribution and version; that of an entry of `use` with what it says so."""
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
            calls = {hook.name: _call(hook, name) for hook in self._manager.get_hookcallers(plugin) or ()}
            record = replace(record, active=True, hooks=tuple(sorted(calls)))
            self._active[name] = _Active(record, calls, frozenset(_modules(plugin)))
            self._declare(record)
        except pluggy.PluginValidationError as error:
            self._forget(name)
            raise PluginError(f"plugin {record}: {self._explain(error)}") from error
        except PluginError:
            self._forget(name)
            raise

    def _forget(self, name: str) -> None:
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

    def _declare(self, record: PluginRecord) -> None:
        name = record.name
        sections: list[ConfigSection] = self._ask(name, "rgate_config_sections", {})
        if len(sections) > 1:
            raise PluginError(f"plugin {record}: rgate_config_sections returns {len(sections)} sections; a plugin has one")
        for section in sections:
            if section.name != name:
                raise PluginError(f"plugin {record}: its ConfigSection is named {section.name!r}; it must be {name!r}")
            if not (isinstance(section.model, type) and issubclass(section.model, BaseModel)):
                raise PluginError(f"plugin {record}: the model of its ConfigSection is no pydantic class: {section.model!r}")
            if taken := section.model.model_fields.keys() & PluginCommonConfig.model_fields.keys():
                raise PluginError(f"plugin {record}: its model has {join_names(sorted(taken))}, which rgate has for every plugin")
            try:
                section.model()
            except Exception as error:
                raise PluginError(f"plugin {record}: every field of its model needs a default: {error}") from error
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

    def _ask(self, name: str, hook_name: str, kwargs: Mapping[str, object]) -> list[Any]:
        plugin = self._active[name]
        call = plugin.calls.get(hook_name)
        if call is None:
            return []
        words, valid = _RETURNS[hook_name]
        try:
            value = call(**kwargs)
            values: list[Any] = [value]
            if value is None:
                values = []
            elif isinstance(value, Iterable) and not valid(value):
                values = list(value)
        except (Exception, SystemExit) as error:
            message = f"plugin {plugin.record}: {hook_name} raised {type(error).__name__}: {error}"
            raise PluginError(message) from error
        for value in values:
            if not valid(value):
                if inspect.iscoroutine(value):
                    value.close()
                raise PluginError(f"plugin {plugin.record}: {hook_name} must return {words}, not {value!r}")
        middlewares = [value.name for value in values if isinstance(value, Middleware)]
        if middlewares not in ([], [name]):
            names = join_names(map(repr, middlewares))
            raise PluginError(f"plugin {plugin.record}: brings the middleware {names}; it has at most one, named {name!r}")
        return values

    def _explain(self, error: Exception) -> str:
        """pluggy's last line, which says what is wrong, with the hook and its arguments."""
        words = str(error).strip()
        match = re.search(r"hook '(\w+)'", words)
        spec = getattr(self.hook, match[1]).spec if match else None
        if match is None or spec is None:
            return words
        return f"{match[1]}: {words.splitlines()[-1]}; the hook's arguments are ({', '.join(spec.argnames)})"

    def _check_chain(self, config: Config) -> Iterator[ConfigProblem]:
        """Names in `pipeline`, and routes that turn off what does not run per route."""
        used = {entry.name or entry.default_name: entry for entry in config.use}
        active = {name for name, plugin in self._active.items() if "rgate_middlewares" in plugin.calls} | used.keys()
        chain = config.pipeline if config.pipeline is not None else STANDARD_ORDER
        outside = set(chain[: chain.index(ROUTING) + 1]) if ROUTING in chain else set()
        if config.pipeline is None:
            outside |= {name for name, entry in used.items() if entry.after in outside - {ROUTING} or entry.before in outside}
        place: tuple[str | int, ...] = ("pipeline",) if config.pipeline is not None else ("plugins", "disable")
        named = active & {ROUTING, "selection"} <= {*chain}  # else build() has something to say
        if named and (problem := chain_problem([name for name in chain if name in active], active - {*BUILTIN})):
            yield ConfigProblem(place, f"no request could be answered: {problem}")
        for index, name in enumerate(config.pipeline or ()):
            if name not in active:
                hint = did_you_mean(name, active) or f"; the active ones are {join_names(active)}"
                yield ConfigProblem(("pipeline", index), f"no active middleware is named {name!r}{hint}")
        for name in self._active.keys() - active:
            if config.plugin_common(name) != PluginCommonConfig():
                yield ConfigProblem(("plugins", name), "has no part in the chain, so on_error and timed mean nothing for it")
        for index, route in enumerate(config.routes):
            for name in route.options:
                place = ("routes", index, "plugins", name)
                if name not in active:
                    yield ConfigProblem(place, f"{name!r} has no part in the chain, so a route cannot say anything about it")
                elif name in outside and not (name in self._sections and self._sections[name].per_route):
                    yield ConfigProblem(place, f"{name!r} runs before the route is known, and so is the same for every route")


def _backend_keys(section: ConfigSection) -> list[str]:
    if section.per_backend == "inline":
        return list(keys_of(section.model))
    return [section.name] if section.per_backend else []


def _import_builtin(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"rgate.plugins.{name}")
    except Exception as error:
        message = f"plugin {builtin_record(name)} cannot be imported: {type(error).__name__}: {error}; install rgate anew"
        raise PluginError(message) from error


def _call(caller: pluggy.HookCaller, name: str) -> Callable[..., object]:
    impl = next(impl for impl in caller.get_hookimpls() if impl.plugin_name == name)
    return lambda **kwargs: impl.function(*(kwargs[argument] for argument in impl.argnames))


def _modules(plugin: object) -> Iterator[str]:
    module = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__module__
    yield module
    top = module.partition(".")[0]
    if top != "rgate":
        yield top
