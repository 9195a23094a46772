"""The nouns of the gateway: frozen, shared by all threads, replaced as a whole when something changes.

A Route leads to a Backend; a Backend is a named pool of Endpoints; an Endpoint is one address. Endpoints are found
among Instances, which is what a discovery source lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ..chain.exchange import Exchange
    from ..forwarding.upstream import Upstream

__all__ = ["WEIGHT_LABEL", "Address", "Backend", "Endpoint", "EndpointState", "Instance", "Route", "Timeouts", "UpstreamTLS"]

DRAIN_LABEL: Final = "rgate.drain"  # of an instance; with true, yes, on or 1 it gets no new requests
WEIGHT_LABEL: Final = "rgate.weight"  # of an instance; its share of requests relative to others

_EMPTY: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the gateway waits for a backend, in seconds.

    `connect_seconds` bounds one connection attempt. `response_seconds` bounds every single wait for bytes of the
    response: the head after the request has been sent, then each following block. It does not bound the whole
    response, so a download or an event stream may last as long as bytes keep coming.
    """

    connect_seconds: float = 4.0
    response_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class UpstreamTLS:
    """How the https endpoints of a backend are spoken to; the values are files in PEM form, but for `server_name`.

    `ca` stands in place of the system's authorities. `server_name` is what the certificate must be for, by default the
    endpoint's host. `certificate`, with its `key` (by default in the same file), is what the gateway shows. `contents` stands
    for what is in the files, so that with others in the same place it is not equal.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    key_password: str | None = field(default=None, repr=False)
    server_name: str | None = None
    verify: bool = True
    contents: str = ""


@dataclass(frozen=True, slots=True)
class Backend:
    """A named pool of endpoints, as the config describes it.

    An instance belongs to the backend when it carries every one of `match_labels` (name, value), or when its source
    says so by name (fixed endpoints). `max_in_flight` is how many requests may wait for it at one time, in each process.
    `wait_seconds` is how long a request waits for an endpoint when the last one has gone or refuses; 0: not at all.
    """

    name: str
    match_labels: tuple[tuple[str, str], ...] = ()
    policy: str = "random_of_two"
    tls: UpstreamTLS = UpstreamTLS()
    max_in_flight: int = 256
    wait_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Route:
    """Which requests go to which backend, and with what options.

    `path_prefix` has no trailing slash ("" matches every path). `hosts` are lower-case names without port, `methods`
    upper-case tokens, `headers` pairs of lower-case name and exact value; each empty when it does not restrict.
    `max_body_bytes` is None when the server's own limit is enough.
    `options` holds the route's own validated plugin sections by plugin name; None stands for "off for this route".
    """

    name: str
    path_prefix: str
    backend: Backend
    hosts: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    strip_prefix: bool = False
    max_body_bytes: int | None = None
    timeouts: Timeouts = Timeouts()
    options: Mapping[str, object] = field(default_factory=lambda: _EMPTY, hash=False)


@dataclass(frozen=True, slots=True)
class Address:
    """Where an endpoint listens. `base_path` is put before every forwarded path and has no trailing slash."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    base_path: str = ""

    @property
    def authority(self) -> str:
        """Host and port, the host of IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.base_path}"


class EndpointState:
    """The changing state of one endpoint. Snapshots share the same object while the endpoint's id and address stay.

    `active_exchanges` holds the exchanges in flight. Adding and discarding are atomic under the interpreter's lock, so no other
    lock is needed and the count does not drift. `upstream` is the forwarder's: the connections to this endpoint. `stopping` is
    a copy of the endpoint's, for the forwarder.

    The other attributes belong to the plugin that checks health. Each callback is None while it is not used.
    on_failure         called with the exchange and the exception that an attempt at this endpoint has raised, of any type
    on_response        called with the exchange and the status of every response, when its head has arrived
    try_acquire_trial  called with the environ of a request that could go to this endpoint; True if it must, as its trial
    weight_factor      the share of its weight that the endpoint gets: 1, or less during slow start or on trial

    After a change of `try_acquire_trial` or `weight_factor`, call EndpointTable.weights_changed().
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
    """One address of a backend. `name` is for operators (the container's name, or the URL); `id` identifies it and is sorted by.

    `weight` is its share of requests relative to others, from its label `rgate.weight`; with 0 it gets only requests that
    stick to it. One that is `stopping` gets requests only while its backend has no other endpoint.
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
        """Identifies it over all snapshots, even if its name or labels change."""
        return self.id, self.address


@dataclass(frozen=True, slots=True)
class Instance:
    """One thing a discovery source found: a container, a process, a fixed URL.

    Exactly one of `address` and `reason` is set. `reason` says why an instance cannot be used, in words for the operator ("no
    published tcp port; expose one or set rgate.port"). `backend` names its backend if the source knows it; otherwise the
    labels decide. An instance with an address that has been told to stop but still accepts requests is `stopping`: a last
    resort. `notes` are for the operator, reported once, whether it can be used or not ("unknown label rgate.prot; did you mean
    'rgate.port'?").
    """

    id: str
    name: str
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    address: Address | None = None
    reason: str | None = None
    backend: str | None = None
    notes: tuple[str, ...] = ()
    stopping: bool = False
