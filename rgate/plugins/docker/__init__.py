"""docker: containers become endpoints of the backends whose `match_labels` they have.

    plugins:
      docker: {host: "unix:///var/run/docker.sock", network: shop}    # default: as for the docker command; no network
    backends:
      - name: orders
        match_labels: [app_name=orders]

The engine is found as the docker command finds it (DOCKER_HOST, DOCKER_TLS_VERIFY, DOCKER_CERT_PATH, context), unless the
option `host` names one. rgate only reads from it (GET), so a socket proxy that allows containers, events and version is
enough. If no backend has `match_labels`, Docker is not used at all.

Labels of a container that say how it is reached:

    rgate.port      the container's own port; needed if it has several, or uses the host's network
    rgate.network   use the container's own address in this network instead of a published port
    rgate.scheme    http (default) or https

The core reads rgate.drain and rgate.weight from instances of every source. Any other label that begins with `rgate.` is reported
to the operator as unknown, unless a backend matches on it.

    source.py   lists containers and handles events        engine.py          HTTP client of the engine (docker-py)
    events.py   one event, signals that stop a container   container.py       one container, as read from the engine
    mapping.py  container → instance                       self_container.py  the container that rgate itself runs in
    probes.py   whether a container that starts or stops accepts connections
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
    from .engine import Engine  # imported late: docker-py is slow to import, and a config without containers does not need it
    from .probes import HOLD_SECONDS
    from .self_container import own_container_id
    from .source import DockerSource

    options = _options(config)
    waits = any(backend.match_labels and backend.queue_seconds for backend in config.backends)
    hold_seconds = HOLD_SECONDS if waits else 0.0
    host, network = options.host, options.network or ""
    return DockerSource(lambda: Engine(host), names, network, host, own_container_id, hold_seconds=hold_seconds)


def _options(config: Config) -> DockerOptions:
    return config.options("docker") or DockerOptions()
