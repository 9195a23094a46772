"""The options of `selection`, which are keys of a backend: `policy`, `hash_key`, `sticky`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rgate import StrictInt, is_token

__all__ = ["SelectionOptions", "StickyOptions"]


def _hash_key(text: str) -> str:
    kind, colon, name = text.partition(":")
    if text != "client" and not (kind in ("header", "cookie") and colon and is_token(name)):
        raise ValueError(f"{text!r} is neither client, header:NAME nor cookie:NAME")
    return text


def _cookie_name(text: str) -> str:
    if not is_token(text):
        raise ValueError(f"{text!r} is not a cookie name")
    return text


class StickyOptions(BaseModel):
    """`sticky`: a cookie keeps a client at its endpoint.

    The values of the cookie are derived from `secret`, which must be the same in all gateways that share clients; without one
    each start makes its own. `max_age_seconds` is None for a cookie that ends with the browser's session.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cookie: Annotated[str, AfterValidator(_cookie_name)]
    secret: Annotated[str, Field(min_length=16, max_length=1_000)] | None = None
    max_age_seconds: Annotated[StrictInt, Field(ge=1, le=31_536_000)] | None = None


class SelectionOptions(BaseModel):
    """How an endpoint of a backend is chosen. `policy` is the name of a selection policy; `hash_key` is for the policy `hash`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str = "power_of_two_choices"
    hash_key: Annotated[str, AfterValidator(_hash_key)] = "client"
    sticky: StickyOptions | None = None
