"""A real Docker engine for tests: the client, an image, and the labelled backend containers of one test."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import socket
from collections.abc import Mapping
from typing import Any

import docker
from docker.client import DockerClient
from docker.errors import DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.models.networks import Network

from ..support.waiting import PROCESS_DEADLINE_SECONDS, eventually

PORT = 8000  # the one that the orders image exposes
IMAGES_WITH_PYTHON = ("rgate-base:1", "python:3.13-slim")  # what `.ci/engine base-image` makes; what the Dockerfiles name
MS = 1_000_000  # Docker counts in nanoseconds
FOUND_SECONDS = 3.0  # so long it may take at most until an engine that answers again is found
MACHINE_SECONDS = 2.0  # and so much longer on a machine that is slow and busy

# Healthy until a test does `container.exec_run(["touch", "/tmp/unhealthy"])`.
HEALTHCHECK = {"test": ["CMD", "test", "!", "-e", "/tmp/unhealthy"], "interval": 200 * MS, "timeout": 5_000 * MS, "retries": 1}


class EngineUnavailable(Exception):
    """There is no engine, or none of the images that the tests need; the text says which and the way out."""


def connect(address: str | None = None) -> DockerClient:
    """A client of the engine at `address` (default: DOCKER_HOST, or the local one). Raises EngineUnavailable."""
    address = address or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    try:
        if address.startswith("unix://"):  # docker-py leaves its socket open when connecting fails: a ResourceWarning
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(address.removeprefix("unix://"))
        client = docker.from_env(environment={**os.environ, "DOCKER_HOST": address}, timeout=60)
        client.ping()
    except (OSError, DockerException) as error:
        raise EngineUnavailable(f"no Docker engine answers at {address}: {error}") from error
    return client


def find_base_image(client: DockerClient) -> str:
    """The name of an image with python3: BASE_IMAGE from the environment, or the first there is. Raises EngineUnavailable."""
    names = (os.environ["BASE_IMAGE"],) if os.environ.get("BASE_IMAGE") else IMAGES_WITH_PYTHON
    for name in names:
        with contextlib.suppress(ImageNotFound):
            client.images.get(name)
            return name
    try:
        client.images.pull(names[-1])
    except DockerException as error:
        raise EngineUnavailable(f"no image with Python; as root `.ci/engine base-image` makes one ({error})") from error
    return names[-1]


class Backends:
    """Backend containers and networks of one test, named and labelled apart from those of every other.

    Every container has the label `rgate.test=<namespace>`, so that `match_labels: ["rgate.test=<namespace>"]` picks
    only this test's. `remove_all()` takes everything away again, whatever state it is in.
    """

    def __init__(self, client: DockerClient, image: str, namespace: str) -> None:
        self.client = client
        self.image = image
        self.namespace = namespace
        self._numbers = itertools.count(1)
        self._containers: list[Container] = []
        self._networks: list[Network] = []

    def run(
        self,
        name: str = "backend",
        *,
        labels: Mapping[str, str] | None = None,
        publish: bool = True,
        wait: bool = True,
        **options: Any,
    ) -> Container:
        """A started container of the orders backend, which shows `name` as its instance.

        `publish` publishes its port on a free port of 127.0.0.1. `wait` returns only when it answers; say False with a
        `command` that does not. `options` are those of docker-py's `containers.create`: network, ports, healthcheck,
        restart_policy, environment, command, …
        """
        options.setdefault("environment", {"INSTANCE": name})
        if publish:
            options.setdefault("ports", {f"{PORT}/tcp": ("127.0.0.1", None)})
        container = self.client.containers.create(
            self.image,
            name=f"{self.namespace}-{name}-{next(self._numbers)}",
            labels={"rgate.test": self.namespace, **(labels or {})},
            **options,
        )
        self._containers.append(container)
        container.start()
        container.reload()
        if wait:
            eventually(lambda: answers(address(container)), f"{container.name} answers", PROCESS_DEADLINE_SECONDS)
        return container

    def network(self, name: str = "network", **options: Any) -> Network:
        """A network of this test's own; its full name has the namespace in front."""
        network = self.client.networks.create(f"{self.namespace}-{name}", **options)
        self._networks.append(network)
        return network

    def remove_all(self) -> None:
        for container in reversed(self._containers):
            with contextlib.suppress(NotFound):
                container.remove(force=True, v=True)
        for network in reversed(self._networks):
            with contextlib.suppress(NotFound):
                network.remove()
        self._containers.clear()
        self._networks.clear()


def published_address(container: Container, port: int = PORT) -> tuple[str, int]:
    """The address at which the host reaches `port` of a running container. Raises LookupError when it is not published."""
    container.reload()
    for binding in container.attrs["NetworkSettings"]["Ports"].get(f"{port}/tcp") or ():
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(binding["HostIp"], binding["HostIp"])
        return host, int(binding["HostPort"])
    raise LookupError(f"{container.name} does not publish port {port}")


def network_address(container: Container, port: int = PORT) -> tuple[str, int]:
    """The running container's own address in its first network. Raises LookupError when it is in no network."""
    container.reload()
    for _, attachment in sorted(container.attrs["NetworkSettings"]["Networks"].items()):
        if attachment["IPAddress"]:
            return attachment["IPAddress"], port
    raise LookupError(f"{container.name} has no address")


def address(container: Container) -> tuple[str, int]:
    """The published address, or where there is none the container's own."""
    try:
        return published_address(container)
    except LookupError:
        return network_address(container)


def answers(host_and_port: tuple[str, int]) -> bool:
    """Whether an HTTP server answers there, with any status."""
    connection = http.client.HTTPConnection(*host_and_port, timeout=2)
    try:
        connection.request("GET", "/")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True
