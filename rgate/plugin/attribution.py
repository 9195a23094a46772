"""Whose code has failed: an exception's traceback, read for the plugin and the hook that has brought the code."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple

__all__ = ["MIDDLEWARES", "FailureOrigin", "attribute_failure"]

MIDDLEWARES = "rgate_middlewares"

_CALLERS: Mapping[str, str] = {
    "rgate.plugins.selection": "rgate_selection_policies",
    "rgate.exchange": "on_finish",
    "pluggy": "rgate_fault_response",
}
"""Who calls a plugin's code while a request is served, but for what is called by the next of the chain; and by which hook."""


class FailureOrigin(NamedTuple):
    """A plugin, by name, and the hook by which its code was called."""

    plugin: str
    hook: str


def attribute_failure(traceback: TracebackType | None, owners: Mapping[str, str]) -> FailureOrigin | None:
    """The plugin in whose code the innermost frame is that belongs to a plugin or to rgate; None when that is rgate.

    `owners` has the plugin's name for every module that is one's, with all that is under the module.
    """
    modules = []
    while traceback is not None:
        modules.append(str(traceback.tb_frame.f_globals.get("__name__", "")))
        traceback = traceback.tb_next
    found = ""
    for module in reversed(modules):
        owner = _owner(module, owners)
        if not found:
            if owner:
                found = owner
            elif _is_under(module, "rgate"):
                return None
        elif owner != found:
            caller = next((hook for prefix, hook in _CALLERS.items() if _is_under(module, prefix)), MIDDLEWARES)
            return FailureOrigin(found, caller)
    return FailureOrigin(found, MIDDLEWARES) if found else None


def _owner(module: str, owners: Mapping[str, str]) -> str:
    owned = [prefix for prefix in owners if _is_under(module, prefix)]
    return owners[max(owned, key=len)] if owned else ""


def _is_under(module: str, prefix: str) -> bool:
    return f"{module}.".startswith(f"{prefix}.")
