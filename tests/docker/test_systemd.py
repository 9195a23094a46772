"""The units in deploy/, run by a systemd that has been booted in a container: what operators do with them."""

from __future__ import annotations

import http.client
import uuid
from collections.abc import Iterator
from contextlib import closing

import pytest
from docker.client import DockerClient
from docker.errors import APIError
from docker.models.containers import Container

from bench.clients import Clients, by_answer

from ..support.waiting import PROCESS_DEADLINE_SECONDS
from .engine import published_address, wait_until

PORT = 8080
PER_SECOND = 50.0
BETWEEN = 30  # requests before, between and after what is done to the service

CONFIG = """
routes: [{path_prefix: /orders, backend: orders}]
backends: [{name: orders, endpoints: ["http://127.0.0.1:9000"]}]
plugins: {disable: [docker]}
"""


class Machine:
    """What an operator sees of a machine with rgate, and does to it."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._seen = ""

    def run(self, *command: str, **environment: str) -> tuple[int, str]:
        """The exit code and the output."""
        code, output = self._container.exec_run(list(command), environment=environment)
        return code, output.decode().strip()

    def must(self, *command: str, **environment: str) -> str:
        """The output of what has to succeed."""
        code, output = self.run(*command, **environment)
        assert code == 0, f"{command}: {output}; {self.journal()}"
        return output

    @property
    def has_booted(self) -> bool:
        try:
            return self.run("systemctl", "is-system-running")[1] in ("running", "degraded")
        except APIError:  # the container has ended
            return False

    def configure(self, text: str) -> None:
        """Put this into the config."""
        self.must("sh", "-c", 'mkdir -p /etc/rgate && printf %s "$CONFIG" >/etc/rgate/config.yml', CONFIG=text)

    def show(self, name: str) -> str:
        """A property of the service."""
        return self.must("systemctl", "show", f"--property={name}", "--value", "rgate.service")

    def states(self) -> list[str]:
        """Those of the service and of its socket."""
        return self.run("systemctl", "is-active", "rgate.service", "rgate.socket")[1].split()

    def journal(self) -> str:
        """What systemd and rgate have said of the service since this was asked last."""
        after = [f"--after-cursor={self._seen}"] if self._seen else []
        said = self.run("journalctl", "--unit=rgate.service", "--output=cat", "--show-cursor", *after)[1]
        said, _, self._seen = said.rpartition("-- cursor: ")
        return said

    @property
    def port(self) -> int:
        return published_address(self._container, PORT)[1]

    def get(self, path: str) -> int:
        """The status of the answer to a client outside; one that has to wait in the socket waits."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PROCESS_DEADLINE_SECONDS)) as connection:
            connection.request("GET", path)
            return connection.getresponse().status


@pytest.fixture(scope="module")
def booted(engine: DockerClient, systemd_image: str) -> Iterator[Machine]:
    """Its /tmp and /run are its own, and it sees nothing of the host's processes and control groups."""
    container = engine.containers.create(
        systemd_image,
        name=f"rgate-test-systemd-{uuid.uuid4().hex[:10]}",
        cap_add=["SYS_ADMIN"],
        security_opt=["seccomp=unconfined", "apparmor=unconfined"],
        cgroupns="private",
        tmpfs={"/run": "", "/tmp": ""},
        ports={f"{PORT}/tcp": ("127.0.0.1", None)},
    )
    try:
        machine = Machine(container)
        try:
            container.start()
            wait_until(lambda: machine.has_booted, "systemd is up", PROCESS_DEADLINE_SECONDS)
        except (APIError, AssertionError) as error:
            pytest.skip(f"systemd does not run in a container on this machine: {error}; {container.logs().decode()}")
        machine.must("systemctl", "enable", "--now", "orders")
        machine.configure(CONFIG)
        machine.must("systemctl", "enable", "--now", "rgate")
        yield machine
    finally:
        container.remove(force=True, v=True)


@pytest.fixture
def machine(booted: Machine) -> Machine:
    """One on which rgate runs with the config above."""
    booted.configure(CONFIG)
    booted.must("systemctl", "start", "rgate")
    booted.must("systemctl", "reload", "rgate")
    booted.journal()
    return booted


def test_service_is_nobody_and_writes_only_its_statistics(machine: Machine) -> None:
    assert machine.states() == ["active", "active"]
    assert machine.get("/orders") == 200
    status = machine.must("cat", f"/proc/{machine.show('MainPID')}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert "0" not in fields["Uid"].split() + fields["Gid"].split() + fields["Groups"].split()
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert "rgate.db" in machine.must("ls", "/var/lib/rgate/")


def test_reload_returns_when_the_config_is_in_force_and_fails_when_it_is_refused(machine: Machine) -> None:
    machine.configure(CONFIG.replace("/orders,", "/others,"))
    machine.must("systemctl", "reload", "rgate")
    assert machine.get("/others") == 200
    machine.configure(CONFIG.replace("backend: orders", "backend: nobody"))
    assert machine.run("systemctl", "reload", "rgate")[0] == 1
    assert "no backend named 'nobody'" in machine.show("StatusText")
    assert (machine.states(), machine.get("/others")) == (["active", "active"], 200)
    machine.configure(CONFIG)
    machine.must("systemctl", "reload", "rgate")
    assert (machine.show("StatusText"), machine.get("/orders")) == ("", 200)


def test_upgrade_and_restart_lose_nothing(machine: Machine) -> None:
    """The restart is that of a process which systemd has not started: it has to wait for the end of that one too."""
    with Clients(machine.port, "/orders", PER_SECOND) as clients:

        def go_on() -> None:
            enough = len(clients.outcomes) + BETWEEN
            wait_until(lambda: len(clients.outcomes) >= enough, f"{BETWEEN} more requests", PROCESS_DEADLINE_SECONDS)

        go_on()
        first = machine.show("MainPID")
        machine.must("systemctl", "kill", "--kill-who=main", "--signal=SIGUSR2", "rgate")
        wait_until(lambda: machine.show("MainPID") != first, "systemd follows", PROCESS_DEADLINE_SECONDS)
        assert machine.states() == ["active", "active"]
        go_on()
        second = machine.show("MainPID")
        machine.must("systemctl", "restart", "rgate")
        assert machine.show("MainPID") not in (first, second)
        go_on()
    said = machine.journal()
    assert [o for o in clients.outcomes if not o.good] == [], f"{by_answer(clients.outcomes)}; {said}"
    assert [line for line in said.splitlines() if any(bad in line for bad in ("SIGKILL", "Failed", "not our child"))] == [], said


def test_service_that_is_killed_comes_back_and_clients_wait_for_it(machine: Machine) -> None:
    before = machine.show("MainPID")
    machine.must("systemctl", "kill", "--kill-who=main", "--signal=SIGKILL", "rgate")
    wait_until(lambda: machine.show("MainPID") != before, "systemd has noticed", PROCESS_DEADLINE_SECONDS)
    assert machine.get("/orders") == 200
    assert machine.show("NRestarts") != "0"


def test_service_that_cannot_start_goes_on_trying(machine: Machine) -> None:
    machine.configure("routes: nonsense")
    assert machine.run("systemctl", "restart", "rgate")[0] == 1
    assert "config.yml:1: routes" in machine.journal()
    wait_until(lambda: int(machine.show("NRestarts")) >= 2, "it is tried again", PROCESS_DEADLINE_SECONDS)
    machine.configure(CONFIG)
    assert machine.get("/orders") == 200, "whoever has come meanwhile is served"


def test_service_is_stopped_with_its_socket(machine: Machine) -> None:
    machine.must("systemctl", "stop", "rgate.socket")
    assert machine.states() == ["inactive", "inactive"]
    assert machine.show("Result") == "success"
    machine.must("systemctl", "start", "rgate")
    assert machine.states() == ["active", "active"]
    assert machine.get("/orders") == 200
