"""Attributes an exception to the plugin in whose code it was raised, by its traceback, and logs it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from ..errors import GatewayError
from ..log import exception_key

if TYPE_CHECKING:
    from ..chain.exchange import Exchange

__all__ = ["FailureOrigin", "attribute_failure", "report_failure"]

MIDDLEWARES = "rgate_middlewares"

_CALLERS: Mapping[str, str] = {
    "rgate.plugins.selection": "rgate_selection_policies",
    "rgate.chain.exchange": "on_finish",
    "pluggy": "rgate_fault_response",
}
"""Modules that call a plugin's code while a request is served, and the hook that brings this code. All other code of a plugin
is called by the next middleware of the chain."""

_log = logging.getLogger("rgate.plugin")


def report_failure(
    exchange: Exchange, error: BaseException, hook: str, owners: Mapping[str, str], describe: Callable[[str], str]
) -> None:
    """Log an exception that came out of the chain. `hook` is "" if it is not known; for the others see Registry."""
    if isinstance(error, GatewayError):
        where = exchange.whereabouts
        _log.warning("%s: %s%s", exchange.id, error, where, extra={"dedup_key": (where, error.reason)})
        return
    origin = attribute_failure(error.__traceback__, owners)
    subject = f"plugin {describe(origin.plugin)} failed in {hook or origin.hook}" if origin else "the gateway failed"
    _log.error("%s: %s: %r", exchange.id, subject, error, exc_info=error, extra={"dedup_key": (subject, *exception_key(error))})


class FailureOrigin(NamedTuple):
    """A plugin, by name, and the hook that brought its code."""

    plugin: str
    hook: str


def attribute_failure(traceback: TracebackType | None, owners: Mapping[str, str]) -> FailureOrigin | None:
    """The plugin that has the innermost of the frames in plugins and rgate; None if that frame is in rgate.

    `owners` has the plugin's name for every module of a plugin, which includes everything under that module.
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
