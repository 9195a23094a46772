"""Lifespan: starts and stops what a plugin's hook `rgate_lifespan` returns."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

from ..errors import PluginError, RgateError

__all__ = ["Lifespan"]

_log = logging.getLogger("rgate.plugin")


class Lifespan:
    """Enters and leaves a context manager; `plugin` is named in messages about failures."""

    def __init__(self, plugin: object, context: AbstractContextManager[object]) -> None:
        self._plugin = plugin
        self._context = context

    def is_same_as(self, other: Lifespan) -> bool:
        """Whether the plugin has returned the very same object for both, so that the lifespan continues."""
        return self._context is other._context

    def start(self) -> None:
        """Enter it. Raises PluginError."""
        try:
            self._context.__enter__()
        except RgateError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(f"plugin {self._plugin}: its lifespan cannot start: {type(error).__name__}: {error}") from error

    def stop(self) -> None:
        """Leave it. An exception is only logged, because the other lifespans must stop too."""
        try:
            self._context.__exit__(None, None, None)
        except (Exception, SystemExit) as error:
            _log.exception("plugin %s failed while its lifespan stopped: %r", self._plugin, error)
