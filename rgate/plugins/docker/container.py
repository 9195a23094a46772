"""Container: the fields of a container that rgate needs, read from either of the two JSON forms of the engine. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

__all__ = ["Container", "Port"]

_HEALTH_IN_STATUS = re.compile(r"\((?:health: )?(healthy|unhealthy|starting)\)")


@dataclass(frozen=True, slots=True, order=True)
class Port:
    """A TCP port of a container. The engine's machine publishes it at `host_ip` and `host_port`; 0 if it is not published."""

    container_port: int
    host_ip: str = ""
    host_port: int = 0


@dataclass(frozen=True, slots=True)
class Container:
    """One container.

    id            64 hexadecimal digits
    state         the engine's word: created, running, paused, restarting, exited, removing, dead; or stopping, which is rgate's
    health        the result of its HEALTHCHECK: healthy, unhealthy, starting; empty without one
    network_mode  bridge, host, none, container:ID, or a network's name
    networks      its address in each network that it is attached to; the IPv4 address if there is one
    ports         its TCP ports, published or only exposed, in order
    created       when it was created (seconds since the epoch, the engine's clock); 0 if the engine does not say
    """

    id: str
    name: str
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    state: str = "running"
    health: str = ""
    network_mode: str = "bridge"
    networks: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    ports: tuple[Port, ...] = ()
    created: int = 0

    @property
    def running(self) -> bool:
        return self.state == "running"

    @property
    def network_container_id(self) -> str:
        """The id of the container whose network this one uses; empty if it has its own."""
        return self.network_mode.removeprefix("container:") if self.network_mode.startswith("container:") else ""

    @classmethod
    def from_list(cls, record: Mapping[str, Any]) -> Container:
        """From an element of GET /containers/json."""
        id = str(record.get("Id") or "")
        names = [str(name).removeprefix("/") for name in _list(record.get("Names"))]
        health = _dict(record.get("Health")).get("Status")  # since API 1.52; before that only in the text of Status
        if health is None and (found := _HEALTH_IN_STATUS.search(str(record.get("Status") or ""))):
            health = found[1]
        return cls(
            id=id,
            name=next(
                (name for name in names if "/" not in name), id[:12]
            ),  # a name with a slash is a link from another container
            labels=_labels(record.get("Labels")),
            state=str(record.get("State") or "unknown"),
            health="" if health in (None, "none") else str(health),
            network_mode=str(_dict(record.get("HostConfig")).get("NetworkMode") or ""),
            networks=_networks(record),
            ports=tuple(sorted(_listed_ports(_list(record.get("Ports"))))),
            created=_number(record.get("Created")),
        )

    @classmethod
    def from_inspect(cls, record: Mapping[str, Any]) -> Container:
        """From GET /containers/{id}/json."""
        id = str(record.get("Id") or "")
        config, state = _dict(record.get("Config")), _dict(record.get("State"))
        health = _dict(state.get("Health")).get("Status")
        published = _dict(_dict(record.get("NetworkSettings")).get("Ports"))
        return cls(
            id=id,
            name=str(record.get("Name") or "").removeprefix("/") or id[:12],
            labels=_labels(config.get("Labels")),
            state=str(state.get("Status") or "unknown"),
            health="" if health in (None, "none") else str(health),
            network_mode=str(_dict(record.get("HostConfig")).get("NetworkMode") or ""),
            networks=_networks(record),
            ports=tuple(sorted(_inspected_ports({**dict.fromkeys(_dict(config.get("ExposedPorts"))), **published}))),
        )


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _labels(value: Any) -> Mapping[str, str]:
    return MappingProxyType({str(name): "" if text is None else str(text) for name, text in _dict(value).items()})


def _networks(record: Mapping[str, Any]) -> Mapping[str, str]:
    attached = _dict(_dict(record.get("NetworkSettings")).get("Networks"))
    addresses = ((name, _dict(end).get("IPAddress") or _dict(end).get("GlobalIPv6Address")) for name, end in attached.items())
    return MappingProxyType({name: str(address) for name, address in addresses if address})


def _listed_ports(entries: Iterable[Any]) -> Iterator[Port]:
    for entry in map(_dict, entries):
        number = _number(entry.get("PrivatePort"))
        if number and entry.get("Type") == "tcp":
            yield Port(number, str(entry.get("IP") or ""), _number(entry.get("PublicPort")))


def _inspected_ports(ports: Mapping[str, Any]) -> Iterator[Port]:
    for key, bindings in ports.items():
        number, _, protocol = key.partition("/")
        if not _number(number) or protocol != "tcp":
            continue
        for binding in map(_dict, _list(bindings) or [{}]):
            yield Port(_number(number), str(binding.get("HostIp") or ""), _number(binding.get("HostPort")))


def _number(value: Any) -> int:
    try:
        return int(value or 0)
    except (TypeError, ValueError):
        return 0
