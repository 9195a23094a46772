"""Maps a container to an instance: its address, or the reason why it has none, and notes about its labels. No I/O.

The address is the first of these that applies:

1. the container's own address in the network that the label `rgate.network`, else the option `plugins.docker.network`, names;
2. when rgate runs in a container itself: the address in the first network (by name) that both are in;
3. the port that the engine's machine publishes.

The port is that of the label `rgate.port`, else the only TCP port there is (in case 3 the only published one).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from rgate import DRAIN_LABEL, WEIGHT_LABEL, Address, Instance

from .container import Container, Port

__all__ = ["KNOWN_LABELS", "NETWORK_LABEL", "PORT_LABEL", "SCHEME_LABEL", "NetworkContext", "to_instance"]

PORT_LABEL = "rgate.port"
NETWORK_LABEL = "rgate.network"
SCHEME_LABEL = "rgate.scheme"

KNOWN_LABELS = (PORT_LABEL, NETWORK_LABEL, SCHEME_LABEL, DRAIN_LABEL, WEIGHT_LABEL)
ONE_OFF_LABEL = "com.docker.compose.oneoff"  # set by compose: "True" for `docker compose run`, "False" for a service's own

_OURS = re.compile(r"rgate[^0-9a-z]", re.IGNORECASE)
_NOTES_SHOWN = 5
_CANDIDATES_SHOWN = 8
# The same reason for all steps from stopping to removal, so that the log has one line and not one per step.
_STOPPED = "stopped or stopping"
_STATE_REASONS = {
    "created": "not started",
    "paused": "paused",
    "restarting": "restarting",
    "stopping": _STOPPED,
    "stopped": _STOPPED,
    "exited": _STOPPED,
    "removing": _STOPPED,
    "dead": _STOPPED,
}


@dataclass(frozen=True, slots=True)
class NetworkContext:
    """The networks that rgate itself can reach.

    engine_host  host name of the engine's machine, at which published ports are reached; empty if it is this machine
    networks     the networks of rgate's own container; None if it runs in none, or on its host's network
    network      the option `plugins.docker.network`
    """

    engine_host: str = ""
    networks: frozenset[str] | None = None
    network: str = ""


class _Unusable(Exception):
    """The reason why a container has no address."""


def to_instance(
    container: Container, context: NetworkContext, network_owner: Container | None = None, matched: Collection[str] = ()
) -> Instance:
    """The instance for a container. `network_owner` is the container whose network it uses, if there is one. `matched` are
    the label names that backends match on; they are never reported as unknown."""
    address, reason = None, None
    try:
        _check_one_off(container.labels)
        _check_state(container)
        address = _address(container, context, network_owner)
    except _Unusable as why:
        reason = str(why)
    return Instance(container.id, container.name, container.labels, address, reason, notes=_notes(container.labels, matched))


def _notes(labels: Mapping[str, str], matched: Collection[str]) -> tuple[str, ...]:
    unknown = [name for name in labels if _OURS.match(name) and name not in KNOWN_LABELS and name not in matched]
    return tuple(f"unknown label {_shown(name)}{_did_you_mean(name)}" for name in sorted(unknown)[:_NOTES_SHOWN])


def _shown(name: str) -> str:
    return name[:100] if name.isprintable() else ascii(name[:100])[1:-1]


def _did_you_mean(name: str) -> str:
    ours = {label.removeprefix("rgate."): label for label in KNOWN_LABELS}  # without the prefix that all have in common
    close = difflib.get_close_matches(name[len("rgate.") :].lower(), ours, 1)
    return f"; did you mean {ours[close[0]]}?" if close else f"; rgate knows {', '.join(sorted(KNOWN_LABELS))}"


def _check_one_off(labels: Mapping[str, str]) -> None:
    if labels.get(ONE_OFF_LABEL, "").lower() == "true":
        raise _Unusable(f"a one-off container of `docker compose run` (label {ONE_OFF_LABEL})")


def _check_state(container: Container) -> None:
    if not container.running:
        raise _Unusable(_STATE_REASONS.get(container.state, f"not running ({container.state})"))
    if container.health == "unhealthy":
        raise _Unusable("unhealthy, its HEALTHCHECK says")
    if container.health == "starting":
        raise _Unusable("starting, its HEALTHCHECK says")


def _address(container: Container, context: NetworkContext, network_owner: Container | None) -> Address:
    scheme, wanted = _scheme(container.labels), _wanted_port(container.labels)
    if container.network_container_id and network_owner is None:
        raise _Unusable(f"it uses the network of container {container.network_container_id[:12]}, which does not exist")
    owner = network_owner or container
    if container.network_container_id and not owner.running:
        raise _Unusable(f"it uses the network of container {owner.name}, which is not running")
    ports = sorted({*container.ports, *owner.ports})
    if owner.network_mode == "host":
        return Address(scheme, *_on_host_network(context, wanted))
    network = container.labels.get(NETWORK_LABEL, "").strip() or context.network
    if network and network not in owner.networks:
        raise _Unusable(f"not in network {network!r} (it is in: {_listed(owner.networks)}); connect it, or set {NETWORK_LABEL}")
    if not network and context.networks is not None:
        network = next((name for name in sorted(owner.networks) if name in context.networks), "")
        if not network:
            both = f"it is in: {_listed(owner.networks)}; rgate is in: {_listed(sorted(context.networks))}"
            raise _Unusable(f"in no network with rgate's own container ({both}); connect one of them")
    if network:
        return Address(scheme, owner.networks[network], wanted or _only(ports, f"no tcp port; expose one, or set {PORT_LABEL}"))
    return Address(scheme, *_published(ports, context, wanted))


def _on_host_network(context: NetworkContext, wanted: int) -> tuple[str, int]:
    if not wanted:
        raise _Unusable(f"on the host's network, where ports are not listed; set {PORT_LABEL}")
    if context.networks is not None:
        raise _Unusable("on the host's network, where rgate's own container is not; run both on one network")
    return context.engine_host or "127.0.0.1", wanted


def _published(ports: Iterable[Port], context: NetworkContext, wanted: int) -> tuple[str, int]:
    ports = tuple(ports)
    published = [port for port in ports if port.host_port and wanted in (0, port.container_port)]
    if not published:
        what = f"port {wanted} is not published" if wanted else f"no published tcp port ({_exposed(ports)})"
        raise _Unusable(f"{what}; publish it, or set {NETWORK_LABEL} to a network that rgate can reach")
    number = _only(published, "")
    # IPv4 first, then in a fixed order, so that every listing chooses the same one.
    bindings = sorted((":" in port.host_ip, port.host_ip, port.host_port) for port in published if port.container_port == number)
    for _, bound, host_port in bindings:
        if host := _reachable(bound, context.engine_host):
            return host, host_port
    raise _Unusable(f"port {number} is published on {bindings[0][1]} of {context.engine_host} only; publish it on 0.0.0.0")


def _reachable(bound: str, engine_host: str) -> str:
    """The host to connect to for a port that the engine's machine publishes on address `bound`; empty if it cannot be reached."""
    try:
        ip = ip_address(bound or "0.0.0.0")
    except ValueError:
        return bound
    if ip.is_unspecified:
        return engine_host or ("127.0.0.1" if ip.version == 4 else "::1")
    return "" if ip.is_loopback and engine_host else str(ip)


def _only(ports: Iterable[Port], none: str) -> int:
    numbers = sorted({port.container_port for port in ports})
    if not numbers:
        raise _Unusable(none)
    if len(numbers) > 1:
        raise _Unusable(f"several tcp ports: {_listed(map(str, numbers))}; set {PORT_LABEL} to the one")
    return numbers[0]


def _wanted_port(labels: Mapping[str, str]) -> int:
    text = labels.get(PORT_LABEL, "").strip()
    if not text:  # `rgate.port=${PORT}` leaves an empty label when PORT is not set
        return 0
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65_535:
        raise _Unusable(f"label {PORT_LABEL}={text!r} is not a port from 1 to 65535")
    return int(text)


def _scheme(labels: Mapping[str, str]) -> Literal["http", "https"]:
    match labels.get(SCHEME_LABEL, "").strip().lower():
        case "" | "http":
            return "http"
        case "https":
            return "https"
        case other:
            raise _Unusable(f"label {SCHEME_LABEL}={other!r} is neither http nor https")


def _exposed(ports: Iterable[Port]) -> str:
    numbers = sorted({port.container_port for port in ports})
    return f"exposed: {_listed(map(str, numbers))}" if numbers else "none exposed either"


def _listed(words: Iterable[str]) -> str:
    words = list(words)
    shown, rest = ", ".join(words[:_CANDIDATES_SHOWN]), len(words) - _CANDIDATES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown or "none"
