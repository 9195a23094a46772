"""The shape of `backends`: where endpoints are, how one is chosen, and how they are spoken to."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from .fields import Labels, Model, Name, ServerName, Whole

__all__ = ["BackendConfig", "BackendTLSConfig", "EndpointConfig", "StickyConfig"]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _hash_by(text: str) -> str:
    kind, colon, name = text.partition(":")
    if text != "client" and not (kind in ("header", "cookie") and colon and _TOKEN.fullmatch(name)):
        raise ValueError(f"{text!r} is neither client, header:NAME nor cookie:NAME")
    return text


def _cookie_name(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"{text!r} is no name of a cookie")
    return text


class BackendTLSConfig(Model):
    """`tls` of a backend: how its https endpoints are spoken to. The values are files in PEM form, but for `server_name`.

    `ca` replaces the system's authorities; `certificate` and `key` are the gateway's own, for backends that ask for one;
    `server_name` is what the backend's certificate must be for, by default the endpoint's host.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    key_password: str | None = None
    server_name: ServerName | None = None
    verify: bool = True

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is named here."""
        return tuple(file for file in (self.ca, self.certificate, self.key) if file is not None)


class EndpointConfig(Model):
    """One of `endpoints`, when it is more than a URL. `weight` is its share of requests beside others; 0: none of its own."""

    url: str
    weight: Annotated[Whole, Field(ge=0, le=1_000)] = 1


class StickyConfig(Model):
    """`sticky` of a backend: a client stays with its endpoint by a cookie.

    `secret` is what the cookie's values are made with, the same for all gateways that are to understand each other's;
    without one each start makes its own. `max_age_seconds` is None for a cookie that ends with the browser's session.
    """

    cookie: Annotated[str, AfterValidator(_cookie_name)]
    secret: Annotated[str, Field(min_length=16, max_length=1_000)] | None = None
    max_age_seconds: Annotated[Whole, Field(ge=1, le=31_536_000)] | None = None


class BackendConfig(Model):
    """One entry of `backends`: containers picked by label, or fixed addresses, or both."""

    name: Name
    match_labels: Labels = ()
    endpoints: tuple[str | EndpointConfig, ...] = ()
    policy: str = "random_of_two"
    hash_by: Annotated[str, AfterValidator(_hash_by)] = "client"
    sticky: StickyConfig | None = None
    max_in_flight: Annotated[Whole, Field(ge=1, le=10_000)] | None = None
    tls: BackendTLSConfig = BackendTLSConfig()

    @property
    def fixed(self) -> tuple[EndpointConfig, ...]:
        """The entries of `endpoints`, a plain URL as one with the default weight."""
        return tuple(EndpointConfig(url=entry) if isinstance(entry, str) else entry for entry in self.endpoints)
