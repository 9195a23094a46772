"""docker-compose.yml as the demo starts it: its containers are what config.yml asks for, and answer."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from docker.client import DockerClient
from docker.models.containers import Container

from ..support.waiting import PROCESS_DEADLINE_SECONDS, eventually
from .compose import Compose
from .engine import answers, published_address

ROOT = Path(__file__).parents[2]


@pytest.fixture
def compose_containers(engine: DockerClient, base_image: str, namespace: str) -> Iterator[list[Container]]:
    """The running containers of the compose file, started as a project of this test's own."""
    compose = Compose(ROOT / "docker-compose.yml", namespace, BASE_IMAGE=base_image)
    try:
        compose("up", "--build", "--detach")
        yield engine.containers.list(filters={"label": f"com.docker.compose.project={namespace}"})
    finally:
        compose("down", "--rmi", "local", "--timeout", "8")


def test_compose_file_starts_what_config_asks_for(compose_containers: list[Container]) -> None:
    backends = yaml.safe_load((ROOT / "config.yml").read_text())["backends"]

    def picked_by(labels: list[str]) -> list[Container]:
        return [c for c in compose_containers if set(labels) <= {f"{name}={value}" for name, value in c.labels.items()}]

    picked = {backend["name"]: picked_by(backend["match_labels"]) for backend in backends}
    assert {name: len(containers) for name, containers in picked.items()} == {"payment": 1, "orders": 2}
    instances = Counter[str]()
    for name, containers in picked.items():
        for container in containers:
            reply = get_json(container, f"/api/{name}/7?x=1")
            assert (reply["service_name"], reply["path"]) == (name, f"/api/{name}/7?x=1")
            instances[reply.get("instance", "-")] += 1
    assert len(instances) == 3, f"the two orders containers should show two names: {instances}"


def get_json(container: Container, path: str) -> dict[str, str]:
    """The container's answer to GET `path` on its published port, asked once it answers at all."""
    host, port = published_address(container)
    assert host == "127.0.0.1", f"{container.name} is open to the network"
    eventually(lambda: answers((host, port)), f"{container.name} answers", PROCESS_DEADLINE_SECONDS)
    with closing(http.client.HTTPConnection(host, port, timeout=10)) as connection:
        connection.request("GET", path)
        reply: dict[str, str] = json.loads(connection.getresponse().read())
    return reply
