"""When the config is to be read again without anybody's asking, and what is told of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

from ..runtime.reload_coordinator import refusal
from . import systemd

if TYPE_CHECKING:
    from ..runtime.config_file import ConfigFile

__all__ = ["RETRY_SECONDS", "ReloadTrigger"]

RETRY_SECONDS: Final = 10.0
_log = logging.getLogger("rgate.process")


class ReloadTrigger:
    """Reload when is_due(), looked at by `next_look` (of `clock`, monotonic); say begins() before and concluded() after each.

    A config that has been refused is tried again every RETRY_SECONDS, as what was missing (a certificate, a plugin, a database)
    may have come where nobody looks. It is told once, and again when there is something else to tell.
    """

    def __init__(self, source: ConfigFile, clock: Callable[[], float] = monotonic) -> None:
        self._source = source
        self._clock = clock
        self._told = ""
        self._retry_at = 0.0

    @property
    def next_look(self) -> float:
        """When to look next."""
        return min(self._source.watch.next_poll_at, self._retry_at) if self._told else self._source.watch.next_poll_at

    def is_due(self) -> bool:
        """Whether the files have changed, or what they say has been refused some time ago."""
        now = self._clock()
        changed = now >= self._source.watch.next_poll_at and self._source.watch.changed()
        return changed or bool(self._told and now >= self._retry_at)

    def begins(self, asked: bool) -> None:
        """The config is read again now. `asked` says that somebody waits for it."""
        if asked:
            systemd.notify_reloading()

    def concluded(self, problems: str, asked: bool) -> None:
        """Log what is to be known of a reload: that it is in force and what has not changed with it, or why it was refused.
        `asked` is that of begins()."""
        path = self._source.path
        systemd.notify_reloaded(refusal(problems) if problems else "", asked)
        if problems:
            if asked or problems != self._told:
                _log.error("%s is refused, the config before stays in force:\n%s", path, problems)
            self._told, self._retry_at = problems, self._clock() + RETRY_SECONDS
            return
        self._told = ""
        for line in self._source.stays:
            _log.warning("%s", line)
        _log.info("%s reloaded", path)
