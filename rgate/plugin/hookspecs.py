"""The hooks: everything that a plugin can provide.

A plugin is a module or an object with functions of these names, marked with `rgate.hookimpl`, and an entry point in the
group `rgate`. It is active if it is installed *and* named under `plugins:` in the config. Hooks return objects, which rgate
composes once, when a config is loaded. The only hook that runs per request is `rgate_fault_response`, and only on faults.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import pluggy
from pydantic import BaseModel

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from ..chain.exchange import Exchange
    from ..chain.middleware import LocalRoutes, Middleware
    from ..config import Config
    from ..discovery.model import Endpoint, Instance
    from ..errors import ConfigProblem, GatewayError
    from ..runtime.gateway import Gateway

__all__ = [
    "NAMESPACE",
    "ConfigSection",
    "DiscoverySource",
    "SelectionPolicy",
    "WatchableSource",
    "WeightedPolicy",
    "hookimpl",
]

NAMESPACE = "rgate"

_F = TypeVar("_F", bound=Callable[..., Any])

_hookspec = pluggy.HookspecMarker(NAMESPACE)
_hookimpl = pluggy.HookimplMarker(NAMESPACE)


def hookimpl(function: _F) -> _F:
    """Mark a function as the implementation of the hook of the same name."""
    return _hookimpl(function)


@dataclass(frozen=True, slots=True)
class ConfigSection:
    """The options of a plugin, which stand under `plugins: {NAME: …}` in the config. `name` is the plugin's.

    `model` is a pydantic class whose fields all have a default, so that a plugin can be named without options. Unknown keys are
    errors unless the model itself allows them.

    per_route    a route can have a section of its own: `plugins: {NAME: …}` in the route, or `NAME: false` to turn it off
    per_backend  True: a backend can have a section of its own: `NAME: …` in the backend, or `NAME: false` to turn it off.
                 "inline": the fields of `model` are keys of a backend themselves, for options that are a single value
                 (`policy: random`). Neither may have the name of another key of a backend: that is a PluginError

    All of these are validated by the same model. A route's section takes the keys that it does not have from its backend's, and
    that from the global one. Gateway.options() and Config.options() return the right one; `Middleware.wrap` is given that of its
    route.
    """

    name: str
    model: type[BaseModel]
    per_route: bool = False
    per_backend: bool | Literal["inline"] = False


class DiscoverySource(Protocol):
    """Lists instances. `name` is its name for the operator ("docker")."""

    name: str

    def list(self) -> Iterable[Instance]:
        """All instances that there are now. May block; runs in the discovery thread. If it raises, that is logged, the last good
        list stays in use, and it is called again with back-off."""
        ...


class WatchableSource(DiscoverySource, Protocol):
    """A source that also notices changes."""

    def watch(self, changed: Callable[[], None], stop: threading.Event) -> None:
        """Call `changed()` whenever `list()` may return something new; return soon after `stop` is set.

        Runs in a thread of its own. If it returns or raises earlier, the watch has failed: the gateway calls list() and watch()
        again, with back-off.
        """
        ...


class SelectionPolicy(Protocol):
    """Chooses one endpoint for a request. `name` is the value of `policy:` in the config."""

    name: str

    def pick(self, candidates: Sequence[Endpoint], exchange: Exchange) -> Endpoint:
        """Return one of `candidates`, which is never empty. Called by many threads at once; must be quick."""
        ...


class WeightedPolicy(SelectionPolicy, Protocol):
    """A selection policy that also chooses by weight. With any other policy the weights of endpoints have no effect, except 0."""

    def pick_weighted(self, candidates: Sequence[Endpoint], weights: Sequence[float], exchange: Exchange) -> Endpoint:
        """Return one of `candidates`, of which there are at least two. Called instead of pick() while their weights differ. Each
        should get its part of the sum of `weights`, which are above 0."""
        ...


class HookSpecs:
    """The specifications that implementations are checked against."""

    @_hookspec
    def rgate_config_sections(self) -> Iterable[ConfigSection] | ConfigSection | None:
        """The options of this plugin."""

    @_hookspec
    def rgate_check_config(self, config: Config, policies: Mapping[str, SelectionPolicy]) -> Iterable[ConfigProblem] | None:
        """Problems of the config across sections. `policies` are the selection policies of all plugins, by name. No
        I/O: `rgate check` must be quick and harmless."""

    @_hookspec
    def rgate_discovery_sources(self, config: Config) -> Iterable[DiscoverySource] | DiscoverySource | None:
        """Sources of endpoints."""

    @_hookspec
    def rgate_selection_policies(self, config: Config) -> Iterable[SelectionPolicy] | SelectionPolicy | None:
        """Policies that choose an endpoint."""

    @_hookspec
    def rgate_middlewares(self, gateway: Gateway) -> Iterable[Middleware] | Middleware | None:
        """A middleware for the chain."""

    @_hookspec
    def rgate_local_routes(self, gateway: Gateway) -> LocalRoutes | None:
        """Exact paths that the gateway answers itself: to all clients, or as a LocalRoute says. Requests to them are never
        forwarded and never counted."""

    @_hookspec
    def rgate_lifespan(self, gateway: Gateway) -> AbstractContextManager[object] | None:
        """A context manager: entered before the gateway listens, and left, in reverse order, after the last exchange."""

    @_hookspec(firstresult=True)
    def rgate_fault_response(self, exchange: Exchange, error: GatewayError) -> WSGIApplication | None:
        """The answer to a fault. None leaves it to the next plugin, and finally to the built-in `faults`."""
