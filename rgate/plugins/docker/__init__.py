"""Docker discovery: containers become endpoints of the backends whose `match_labels` they carry.

The engine is found like the docker command finds it (DOCKER_HOST, DOCKER_TLS_VERIFY, DOCKER_CERT_PATH, context), unless
the config's `docker.host` says where. It is only read (GET), so a socket proxy that allows containers, events and version
is enough. Without any `match_labels` in the config Docker is not touched at all.

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

from rgate import Config, ConfigProblem, DiscoverySource, hookimpl

__all__ = ["rgate_check_config", "rgate_discovery_sources"]

_SCHEMES = ("unix://", "tcp://", "http://", "https://", "ssh://", "npipe://")


@hookimpl
def rgate_check_config(config: Config) -> Iterable[ConfigProblem]:
    """A `docker.host` that cannot be meant."""
    host = config.docker.host
    if host is not None and not (host.startswith(_SCHEMES) and host.partition("://")[2]):
        message = f"{host!r} is no address of a Docker engine; write unix:///var/run/docker.sock or tcp://HOST:PORT"
        yield ConfigProblem(("docker", "host"), message)
    elif host is not None and host.startswith("ssh://") and find_spec("paramiko") is None:
        yield ConfigProblem(("docker", "host"), "ssh:// needs the package paramiko, which is not installed: pip install paramiko")


@hookimpl
def rgate_discovery_sources(config: Config) -> DiscoverySource | None:
    """The containers of the configured engine, or nothing when no backend asks for containers."""
    names = {label.partition("=")[0] for backend in config.backends for label in backend.match_labels}
    if not names:
        return None
    from .engine import Engine  # docker-py takes a while to import, and a config without containers needs none of it
    from .self_container import own_container_id
    from .source import DockerSource
    from .stop_probe import HOLD_SECONDS

    host = config.docker.host
    waits = any(backend.match_labels and backend.wait_seconds for backend in config.backends)
    hold_seconds = HOLD_SECONDS if waits else 0.0
    network = config.docker.network or ""
    return DockerSource(lambda: Engine(host), names, network, host, own_container_id, hold_seconds=hold_seconds)
