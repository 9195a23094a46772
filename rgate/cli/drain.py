"""`rgate drain`: asks a running gateway to give an endpoint no new requests."""

from __future__ import annotations

from typing import Any

from ..errors import RgateError
from .http_client import GatewayUnreachable, ask

__all__ = ["NoSuchEndpoint", "drain", "drained"]

PATH = "/-/drain"
NOT_FOR_US = "the pages under /-/ are not answered there (plugins.admin.allow says to whom), and no admin socket has been found"


class NoSuchEndpoint(RgateError):
    """The gateway knows no endpoint by that name, or several; the message says which there are."""


def drain(url: str, endpoint: str, undo: bool) -> tuple[list[str], bool]:
    """A line for every endpoint that the gateway at `url` has drained, or takes back with `undo`, and whether all of its worker
    processes know. Raises GatewayUnreachable and NoSuchEndpoint."""
    answer = _ask(url, {"endpoint": endpoint, "undo": "" if undo else None}, "POST")
    what = "takes new requests again" if undo else "gets no new requests"
    return [f"{_named(found)} {what} ({_in_flight(found)})" for found in answer["endpoints"]], answer["workers_told"]


def drained(url: str) -> list[str]:
    """A line for every endpoint that is drained. Raises GatewayUnreachable."""
    return [f"{_named(found)} is drained ({_in_flight(found)})" for found in _ask(url, {}, "GET")["drained"]]


def _ask(url: str, query: dict[str, str | None], method: str) -> Any:
    try:
        answer, asked = ask(url, PATH, query, method=method, not_there=NOT_FOR_US)
    except GatewayUnreachable as error:
        if error.reason == "unknown_endpoint":
            raise NoSuchEndpoint(str(error).partition(": ")[2]) from None
        if error.reason == "no_route":
            raise GatewayUnreachable(f"{url}: {NOT_FOR_US}") from None
        raise
    if not isinstance(answer, dict) or not answer.keys() & {"endpoints", "drained"}:
        raise GatewayUnreachable(f"what answers at {asked} is no rgate")
    return answer


def _named(endpoint: dict[str, Any]) -> str:
    name, address = str(endpoint["name"]), endpoint["address"]
    return name if name == address else f"{name} ({address})"


def _in_flight(endpoint: dict[str, Any]) -> str:
    count = endpoint["in_flight"]
    return f"{count} request{'' if count == 1 else 's'} in flight"
