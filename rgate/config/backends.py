"""The shape of `backends`: where endpoints are, how one is chosen and spoken to, and what becomes of bad ones."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ..http1.grammar import is_token
from .fields import Flag, Labels, Model, Name, RequestHeaders, Seconds, ServerName, StrictFloat, StrictInt

__all__ = ["BackendConfig", "BackendTLSConfig", "EndpointConfig", "HealthConfig", "StickyConfig"]

_STATUSES = re.compile(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?")
_CHECK_PATH = re.compile(r"/[!-~]*")


def _hash_by(text: str) -> str:
    kind, colon, name = text.partition(":")
    if text != "client" and not (kind in ("header", "cookie") and colon and is_token(name)):
        raise ValueError(f"{text!r} is neither client, header:NAME nor cookie:NAME")
    return text


def _cookie_name(text: str) -> str:
    if not is_token(text):
        raise ValueError(f"{text!r} is no name of a cookie")
    return text


def _check_path(text: str) -> str:
    if not _CHECK_PATH.fullmatch(text) or "#" in text:
        raise ValueError(f"{text!r} is no path; write one like /health, maybe with a query")
    return text


def _numbers_as_text(value: object) -> object:
    values = value if isinstance(value, list | tuple) else [value]
    return [str(each) if isinstance(each, int) and not isinstance(each, bool) else each for each in values]


def _statuses(text: str) -> str:
    match = _STATUSES.fullmatch(text)
    if match is None or int(match[1]) > int(match[2] or match[1]):
        raise ValueError(f"{text!r} is no status; write one like 200, or a range like 200-399")
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
    verify: Flag = True

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is named here."""
        return tuple(file for file in (self.ca, self.certificate, self.key) if file is not None)


class EndpointConfig(Model):
    """One of `endpoints`, when it is more than a URL. `weight` is its share of requests beside others; 0: none of its own."""

    url: str
    weight: Annotated[StrictInt, Field(ge=0, le=1_000)] = 1


class HealthConfig(Model):
    """`health` of a backend: when an endpoint gets no more requests, and when it gets some again.

    An endpoint is ejected after `consecutive_faults`, or when of at least `min_requests` within `window_seconds`
    `fault_percent` have failed; 0 turns either off. An ejection lasts `eject_seconds`, each one in a row twice as long, at
    most `max_eject_seconds`, and takes at most `max_ejected_percent` of the endpoints (but one may always be, unless it is 0).

    With a `path` every endpoint is asked for it every `interval_seconds`.
    """

    consecutive_faults: Annotated[StrictInt, Field(ge=0, le=1_000)] = 5
    fault_percent: Annotated[StrictFloat, Field(ge=0, le=100)] = 50.0
    min_requests: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = 20
    window_seconds: Seconds = 10.0
    count_5xx: Flag = False
    eject_seconds: Seconds = 1.0
    max_eject_seconds: Seconds = 3.0
    max_ejected_percent: Annotated[StrictFloat, Field(ge=0, le=100)] = 100.0
    all_bad: Literal["try_anyway", "fail"] = "try_anyway"
    slow_start_seconds: Annotated[StrictFloat, Field(ge=0, le=3_600)] = 0.0
    path: Annotated[str, AfterValidator(_check_path)] | None = None
    interval_seconds: Annotated[StrictFloat, Field(ge=0.1, le=3_600)] = 5.0
    timeout_seconds: Annotated[StrictFloat, Field(ge=0.01, le=60)] = 2.0
    expected_status: Annotated[
        tuple[Annotated[str, AfterValidator(_statuses)], ...], BeforeValidator(_numbers_as_text), Field(min_length=1)
    ] = ("200-399",)
    headers: RequestHeaders = Field(default={})
    healthy_after: Annotated[StrictInt, Field(ge=1, le=100)] = 1
    unhealthy_after: Annotated[StrictInt, Field(ge=1, le=100)] = 3

    def expects(self, status: int) -> bool:
        """Whether a check that is answered with this status has succeeded."""
        return any(int(one[:3]) <= status <= int(one[-3:]) for one in self.expected_status)


class StickyConfig(Model):
    """`sticky` of a backend: a client stays with its endpoint by a cookie.

    `secret` is what the cookie's values are made with, the same for all gateways that are to understand each other's;
    without one each start makes its own. `max_age_seconds` is None for a cookie that ends with the browser's session.
    """

    cookie: Annotated[str, AfterValidator(_cookie_name)]
    secret: Annotated[str, Field(min_length=16, max_length=1_000)] | None = None
    max_age_seconds: Annotated[StrictInt, Field(ge=1, le=31_536_000)] | None = None


class BackendConfig(Model):
    """One entry of `backends`: containers picked by label, or fixed addresses, or both."""

    name: Name
    match_labels: Labels = ()
    endpoints: tuple[str | EndpointConfig, ...] = ()
    policy: str = "random_of_two"
    hash_by: Annotated[str, AfterValidator(_hash_by)] = "client"
    sticky: StickyConfig | None = None
    health: HealthConfig = HealthConfig()
    max_in_flight: Annotated[StrictInt, Field(ge=1, le=10_000)] | None = None
    wait_seconds: Annotated[StrictFloat, Field(ge=0, le=300)] = 10.0
    tls: BackendTLSConfig = BackendTLSConfig()

    @property
    def fixed(self) -> tuple[EndpointConfig, ...]:
        """The entries of `endpoints`, a plain URL as one with the default weight."""
        return tuple(EndpointConfig(url=entry) if isinstance(entry, str) else entry for entry in self.endpoints)
