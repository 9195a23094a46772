"""The gateway that worker processes are forked with."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..errors import RgateError
from ..log import configure
from ..runtime.reload_coordinator import NOTICE, freeze, refusal
from .reload_trigger import ReloadTrigger

if TYPE_CHECKING:
    from ..runtime.config_file import ConfigFile
    from ..runtime.gateway import Gateway

__all__ = ["PreforkGateway"]

_log = logging.getLogger("rgate.process")


class PreforkGateway:
    """The supervisor's gateway, which never runs. prepare() makes the next one, commit() puts it in its place."""

    def __init__(self, gateway: Gateway, source: ConfigFile) -> None:
        self.gateway = gateway
        self._source = source
        self._next: Gateway | None = None
        self._watching = ReloadTrigger(source)

    @property
    def next_look(self) -> float | None:
        """When is_due() is to be asked next, by time.monotonic(); None when it need not be."""
        return self._watching.next_look if self.gateway.config.server.reload_on_change else None

    def is_due(self) -> bool:
        """Whether the config is to be read again although nobody has asked for it."""
        return self.gateway.config.server.reload_on_change and self._watching.is_due()

    def prepare(self, asked: bool) -> str:
        """Make the gateway of the config as it is now: why that cannot be, or "". `asked` says that somebody waits for it."""
        self._watching.begins(asked)
        try:
            self._next = self._source.compose(self.gateway)
        except RgateError as error:
            return str(error)
        except Exception as error:
            _log.exception("the config cannot be taken up")
            return f"{type(error).__name__}: {error}"
        return ""

    def commit(self) -> None:
        """Fork workers with the prepared one from now on."""
        before, after = self.gateway, self._next
        assert after is not None
        self._next = None
        after.take_over(before)
        before.close(after)
        self.gateway = after
        configure(after.config.log.level, after.config.log.format)
        after.readiness.warnings.pop(NOTICE, None)
        self._source.note(after)
        freeze()

    def drop(self) -> None:
        """Forget the prepared one."""
        if self._next is not None:
            self._next.close(self.gateway)
            self._next = None

    def concluded(self, problems: str, asked: bool) -> None:
        """All workers have it, or it is refused."""
        self._watching.concluded(problems, asked)
        if problems:
            self.gateway.readiness.warnings[NOTICE] = refusal(problems)
