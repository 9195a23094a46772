"""The lifespan of a plugin, by what its hook `rgate_lifespan` returns."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

from ..errors import PluginError, RgateError

__all__ = ["Lifespan"]

_log = logging.getLogger("rgate.plugin")


class Lifespan:
    """Enters and leaves a context manager; `plugin` is who is named when that fails."""

    def __init__(self, plugin: object, context: AbstractContextManager[object]) -> None:
        self._plugin = plugin
        self._context = context

    def goes_on(self, before: Lifespan) -> bool:
        """Whether this is one that has begun already: the plugin has returned the very same object."""
        return self._context is before._context

    def begin(self) -> None:
        """Enter it. Raises PluginError."""
        try:
            self._context.__enter__()
        except RgateError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(f"plugin {self._plugin}: its lifespan cannot begin: {type(error).__name__}: {error}") from error

    def end(self) -> None:
        """Leave it. What it raises is logged, since the others have to end all the same."""
        try:
            self._context.__exit__(None, None, None)
        except (Exception, SystemExit) as error:
            _log.exception("plugin %s failed at the end of its lifespan: %r", self._plugin, error)
