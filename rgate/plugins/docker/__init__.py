"""Docker discovery: containers become endpoints of the backends whose `match_labels` they carry.

The engine is found like the docker command finds it (DOCKER_HOST, DOCKER_TLS_VERIFY, DOCKER_CERT_PATH, context), unless
the option `host` says where. It is only read (GET), so a socket proxy that allows containers, events and version is enough. Without any `match_labels` in the config Docker is not touched at all.

Labels that a container may carry to say how it is reached:

    rgate.port      the container's own port; needed when it has several, or uses the host's network
    rgate.network   reach it at its own address in this network, instead of at a published port
    rgate.scheme    http (default) or https

Those of the core, for instances of every source, are rgate.drain and rgate.weight. Any other label that begins with `rgate.`
is told to the operator as unknown, unless a backend asks for it.

    source.py    lists and watches           engine.py     the talk; the only module that knows docker-py
    mapping.py   container → instance        container.py  what the engine says of a container
    events.py    what events mean            own.py        the container that rgate itself runs in
    arrivals.py  whose port is not open yet       departures.py  who has been told to stop and serves on
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from pydantic import BaseModel, ConfigDict

from rgate import Config, ConfigProblem, ConfigSection, DiscoverySource, hookimpl

__all__ = ["rgate_check_config", "rgate_discovery_sources"]

_SCHEMES = ("unix://", "tcp://", "http://", "https://", "ssh://", "npipe://")


class DockerOptions(BaseModel):
    """`host` is the address of the Docker engine, `network` the network in which containers are reached, if they are in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str | None = None
    network: str | None = None


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("docker", DockerOptions)


@hookimpl
def rgate_check_config(config: Config) -> Iterable[ConfigProblem]:
    """A `host` that is not the address of an engine."""
    host = _options(config).host
    if host is not None and not (host.startswith(_SCHEMES) and host.partition("://")[2]):
        message = f"{host!r} is not the address of a Docker engine; write unix:///var/run/docker.sock or tcp://HOST:PORT"
        yield ConfigProblem(("plugins", "docker", "host"), message)
    elif host is not None and host.startswith("ssh://") and find_spec("paramiko") is None:
        yield ConfigProblem(
            ("plugins", "docker", "host"), "ssh:// needs the package paramiko, which is not installed: pip install paramiko"
        )


@hookimpl
def rgate_discovery_sources(config: Config) -> DiscoverySource | None:
    """The containers of the configured engine, or nothing when no backend asks for containers."""
    names = {name for backend in config.backends for name, _ in backend.match_labels}
    if not names:
        return None
    from .engine import Engine  # docker-py takes a while to import, and a config without containers needs none of it
    from .self_container import own_container_id
    from .source import DockerSource
    from .stop_probe import HOLD_SECONDS

    options = _options(config)
    waits = any(backend.match_labels and backend.queue_seconds for backend in config.backends)
    hold_seconds = HOLD_SECONDS if waits else 0.0
    host, network = options.host, options.network or ""
    return DockerSource(lambda: Engine(host), names, network, host, own_container_id, hold_seconds=hold_seconds)


def _options(config: Config) -> DockerOptions:
    return config.options("docker") or DockerOptions()
