"""`rgate drain`: makes a running gateway send no new requests to an endpoint."""

from __future__ import annotations

from typing import Any, Final

from ..errors import RgateError
from .http_client import GatewayUnreachable, ask_admin

__all__ = ["NoSuchEndpoint", "drain", "list_drained"]

PATH: Final = "/-/drain"


class NoSuchEndpoint(RgateError):
    """The gateway has no endpoint of that name, or several; the message lists them."""


def drain(url: str, endpoint: str, undo: bool) -> tuple[list[str], bool]:
    """Drain an endpoint of the gateway at `url`, or undo that. Returns a line for each endpoint that this applies to, and
    whether all worker processes have confirmed it. Raises GatewayUnreachable and NoSuchEndpoint."""
    answer = _ask(url, {"endpoint": endpoint, "undo": "" if undo else None}, "POST")
    what = "gets new requests again" if undo else "gets no new requests"
    return [f"{_name(each)} {what} ({_in_flight(each)})" for each in answer["endpoints"]], answer["workers_told"]


def list_drained(url: str) -> list[str]:
    """A line for every drained endpoint. Raises GatewayUnreachable."""
    return [f"{_name(each)} is drained ({_in_flight(each)})" for each in _ask(url, {}, "GET")["drained"]]


def _ask(url: str, query: dict[str, str | None], method: str) -> dict[str, Any]:
    try:
        answer = ask_admin(url, PATH, query, method=method)
    except GatewayUnreachable as error:
        if error.reason == "unknown_endpoint":
            raise NoSuchEndpoint(error.message) from None
        raise
    if not answer.keys() & {"endpoints", "drained"}:
        raise GatewayUnreachable(f"what answers at {url} is not rgate")
    return answer


def _name(endpoint: dict[str, Any]) -> str:
    name, address = str(endpoint["name"]), endpoint["address"]
    return name if name == address else f"{name} ({address})"


def _in_flight(endpoint: dict[str, Any]) -> str:
    count = endpoint["in_flight"]
    return f"{count} request{'' if count == 1 else 's'} in flight"
