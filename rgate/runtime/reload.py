"""Where the config comes from: its file, read again as often as it changes, and what in it cannot change without a restart."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from ..config import Config, load
from ..config.file_watch import FileWatch
from ..plugin.registry import Registry
from .gateway import Gateway, build
from .runtime import Runtime

__all__ = ["ConfigFile", "keep_restart_only"]

# Listening sockets, processes and their first threads are made once, at the start.
RESTART_ONLY: Final = ("host", "port", "workers", "threads")
RESTART_NOTICE: Final = "restart"  # the key of readiness.warnings


class ConfigFile:
    """The config in the file at `path`, as an operator changes it. For one thread at a time.

    `override` applies the options of the command line to it. `registry` makes the registry that its plugins are loaded into.

    watch          whether the file, or a file that it names, has changed since it was read
    needs_restart  lines for the operator about keys that kept their values when it was last read; see keep_restart_only()
    """

    def __init__(
        self,
        path: str,
        override: Callable[[Config, Registry], Config] = lambda config, registry: config,
        registry: Callable[[], Registry] = Registry,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.path = path
        self.watch = FileWatch(path, clock=clock)
        self.needs_restart: tuple[str, ...] = ()
        self._override = override
        self._registry = registry

    def build_gateway(self, runtime: Runtime | None = None) -> Gateway:
        """The gateway that the file describes now; see build(). Raises ConfigError and PluginError."""
        self.watch.mark_read()
        registry = self._registry()
        config = self._override(load(self.path, registry), registry)
        self.needs_restart = ()
        if runtime is not None and runtime.current is not None:
            config, self.needs_restart = keep_restart_only(config, runtime.current.config)
        gateway = build(config, registry, runtime)
        self.watch.set_files([self.path, *config.files])
        return gateway

    def update_restart_notice(self, runtime: Runtime) -> None:
        """Show operators what `needs_restart` says, now that the gateway built last is current."""
        if self.needs_restart:
            runtime.readiness.warnings[RESTART_NOTICE] = "; ".join(self.needs_restart)
        else:
            runtime.readiness.warnings.pop(RESTART_NOTICE, None)


def keep_restart_only(config: Config, before: Config) -> tuple[Config, tuple[str, ...]]:
    """`config` with the values of `before` for keys that need a restart, and a line for each: "server.port stays 8080, …"."""
    new, old = config.server, before.server
    kept: dict[str, Any] = {}
    lines: list[str] = []
    for key in RESTART_ONLY:
        if getattr(new, key) != getattr(old, key):
            kept[key] = getattr(old, key)
            lines.append(f"server.{key} stays {getattr(old, key)} until a restart (the config says {getattr(new, key)})")
    if (new.tls is None) != (old.tls is None):
        kept["tls"] = old.tls
        lines.append(f"server.tls stays {'off' if old.tls is None else 'on'} until a restart")
    elif new.tls is not None and old.tls is not None and new.tls.redirect_port != old.tls.redirect_port:
        kept["tls"] = new.tls.model_copy(update={"redirect_port": old.tls.redirect_port})
        lines.append("server.tls.redirect_port stays until a restart")
    return config.model_copy(update={"server": new.model_copy(update=kept)}), tuple(lines)
