"""What cannot change without a restart: it keeps its value, and the operator is told."""

from __future__ import annotations

from typing import Any, Final

from ..config import Config

__all__ = ["keep_restart_only"]

# Listening sockets and processes are made once, at the start, and so are the threads that every process begins with.
PINNED: Final = ("host", "port", "workers", "threads")


def keep_restart_only(config: Config, before: Config) -> tuple[Config, tuple[str, ...]]:
    """`config` with the values of `before` where they have to stay, and a line for each: "server.port stays 8080, …"."""
    new, old = config.server, before.server
    stays: dict[str, Any] = {}
    lines: list[str] = []
    for key in PINNED:
        if getattr(new, key) != getattr(old, key):
            stays[key] = getattr(old, key)
            lines.append(f"server.{key} stays {getattr(old, key)} until a restart (the config says {getattr(new, key)})")
    if (new.tls is None) != (old.tls is None):
        stays["tls"] = old.tls
        lines.append(f"server.tls stays {'off' if old.tls is None else 'on'} until a restart")
    elif new.tls is not None and old.tls is not None and new.tls.redirect_port != old.tls.redirect_port:
        stays["tls"] = new.tls.model_copy(update={"redirect_port": old.tls.redirect_port})
        lines.append("server.tls.redirect_port stays until a restart")
    return config.model_copy(update={"server": new.model_copy(update=stays)}), tuple(lines)
