"""`rgate reload`: makes a running gateway read its config again."""

from __future__ import annotations

from typing import Final

from ..errors import RgateError
from .http_client import GatewayUnreachable, ask_admin

__all__ = ["ReloadRefused", "reload"]

PATH: Final = "/-/reload"
TIMEOUT_SECONDS: Final = 90.0


class ReloadRefused(RgateError):
    """The config has problems, and the previous one stays active. The message has one line per problem."""


def reload(url: str) -> list[str]:
    """Reload the gateway at `url`, and return lines about the new config. Raises GatewayUnreachable and ReloadRefused."""
    try:
        answer = ask_admin(url, PATH, {}, method="POST", advice="send it SIGHUP instead", timeout_seconds=TIMEOUT_SECONDS)
    except GatewayUnreachable as error:
        if error.reason == "config_refused":
            raise ReloadRefused(error.message) from None
        raise
    if not answer.get("reloaded"):
        raise GatewayUnreachable(f"what answers at {url} is not rgate")
    return ["reloaded", *answer.get("warnings", {}).values()]
