"""Endpoint, and Instance, which is what discovery sources list: frozen, shared by all threads, replaced when something changes.

A Route leads to a Backend (both in rgate.config), a Backend is a named pool of Endpoints, an Endpoint is one address.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from ..http1.grammar import bracket_host

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ..chain.exchange import Exchange
    from ..forwarding.upstream import Upstream

__all__ = ["DRAIN_LABEL", "WEIGHT_LABEL", "Address", "Endpoint", "EndpointState", "Instance"]

DRAIN_LABEL: Final = "rgate.drain"  # of an instance: with true, yes, on or 1 it gets no new requests
WEIGHT_LABEL: Final = "rgate.weight"  # of an instance: its share of the requests, relative to the others


@dataclass(frozen=True, slots=True)
class Address:
    """Where an endpoint listens. `base_path` is prepended to every forwarded path and has no trailing slash."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    base_path: str = ""

    @property
    def authority(self) -> str:
        """Host and port, an IPv6 address in brackets."""
        return f"{bracket_host(self.host)}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.base_path}"


class EndpointState:
    """The current state of one endpoint. Snapshots share this object while the endpoint's address stays the same.

    `active_exchanges` holds the exchanges in flight: adding and discarding are atomic under the interpreter's lock, so no other
    lock is needed and the count cannot drift. `upstream` belongs to the forwarder: the connections to this endpoint.
    `stopping` is a copy of the endpoint's own, for the forwarder.

    The other attributes belong to the plugin that tracks health. The callbacks are None, and cost nothing, while they are not
    needed.
    on_failure         called with the exchange and the exception that an attempt at this endpoint has raised
    on_response        called with the exchange and the status of every response whose head has arrived
    try_acquire_trial  called with the environ of a request that could go to this endpoint; True makes it the trial request,
                       which must go there
    weight_factor      the part of its weight that the endpoint gets: 1, or less while it starts slowly or is on trial

    After a change of `try_acquire_trial` or `weight_factor`, EndpointTable.weights_changed() must be called.
    """

    __slots__ = ("active_exchanges", "on_failure", "on_response", "stopping", "try_acquire_trial", "upstream", "weight_factor")

    def __init__(self) -> None:
        self.active_exchanges: set[Exchange] = set()
        self.upstream: Upstream | None = None
        self.stopping = False
        self.on_failure: Callable[[Exchange, BaseException], object] | None = None
        self.on_response: Callable[[Exchange, int], object] | None = None
        self.try_acquire_trial: Callable[[WSGIEnvironment], bool] | None = None
        self.weight_factor = 1.0

    @property
    def in_flight(self) -> int:
        """Requests forwarded to this endpoint and not yet finished, in this process."""
        return len(self.active_exchanges)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of a backend. `name` is for people (container name, or the URL); `id` identifies and sorts.

    `weight` is its share of the requests relative to the other endpoints, from its label `rgate.weight`; with 0 it gets only
    requests that stick to it. An endpoint that is `stopping` gets requests only while its backend has no other.
    """

    id: str
    name: str
    backend: str
    address: Address
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False, compare=False)
    state: EndpointState = field(default_factory=EndpointState, hash=False, compare=False, repr=False)
    weight: int = field(default=1, hash=False, compare=False)
    stopping: bool = field(default=False, hash=False)

    @property
    def key(self) -> tuple[str, Address]:
        """Identifies it in all snapshots, even if its name or labels change."""
        return self.id, self.address


@dataclass(frozen=True, slots=True)
class Instance:
    """One thing that a discovery source lists: a container, a process, a fixed URL.

    Exactly one of `address` and `reason` is set: an instance that cannot be used says why, in words for the operator
    ("no published tcp port; expose one or set rgate.port", ...). `backend` is the name of its backend if the source knows it;
    otherwise the labels decide. `stopping` is True for an instance with an address that has been told to stop but still accepts
    requests: a last resort. `notes` are messages about it that the operator should see once, whether it can be used or not
    ("unknown label rgate.prot; did you mean 'rgate.port'?").
    """

    id: str
    name: str
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    address: Address | None = None
    reason: str | None = None
    backend: str | None = None
    notes: tuple[str, ...] = ()
    stopping: bool = False
