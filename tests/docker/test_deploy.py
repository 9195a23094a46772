"""deploy/compose.yml, run as it stands: rgate in a container that may write nothing, and a filter before the Docker socket."""

from __future__ import annotations

import http.client
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from docker.client import DockerClient
from docker.models.containers import Container

from ..support.waiting import PROCESS_DEADLINE_SECONDS, eventually
from .compose import Compose
from .engine import FOUND_SECONDS, MACHINE_SECONDS, answers, published_address

ROOT = Path(__file__).parents[2]
PORT = 8080
LIMIT_SECONDS = 2.0
HEALTH_SECONDS = 40.0  # three checks, and what a busy machine takes for them

ASK = """
import http.client
for method, path in REQUESTS:
    connection = http.client.HTTPConnection("socket-proxy", 2375, timeout=10)
    connection.request(method, path)
    print(connection.getresponse().status)
"""
LOOKING = [
    ("GET", "/_ping"),
    ("HEAD", "/_ping"),
    ("GET", "/version"),
    ("GET", "/v1.41/containers/json?all=1"),
    ("GET", "/v1.41/containers/{id}/json"),
    ("GET", "/v1.41/networks"),
    ("GET", "/v1.41/events?since=0&until=1"),
]
MORE_THAN_LOOKING = [
    ("POST", "/v1.41/containers/{id}/stop"),
    ("POST", "/v1.41/containers/create"),
    ("DELETE", "/v1.41/containers/{id}"),
    ("PUT", "/v1.41/containers/{id}/archive?path=/"),
    ("GET", "/v1.41/containers/{id}/archive?path=/etc"),
    ("GET", "/v1.41/containers/{id}/logs?stdout=1"),
    ("GET", "/v1.41/containers/{id}/attach/ws"),
    ("GET", "/v1.41/containers/{id}/export"),
    ("GET", "/v1.41/containers/../images/json"),
    ("GET", "/v1.41/containers/%2e%2e/json"),
    ("GET", "//images/json"),
    ("GET", "/v1.41/images/json"),
    ("GET", "/v1.41/secrets"),
    ("GET", "/info"),
]


class Deployed:
    """The running containers of the compose file, by the name of their service."""

    def __init__(self, engine: DockerClient, project: str) -> None:
        self.containers: dict[str, list[Container]] = {}
        for container in engine.containers.list(filters={"label": f"com.docker.compose.project={project}"}):
            self.containers.setdefault(container.labels["com.docker.compose.service"], []).append(container)
        (self.gateway,) = self.containers["rgate"]

    def get(self, path: str) -> tuple[int, dict[str, object]]:
        """The gateway's answer to GET `path` from the host."""
        with closing(http.client.HTTPConnection(*published_address(self.gateway, PORT), timeout=10)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def instances(self) -> set[str]:
        """The instances that answer for /api/orders, asked often enough to meet both."""
        told = [self.get("/api/orders") for _ in range(12)]
        return {str(body["body"]["instance"]) for status, body in told if status == 200}  # type: ignore[index]

    def asked(self, requests: list[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """The status of each request to the filter, sent from where rgate is."""
        (payment,) = self.containers["payment"]
        filled = [(method, path.replace("{id}", str(payment.id))) for method, path in requests]
        code, output = self.gateway.exec_run(["python3", "-c", f"REQUESTS = {filled}{ASK}"])
        assert code == 0, output.decode()
        return dict(zip(requests, map(int, output.split()), strict=True))


@pytest.fixture(scope="module")
def deployed(
    engine: DockerClient, base_image: str, build_image: str, gateway_image: str, haproxy_image: str
) -> Iterator[Deployed]:
    project = f"rgate-test-{uuid.uuid4().hex[:10]}"
    compose = Compose(
        ROOT / "deploy" / "compose.yml",
        project,
        BASE_IMAGE=base_image,
        BUILD_IMAGE=build_image,
        HAPROXY_IMAGE=haproxy_image,
        RGATE_LISTEN="127.0.0.1:",
    )
    try:
        compose("up", "--build", "--detach")
        made = Deployed(engine, project)
        eventually(
            lambda: answers(published_address(made.gateway, PORT)),
            f"rgate answers; {made.gateway.logs().decode()}",
            PROCESS_DEADLINE_SECONDS,
        )
        eventually(
            lambda: len(made.instances()) == 2,
            f"both orders containers are found; {made.gateway.logs().decode()}",
            PROCESS_DEADLINE_SECONDS,
        )
        yield made
    finally:
        compose("down", "--rmi", "local", "--volumes", "--timeout", "8")


def test_deployed_gateway_finds_backends_without_published_ports(deployed: Deployed) -> None:
    services = [*deployed.containers["orders"], *deployed.containers["payment"]]
    assert [container.name for container in services if any(container.ports.values())] == []
    status, body = deployed.get("/api/payment/7")
    assert (status, body["body"]["service_name"]) == (200, "payment")  # type: ignore[index]
    assert deployed.instances() == {str(container.id)[:12] for container in deployed.containers["orders"]}


def test_deployed_gateway_is_healthy(deployed: Deployed) -> None:
    def health() -> str:
        deployed.gateway.reload()
        return str(deployed.gateway.health)

    eventually(lambda: health() == "healthy", "the image's HEALTHCHECK", HEALTH_SECONDS)


def test_deployed_gateway_can_be_asked_by_its_commands_in_the_container_only(deployed: Deployed) -> None:
    gateway = deployed.gateway

    def command(*arguments: str) -> str:
        code, output = gateway.exec_run(["rgate", *arguments])
        assert code == 0, output.decode()
        return str(output.decode())

    assert command("healthcheck") == "ready\n"
    assert command("reload") == "reloaded\n"
    assert command("drain") == "nothing is drained\n"
    assert "orders" in command("stats", "--by", "endpoint")
    assert gateway.exec_run(["stat", "-c", "%a %u", "/run/rgate/8080.sock"]).output.split() == [b"600", b"10001"]
    assert deployed.get("/-/ready") == (200, {"ready": True}), "the host's own checks"
    assert [deployed.get(path)[0] for path in ("/stats", "/-/config", "/-/backends")] == [403] * 3


def test_deployed_gateway_sees_a_stopped_backend_through_the_filter_at_once(deployed: Deployed) -> None:
    stays, goes = deployed.containers["orders"]
    goes.stop(timeout=8)
    eventually(lambda: deployed.instances() == {str(stays.id)[:12]}, "the events come through the filter", LIMIT_SECONDS)
    goes.start()
    eventually(lambda: len(deployed.instances()) == 2, "the events come through the filter", LIMIT_SECONDS)


def test_deployed_gateway_finds_the_engine_again_within_three_seconds_of_the_filter(deployed: Deployed) -> None:
    (socket_proxy,) = deployed.containers["socket-proxy"]

    def told(words: str) -> int:
        return deployed.gateway.logs().decode().count(words)

    for _ in range(3):
        before = told("trying again"), told("answers again")
        socket_proxy.stop(timeout=1)
        eventually(lambda before=before: told("trying again") > before[0], "the outage is noticed", PROCESS_DEADLINE_SECONDS)  # type: ignore[misc]
        socket_proxy.start()
        began = time.monotonic()
        eventually(lambda before=before: told("answers again") > before[1], "the engine is found again", PROCESS_DEADLINE_SECONDS)  # type: ignore[misc]
        took = time.monotonic() - began
        print(f"found again {took:.2f} s after the filter has started")
        assert took < FOUND_SECONDS + MACHINE_SECONDS


def test_deployed_gateway_is_nobody_and_writes_only_its_statistics(deployed: Deployed) -> None:
    gateway = deployed.gateway
    gateway.reload()
    assert gateway.attrs["HostConfig"]["ReadonlyRootfs"]
    status = gateway.exec_run(["cat", "/proc/1/status"]).output.decode()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["10001"] * 4
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    for place in ("/", "/opt/rgate", "/etc/rgate", "/tmp", "/var/tmp"):
        assert gateway.exec_run(["touch", f"{place}/x"]).exit_code != 0, f"{place} can be written to"
    assert "rgate.db" in gateway.exec_run(["ls", "/var/lib/rgate"]).output.decode()
    logs = gateway.logs().decode()
    assert "ERROR" not in logs and "Traceback" not in logs, logs


def test_deployed_image_has_no_build_tools(deployed: Deployed) -> None:
    look = "ls /opt/rgate/bin; ls /opt/rgate/lib/python3*/site-packages; ls -d /src /wheels 2>&1"
    names = deployed.gateway.exec_run(["sh", "-c", look]).output.decode().split()
    assert "rgate" in names
    assert not {"pip", "setuptools", "/src", "/wheels"} & set(names)


def test_filter_lets_rgate_look(deployed: Deployed) -> None:
    assert {request: status for request, status in deployed.asked(LOOKING).items() if status != 200} == {}


def test_filter_refuses_whatever_is_more_than_looking(deployed: Deployed) -> None:
    told = deployed.asked(MORE_THAN_LOOKING)
    assert {request: status for request, status in told.items() if status not in (400, 403)} == {}
    (payment,) = deployed.containers["payment"]
    payment.reload()
    assert payment.status == "running"


def test_filter_is_out_of_reach_of_the_services(deployed: Deployed) -> None:
    (payment,) = deployed.containers["payment"]
    asked = payment.exec_run(["python3", "-c", "import socket; socket.create_connection(('socket-proxy', 2375), 5)"])
    assert asked.exit_code != 0
    assert "gaierror" in asked.output.decode()
