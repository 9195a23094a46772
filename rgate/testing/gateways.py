"""A whole gateway in this process, with the public hooks and without a socket."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..chain.exchange import Exchange
from ..chain.middleware import Middleware
from ..config import Config, load_text
from ..discovery.model import Address, Instance
from ..errors import ConfigProblem
from ..plugin.hookspecs import DiscoverySource, hookimpl
from ..plugin.registry import Registry
from ..runtime.gateway import Gateway, build

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["make_gateway", "running_gateway"]


_NOTHING: Mapping[str, Any] = MappingProxyType({})


def make_gateway(
    config: str | Mapping[str, Any] = _NOTHING,
    backends: Mapping[str, WSGIApplication | Sequence[WSGIApplication]] = _NOTHING,
    plugins: Mapping[str, object] = _NOTHING,
    environ: Mapping[str, str] = _NOTHING,
) -> Gateway:
    """Compose the gateway of `config`. It does not run: discovery has not found anything yet.

    config    YAML, or the same as a dict; in a dict `backends` and `routes` may be absent: then all of `backends` are
              declared, and routed at "/NAME"
    backends  WSGI apps by backend name, called instead of the forwarder: one, or several, each of which is an endpoint
              ("orders-1", "orders-2", …), or () for none. Requests to other backends are forwarded over the network
    plugins   plugins that are not installed, activated under these names: modules or objects with hooks
    environ   environment variables for the config

    The built-ins docker and stats, which reach outside of the process, are active only if the config names them. Raises
    ConfigError and PluginError, as a start of rgate does.
    """
    apps = {
        name: {f"{name}-{number}": app for number, app in enumerate(several if isinstance(several, Sequence) else [several], 1)}
        for name, several in backends.items()
    }
    registry = _TestRegistry()
    for name, plugin in plugins.items():
        registry.register(name, plugin)
    if apps:
        registry.register("testing", _InProcess(apps))
    if not isinstance(config, str):
        declared = {
            "backends": [{"name": name, "match_labels": [f"testing={name}"]} for name in apps],
            "routes": [{"path_prefix": f"/{name}", "backend": name} for name in apps],
        }
        config = json.dumps({**declared, **config})
    return build(load_text(config, registry, environ), registry)


@contextmanager
def running_gateway(
    config: str | Mapping[str, Any] = _NOTHING,
    backends: Mapping[str, WSGIApplication | Sequence[WSGIApplication]] = _NOTHING,
    plugins: Mapping[str, object] = _NOTHING,
    environ: Mapping[str, str] = _NOTHING,
) -> Iterator[Gateway]:
    """The gateway of make_gateway(), running while inside: its endpoints are found, and its plugins' lifespans entered."""
    with make_gateway(config, backends, plugins, environ).running() as gateway:
        yield gateway


class _TestRegistry(Registry):
    def activate(self, wanted: Collection[str] = (), disabled: Collection[str] = ()) -> list[ConfigProblem]:
        return super().activate(wanted, {*disabled, *({"docker", "stats"} - set(wanted))})


class _InProcess:
    """A plugin that lists WSGI apps as endpoints and calls them instead of the forwarder."""

    name = "testing"

    def __init__(self, apps: Mapping[str, Mapping[str, WSGIApplication]]) -> None:
        self._apps = apps

    def list(self) -> Iterator[Instance]:
        for backend, apps in self._apps.items():
            for number, name in enumerate(apps, 1):
                yield Instance(name, name, address=Address("http", "in-process.invalid", number), backend=backend)

    @hookimpl
    def rgate_discovery_sources(self, config: Config) -> DiscoverySource:
        return self

    @hookimpl
    def rgate_middlewares(self, gateway: Gateway) -> Middleware:
        return Middleware(self.name, self._wrap, after="selection", modifies_request=False)

    def _wrap(self, forwarder: WSGIApplication, options: object) -> WSGIApplication:
        def call(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            exchange = Exchange.of(environ)
            endpoint = exchange.endpoint
            app = self._apps.get(endpoint.backend, {}).get(endpoint.name) if endpoint else None
            if app is None:
                return forwarder(environ, start_response)
            exchange.attempts += 1
            return app(environ, start_response)

        return call
