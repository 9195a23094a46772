"""`/-/reload`: reloads the config in all worker processes.

POST  /-/reload   200 when the new config is active in all of them; 409 with every problem when it was refused
GET   /-/reload   warnings about the active config
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rgate import RequestError, RgateError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from rgate import Gateway

__all__ = ["Reload"]


class ConfigRefused(RequestError):
    """The new config cannot be used; the message has every problem. The previous config stays active."""

    status = 409
    reason = "config_refused"


class ReloadFailed(RequestError):
    """It is not known whether all processes have the new config, or this gateway cannot reload it."""

    status = 503
    reason = "reload_failed"


class Reload:
    """Reloads the config of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def get(self, environ: WSGIEnvironment) -> tuple[int, dict[str, Any]]:
        """The warnings about the active config."""
        warnings = self._gateway.readiness.warnings
        return 200, {"warnings": {by: warnings[by] for by in ("config", "restart") if by in warnings}}

    def post(self, environ: WSGIEnvironment) -> tuple[int, dict[str, Any]]:
        """Reload. Raises ConfigRefused, ReloadFailed."""
        try:
            problems = self._gateway.reload()
        except RgateError as error:
            raise _with_message(ReloadFailed, str(error)) from None
        if problems:
            raise _with_message(ConfigRefused, problems)
        _, shown = self.get(environ)
        return 200, {"reloaded": True, **shown}


def _with_message(kind: type[RequestError], message: str) -> RequestError:
    fault = kind(message)
    fault.message = message
    return fault
