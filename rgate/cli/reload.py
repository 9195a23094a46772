"""`rgate reload`: has a running gateway read its config again."""

from __future__ import annotations

from typing import Final

from ..errors import RgateError
from .http_client import GatewayUnreachable, ask

__all__ = ["ConnectionRefused", "reload"]

PATH: Final = "/-/reload"
NOT_FOR_US: Final = (
    "the pages under /-/ are not answered there (plugins.admin.allow says to whom), and no admin socket has been found; "
    "send it SIGHUP instead"
)
WAIT_SECONDS: Final = 90


class ConnectionRefused(RgateError):
    """The config is not taken up; the message has a line for every problem."""


def reload(url: str) -> list[str]:
    """Lines that tell of the config that the gateway at `url` has taken up. Raises GatewayUnreachable and Refused."""
    try:
        answer, asked = ask(url, PATH, {}, method="POST", not_there=NOT_FOR_US, timeout_seconds=WAIT_SECONDS)
    except GatewayUnreachable as error:
        if error.reason == "config_refused":
            raise ConnectionRefused(error.said) from None
        if error.reason == "no_route":
            raise GatewayUnreachable(f"{url}: {NOT_FOR_US}") from None
        raise
    if not isinstance(answer, dict) or not answer.get("reloaded"):
        raise GatewayUnreachable(f"what answers at {asked} is no rgate")
    return ["reloaded", *answer.get("warnings", {}).values()]
