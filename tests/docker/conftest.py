"""Fixtures of the tests against a real Docker engine.

Without an engine these tests are skipped and say why; with RGATE_REQUIRE_DOCKER=1, as in CI, they fail instead.
Every test has containers and networks of its own (see `engine.Backends`), so they run side by side.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from docker.client import DockerClient
from docker.models.containers import Container

from .engine import Backends, EngineUnavailable, connect, find_base_image
from .images import build_gateway_image, build_haproxy_image, build_orders_image, build_stage_image, build_systemd_image
from .private_engine import PrivateEngine
from .relay import EngineRelay

HERE = Path(__file__).parent

# dockerd, ip and mount are there, and not in the PATH of every user who may run them.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.docker)


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerClient]:
    """The client of the engine that DOCKER_HOST names, by default the local one."""
    try:
        client = connect()
    except EngineUnavailable as error:
        _unavailable(str(error))
    yield client
    client.close()


@pytest.fixture(scope="session")
def base_image(engine: DockerClient) -> str:
    """The name of an image with python3 in it."""
    try:
        return find_base_image(engine)
    except EngineUnavailable as error:
        _unavailable(str(error))


@pytest.fixture(scope="session")
def backend_image(engine: DockerClient, base_image: str) -> str:
    """The name of an image of the orders backend."""
    return build_orders_image(engine, base_image)


@pytest.fixture(scope="session")
def gateway_image(engine: DockerClient, base_image: str) -> str:
    """The name of an image of rgate, made of the project's Dockerfile."""
    return build_gateway_image(engine, base_image)


@pytest.fixture(scope="session")
def build_image(engine: DockerClient, base_image: str) -> str:
    """The name of an image that the Dockerfile can build in without a network."""
    return build_stage_image(engine, base_image)


@pytest.fixture(scope="session")
def haproxy_image(engine: DockerClient, base_image: str) -> str:
    """The name of an image with haproxy."""
    return build_haproxy_image(engine, base_image)


@pytest.fixture(scope="session")
def systemd_image(engine: DockerClient, base_image: str, gateway_image: str) -> str:
    """The name of an image that boots systemd, with rgate as a service of it."""
    return build_systemd_image(engine, base_image, gateway_image)


@pytest.fixture
def namespace() -> str:
    """A name that no other test has: the prefix of this one's containers and networks, the value of their label `rgate.test`."""
    return f"rgate-test-{uuid.uuid4().hex[:10]}"


@pytest.fixture
def backends(engine: DockerClient, backend_image: str, namespace: str) -> Iterator[Backends]:
    """Runs backend containers for this test and removes them after it."""
    made = Backends(engine, backend_image, namespace)
    yield made
    made.remove_all()


@pytest.fixture
def run_container(backends: Backends) -> Callable[..., Container]:
    """`Backends.run` of this test: run_container("one", labels={"app_name": "orders"}) → a container that answers."""
    return backends.run


@pytest.fixture
def engine_relay(engine: DockerClient) -> Iterator[EngineRelay]:
    """An address of the engine that the test can `cut()` and `restore()`; it relays from the start."""
    address = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if not address.startswith("unix://"):
        _unavailable(f"the relay needs an engine on a Unix socket, this one is at {address}")
    with tempfile.TemporaryDirectory(prefix="rgate-") as home:
        relay = EngineRelay(address.removeprefix("unix://"), Path(home, "relay.sock"))
        relay.restore()
        yield relay
        relay.cut()


@pytest.fixture
def private_engine() -> Iterator[PrivateEngine]:
    """An engine of this test's own, not yet started."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("dockerd", "ip", "mount"))):
        _unavailable("a private engine needs root, dockerd, ip and mount")
    home = Path(tempfile.mkdtemp(prefix="rgate-"))
    made = PrivateEngine(home)
    yield made
    made.close()
    home.rmdir()


@pytest.fixture
def private_backends(
    private_engine: PrivateEngine, engine: DockerClient, backend_image: str, namespace: str
) -> Iterator[Backends]:
    """Runs backend containers in the private engine, which is started for it; they go with the engine."""
    client = private_engine.start()
    client.images.load(b"".join(engine.images.get(backend_image).save(named=backend_image)))
    yield Backends(client, backend_image, namespace)
    client.close()


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get("RGATE_REQUIRE_DOCKER") == "1":
        pytest.fail(f"RGATE_REQUIRE_DOCKER=1, but {reason}", pytrace=False)
    pytest.skip(reason)
