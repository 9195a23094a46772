"""Fixed endpoints: the addresses under `endpoints:` of a backend, which need no discovery.

    backends:
      - name: legacy
        endpoints: ["http://127.0.0.1:9000", "https://[2001:db8::7]/v2", {url: "http://127.0.0.1:9001", weight: 3}]

An address is http or https, a host name or IP address (IPv6 in brackets), a port (default 80 or 443), and maybe a path,
which goes in front of every forwarded one. Whether somebody listens there is found out by the requests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from rgate import (
    WEIGHT_LABEL,
    Address,
    Backend,
    Config,
    ConfigProblem,
    ConfigSection,
    DiscoverySource,
    Instance,
    StrictInt,
    hookimpl,
)

__all__ = ["StaticEndpoints", "parse_address", "rgate_check_config", "rgate_discovery_sources"]

_DEFAULT_PORTS = {"http": 80, "https": 443}
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*")  # RFC 3986 §3.3, path-abempty
_DOT_SEGMENTS = {".", "..", "%2e", "%2e%2e", ".%2e", "%2e."}


class EndpointOptions(BaseModel):
    """One of `endpoints` that is more than a URL. `weight` is its share of the requests, relative to the others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    weight: Annotated[StrictInt, Field(ge=0, le=1_000)] = 1


class StaticEndpointsOptions(BaseModel):
    """`endpoints` is a key of a backend."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoints: tuple[str | EndpointOptions, ...] = ()


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("static_endpoints", StaticEndpointsOptions, per_backend="inline")


@hookimpl
def rgate_check_config(config: Config) -> Iterable[ConfigProblem]:
    """Backends that are always empty, addresses that are not valid or that a backend has twice, and TLS for none of them."""
    for index, backend in enumerate(config.backends):
        entries = _entries(config, backend)
        if not entries and not backend.match_labels:
            message = "needs match_labels, or endpoints, or both; with neither it is always empty"
            yield ConfigProblem(("backends", index), message)
        urls = [entry if isinstance(entry, str) else entry.url for entry in entries]
        has_tls = backend.tls != Backend(backend.name).tls
        if has_tls and urls and not backend.match_labels and not any(url.startswith("https://") for url in urls):
            message = "has no effect, because no endpoint of this backend begins with https://"
            yield ConfigProblem(("backends", index, "tls"), message)
        first: dict[Address, int] = {}
        for place, (entry, url) in enumerate(zip(entries, urls, strict=True)):
            path: tuple[str | int, ...] = ("backends", index, "endpoints", place)
            if not isinstance(entry, str):
                path = (*path, "url")
            try:
                address = parse_address(url)
            except ValueError as error:
                yield ConfigProblem(path, str(error))
                continue
            if first.setdefault(address, place) != place:
                yield ConfigProblem(path, f"{url} is endpoints[{first[address]}] already; leave one out")


@hookimpl
def rgate_discovery_sources(config: Config) -> DiscoverySource | None:
    """The addresses that the config names, or nothing when it names none."""
    instances = tuple(_instances(config))
    return StaticEndpoints(instances) if instances else None


class StaticEndpoints:
    """Lists what it was given. Nothing changes, so there is nothing to watch."""

    name = "static_endpoints"

    def __init__(self, instances: Iterable[Instance]) -> None:
        self._instances = tuple(instances)

    def list(self) -> Iterable[Instance]:
        return self._instances


def parse_address(url: str) -> Address:
    """The address that `url` stands for. Raises ValueError with what is wrong and the way out."""
    if not url.isprintable() or " " in url:  # urlsplit would drop some of them in silence
        raise ValueError(f"{url!r} contains spaces or control characters; write one like http://127.0.0.1:9000")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(f"{url!r} is no URL; write one like http://127.0.0.1:9000") from None
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{url!r} does not begin with http:// or https:// and a host; write one like http://127.0.0.1:9000")
    if "@" in parts.netloc:
        raise ValueError(f"{url!r} carries a user name; leave out what is before the @")
    if "?" in url or "#" in url:
        raise ValueError(f"{url!r} carries a query or fragment; end it with the path")
    if port == 0:
        raise ValueError(f"{url!r} has port 0; write one from 1 to 65535")
    bracketed = "[" in parts.netloc
    beside = parts.netloc.lower().removeprefix(f"[{host}]" if bracketed else host)
    if not _is_host(host, bracketed=bracketed) or beside[:1] not in ("", ":"):
        raise ValueError(f"{url!r} has no valid host; write an ASCII name, an IPv4 address or an IPv6 address in brackets")
    if not _PATH.fullmatch(parts.path) or not _DOT_SEGMENTS.isdisjoint(parts.path.lower().split("/")):
        raise ValueError(f"{url!r} has a path with characters or dot segments that cannot be sent; percent-encode the characters")
    scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
    return Address(scheme, host, port or _DEFAULT_PORTS[scheme], parts.path.rstrip("/"))


def _entries(config: Config, backend: Backend) -> tuple[str | EndpointOptions, ...]:
    options: StaticEndpointsOptions | None = config.options("static_endpoints", backend=backend)
    return options.endpoints if options is not None else ()


def _instances(config: Config) -> Iterator[Instance]:
    for backend in config.backends:
        for entry in _entries(config, backend):
            fixed = EndpointOptions(url=entry) if isinstance(entry, str) else entry
            address = parse_address(fixed.url)
            labels = {WEIGHT_LABEL: str(fixed.weight)} if fixed.weight != 1 else {}
            yield Instance(str(address), str(address), labels, address, backend=backend.name)


def _is_host(host: str, *, bracketed: bool) -> bool:
    labels = host.removesuffix(".").split(".")
    try:
        if bracketed:
            return "%" not in str(IPv6Address(host))  # a zone belongs to one machine and has no agreed form in a URL
        if labels[-1].isdigit():
            return bool(IPv4Address(host))
    except ValueError:
        return False
    return len(host) <= 253 and all(map(_LABEL.fullmatch, labels))
