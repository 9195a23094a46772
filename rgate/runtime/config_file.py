"""Where a config comes from, and the gateway that it describes."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from ..config import Config, load
from ..config.file_watch import FileWatch
from ..plugin.registry import Registry
from .gateway import Gateway, build
from .restart_only import keep_restart_only

__all__ = ["ConfigFile"]


class ConfigFile:
    """The config in the file at `path`, read anew as often as it changes.

    `override` is what the command line says over it; `registry` makes what the plugins are loaded with. For one thread at a
    time.

    watch  whether it has changed since it was read, it and the files that it names
    stays  what was kept as it was when it was read last, as lines for the operator; see pinned()
    """

    RESTART = "restart"  # the key of gateway.readiness.warnings

    def __init__(
        self,
        path: str,
        override: Callable[[Config, Registry], Config] = lambda config, registry: config,
        registry: Callable[[], Registry] = Registry,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.path = path
        self.watch = FileWatch(path, clock=clock)
        self.stays: tuple[str, ...] = ()
        self._override = override
        self._registry = registry

    def compose(self, before: Gateway | None = None) -> Gateway:
        """The gateway that the file describes now, to take the place of `before`. Raises ConfigError, PluginError."""
        self.watch.mark_read()
        registry = self._registry()
        config = self._override(load(self.path, registry), registry)
        self.stays = ()
        if before is not None:
            config, self.stays = keep_restart_only(config, before.config)
        gateway = build(config, registry, before)
        self.watch.set_files([self.path, *config.files])
        return gateway

    def note(self, gateway: Gateway) -> None:
        """Leave a notice for the operator about what `stays`, now that this gateway is in force."""
        if self.stays:
            gateway.readiness.warnings[self.RESTART] = "; ".join(self.stays)
        else:
            gateway.readiness.warnings.pop(self.RESTART, None)
