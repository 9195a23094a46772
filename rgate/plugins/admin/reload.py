"""`/-/reload`: the config read again, in all worker processes, now.

POST  /-/reload   200 when it is in force in all of them, 409 with every problem when it is refused
GET   /-/reload   what an operator should know about the config that is in force
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rgate import RequestError, RgateError

from .answer import Answer

if TYPE_CHECKING:
    from rgate import Gateway

__all__ = ["Reload"]


class ConfigRefused(RequestError):
    """The config cannot be taken up; the message has every problem, and the config before is in force."""

    status = 409
    reason = "config_refused"


class ReloadFailed(RequestError):
    """It is not known whether all processes have the config, or none of them can read it again."""

    status = 503
    reason = "reload_failed"


class Reload:
    """Reads the config of one gateway again."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def show(self) -> Answer:
        """What is to be known of the config in force."""
        warnings = self._gateway.readiness.warnings
        return 200, {"warnings": {by: warnings[by] for by in ("config", "restart") if by in warnings}}

    def act(self, query: Mapping[str, str]) -> Answer:
        """Read it again. Raises ConfigRefused, ReloadFailed."""
        try:
            problems = self._gateway.reload()
        except RgateError as error:
            raise _said(ReloadFailed, str(error)) from None
        if problems:
            raise _said(ConfigRefused, problems)
        _, shown = self.show()
        return 200, {"reloaded": True, **shown}


def _said(kind: type[RequestError], message: str) -> RequestError:
    fault = kind(message)
    fault.message = message
    return fault
