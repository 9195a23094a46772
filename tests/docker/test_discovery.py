"""Docker discovery against a real engine: whatever happens to containers is in the snapshot within two seconds.

Each test prints what it measured (`pytest -rP`): the time from the end of Docker's own command, and from its beginning.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker.client import DockerClient

from rgate import Address, Backend
from rgate.discovery import EndpointTable
from rgate.plugins.docker import self_container as own
from rgate.plugins.docker.engine import Engine
from rgate.plugins.docker.source import DockerSource

from ..support.waiting import PROCESS_DEADLINE_SECONDS, eventually
from .engine import HEALTHCHECK, PORT, Backends, network_address, published_address
from .private_engine import PrivateEngine
from .relay import EngineRelay
from .watched import LIMIT_SECONDS, Watched

FREE_PORT = -1  # the test finds one
STUBBORN = ["python3", "-c", "import signal; [signal.signal(s, signal.SIG_IGN) for s in (1, 15)]; signal.pause()"]


@pytest.fixture
def watched(engine: DockerClient, namespace: str) -> Iterator[Watched]:
    """Discovery, live before anything of the test exists."""
    made = Watched(namespace)
    made.start()
    yield made
    made.close()


def test_started_container_is_an_endpoint_at_its_published_port(watched: Watched, backends: Backends) -> None:
    with watched.sees("start", lambda: watched.endpoints):
        container = backends.run(wait=False)
    (endpoint,) = watched.endpoints
    assert (endpoint.id, endpoint.name) == (container.id, container.name)
    assert (endpoint.address.host, endpoint.address.port) == published_address(container)
    assert str(endpoint.address) in watched.lines[-1]


def test_containers_there_before_are_endpoints_when_start_returns(
    namespace: str, backends: Backends, engine: DockerClient
) -> None:
    one, two = backends.run("one"), backends.run("two")
    late = Watched(namespace)
    late.start()
    try:
        assert {endpoint.id for endpoint in late.endpoints} == {one.id, two.id}
    finally:
        late.close()


def test_stopped_container_is_out_before_it_has_ended(watched: Watched, backends: Backends) -> None:
    container = backends.run(command=STUBBORN, wait=False)
    watched.settled(lambda: watched.endpoints, "the container is an endpoint")
    stopping = threading.Thread(target=container.stop, kwargs={"timeout": 4})
    with watched.sees("stop, while the container still runs", lambda: not watched.endpoints):
        stopping.start()
    container.reload()
    assert container.status == "running"
    stopping.join()
    assert watched.reasons == {container.name: "stopped or stopping"}
    told = [line for line in watched.lines if str(container.name) in line and " + " not in line]
    # That its port is not open yet, that it was never seen open, and the stop.
    assert len(told) <= 3, watched.lines


def test_container_that_ends_by_itself_is_out(watched: Watched, backends: Backends) -> None:
    container = backends.run()
    watched.settled(lambda: watched.endpoints, "the container is an endpoint")
    with watched.sees("die", lambda: not watched.endpoints):
        container.exec_run(["sh", "-c", "kill -TERM 1"])
    assert watched.reasons == {container.name: "stopped or stopping"}


def test_killed_container_is_out_and_started_again_is_in(watched: Watched, backends: Backends) -> None:
    container = backends.run()
    watched.settled(lambda: watched.endpoints, "the container is an endpoint")
    with watched.sees("kill", lambda: not watched.endpoints):
        container.kill()
    with watched.sees("start again", lambda: watched.endpoints):
        container.start()
    assert watched.addresses == [published_address(container)]


def test_removed_container_leaves_nothing(watched: Watched, backends: Backends) -> None:
    container = backends.run()
    watched.settled(lambda: watched.endpoints, "the container is an endpoint")

    def listed() -> bool:
        return container.id in {instance.id for instance in watched.source.instances}

    assert listed()
    with watched.sees("rm -f", lambda: not listed()):
        container.remove(force=True)


def test_paused_container_is_out_and_unpaused_is_in(watched: Watched, backends: Backends) -> None:
    container = backends.run()
    watched.settled(lambda: watched.endpoints, "the container is an endpoint")
    with watched.sees("pause", lambda: not watched.endpoints):
        container.pause()
    assert watched.reasons == {container.name: "paused"}
    with watched.sees("unpause", lambda: watched.endpoints):
        container.unpause()


def test_renamed_container_is_the_same_endpoint_by_another_name(watched: Watched, backends: Backends) -> None:
    container = backends.run()
    watched.settled(lambda: watched.endpoints, "the container is an endpoint")
    (before,) = watched.endpoints
    name = f"{container.name}-renamed"
    with watched.sees("rename", lambda: [endpoint.name for endpoint in watched.endpoints] == [name]):
        container.rename(name)
    (after,) = watched.endpoints
    assert (after.id, after.address) == (before.id, before.address)
    assert after.state is before.state


def test_container_restarted_on_another_port_is_an_endpoint_there(watched: Watched, backends: Backends) -> None:
    container = backends.run()
    watched.settled(lambda: watched.endpoints, "the container is an endpoint")
    (before,) = watched.endpoints
    with watched.sees("restart on another port", lambda: [e.address for e in watched.endpoints] not in ([], [before.address])):
        container.restart(timeout=5)
    assert watched.addresses == [published_address(container)]
    assert watched.endpoints[0].state is not before.state


def test_container_with_the_label_drain_is_shown_as_draining(watched: Watched, backends: Backends) -> None:
    container = backends.run(labels={"rgate.drain": "true"})
    drains = {container.name: "draining, its label rgate.drain says"}
    watched.settled(lambda: watched.reasons == drains, "the container serves, and is not used")
    assert not watched.endpoints


def test_container_with_healthcheck_is_in_only_while_healthy(watched: Watched, backends: Backends) -> None:
    container = backends.run(healthcheck={**HEALTHCHECK, "interval": 1_000_000_000})
    watched.settled(lambda: "starting, its HEALTHCHECK says" in watched.reasons.values(), "the container is starting")

    def healthy() -> bool:
        container.reload()
        return container.health == "healthy"

    with watched.sees("healthy", lambda: watched.endpoints):
        eventually(healthy, "the container is healthy", PROCESS_DEADLINE_SECONDS)
    with watched.sees("unhealthy", lambda: not watched.endpoints):
        container.exec_run(["touch", "/tmp/unhealthy"])
        eventually(lambda: not healthy(), "the container is unhealthy", PROCESS_DEADLINE_SECONDS)
    assert watched.reasons == {container.name: "unhealthy, its HEALTHCHECK says"}
    with watched.sees("healthy again", lambda: watched.endpoints):
        container.exec_run(["rm", "/tmp/unhealthy"])
        eventually(healthy, "the container is healthy again", PROCESS_DEADLINE_SECONDS)


def test_container_that_joins_and_leaves_a_network_is_reached_there_meanwhile(watched: Watched, backends: Backends) -> None:
    network = backends.network()
    container = backends.run(publish=False, labels={"rgate.network": str(network.name)}, wait=False)
    reason = f"not in network {network.name!r} (it is in: bridge); connect it, or set rgate.network"
    watched.settled(lambda: watched.reasons == {container.name: reason}, "the container is listed")
    with watched.sees("network connect", lambda: watched.endpoints):
        network.connect(container)
    container.reload()
    assert watched.addresses == [(container.attrs["NetworkSettings"]["Networks"][network.name]["IPAddress"], PORT)]
    with watched.sees("network disconnect", lambda: not watched.endpoints):
        network.disconnect(container)


def test_container_told_to_reload_stays_and_one_that_ignores_its_stop_comes_back(watched: Watched, backends: Backends) -> None:
    container = backends.run(command=STUBBORN, wait=False, stop_signal="SIGUSR1")
    container.reload()
    watched.settled(lambda: watched.endpoints, "the container is an endpoint")
    before = len(watched.lines)
    container.kill("SIGHUP")
    witness = backends.run("witness", wait=False)  # its event comes after that of the signal
    watched.settled(lambda: len(watched.endpoints) == 2, "the witness is an endpoint")
    assert [line for line in watched.lines[before:] if str(container.name) in line] == []

    with watched.sees("kill with a signal that stops", lambda: len(watched.endpoints) == 1):
        container.kill("SIGTERM")
    assert watched.endpoints[0].id == witness.id
    watched.settled(lambda: len(watched.endpoints) == 2, "the container that runs on is back")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ports": {"8000/tcp": None, "9000/tcp": None}}, "several tcp ports: 8000, 9000; set rgate.port to the one"),
        ({"publish": False}, "no published tcp port (exposed: 8000); publish it"),
        ({"publish": False, "network_mode": "none"}, "no published tcp port (none exposed either)"),
        ({"publish": False, "network_mode": "host"}, "on the host's network, where ports are not listed; set rgate.port"),
        ({"labels": {"rgate.port": "9000"}}, "port 9000 is not published"),
        ({"labels": {"rgate.port": "http"}}, "label rgate.port='http' is not a port from 1 to 65535"),
    ],
    ids=["ambiguous", "unpublished", "no network", "host network", "wrong port", "bad label"],
)
def test_container_without_usable_address_is_none_and_says_why(
    watched: Watched, backends: Backends, options: dict[str, object], reason: str
) -> None:
    with watched.sees(reason, lambda: any(reason in str(why) for why in watched.reasons.values())):
        backends.run(wait=False, **options)  # type: ignore[arg-type]
    assert watched.endpoints == ()
    eventually(
        lambda: any("is not usable: " in line and reason in line for line in watched.lines),
        "the change is told",
        PROCESS_DEADLINE_SECONDS,
    )


@pytest.mark.parametrize(
    ("options", "port"),
    [
        ({"ports": {"8000/tcp": None, "9000/tcp": None}, "labels": {"rgate.port": "8000"}}, None),
        ({"ports": {"8000/tcp": ("0.0.0.0", None)}}, None),
        ({"ports": {"8000/tcp": ("127.0.0.1", None), "5353/udp": None}}, None),
        ({"network_mode": "host", "publish": False}, FREE_PORT),
    ],
    ids=["port label", "all addresses", "udp beside it", "host network"],
)
def test_container_with_usable_address_is_an_endpoint_there(
    watched: Watched, backends: Backends, options: dict[str, object], port: int | None
) -> None:
    if port is FREE_PORT:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        options = {**options, "labels": {"rgate.port": str(port)}, "environment": {"PORT": str(port)}}
    container = backends.run(wait=False, **options)  # type: ignore[arg-type]
    watched.settled(lambda: watched.endpoints, "the container is an endpoint")
    assert watched.addresses == [("127.0.0.1", port) if port else published_address(container)]


def test_container_at_whose_port_nothing_listens_stays_out_and_says_so(watched: Watched, backends: Backends) -> None:
    labels = {"rgate.network": "bridge", "rgate.port": "9999"}
    container = backends.run(publish=False, labels=labels)
    host, _ = network_address(container)
    reason = f"nothing listens at {host}:9999; is rgate.port=9999 right?"
    watched.settled(lambda: watched.reasons == {container.name: reason}, "it is told")
    assert not watched.endpoints


def test_container_with_unknown_labels_is_an_endpoint_and_they_are_told_once(watched: Watched, backends: Backends) -> None:
    container = backends.run(labels={"rgate.prot": "8000"})
    watched.settled(lambda: watched.endpoints, "the container is an endpoint")
    container.restart(timeout=0)
    watched.settled(lambda: " + " in watched.lines[-1] and len(watched.lines) > 3, "the container is back")
    told = [line for line in watched.lines if "unknown label" in line]
    assert told == [f"{container.name}: unknown label rgate.prot; did you mean rgate.port?"]


def test_container_of_compose_run_is_none(watched: Watched, backends: Backends) -> None:
    container = backends.run(labels={"com.docker.compose.oneoff": "True"})
    reason = "a one-off container of `docker compose run` (label com.docker.compose.oneoff)"
    watched.settled(lambda: watched.reasons == {container.name: reason}, "it is told")
    assert not watched.endpoints


def test_container_in_another_ones_network_is_reached_at_that_ones_port(watched: Watched, backends: Backends) -> None:
    owner = backends.run("owner", labels={"rgate.test": "not this test's"})
    backends.run("guest", publish=False, network_mode=f"container:{owner.id}", environment={"PORT": "9000"}, wait=False)
    watched.settled(lambda: watched.endpoints, "the guest is an endpoint")
    assert watched.addresses == [published_address(owner)]
    with watched.sees("the owner of the network stops", lambda: not watched.endpoints):
        owner.kill()


@pytest.mark.parametrize(
    "labels",
    [
        {"rgate.test.empty": ""},
        {"with=equals": "a=b=c"},
        {"unicode.☃": "grüße 🚪"},
        {"dots...": "...", " spaces ": "  "},
        {"rgate.port": " "},
        {"line\nbreak": "\r\n\t"},
    ],
    ids=["empty", "equals", "unicode", "dots and spaces", "empty port", "control"],
)
def test_container_with_odd_labels_is_an_endpoint_all_the_same(
    watched: Watched, backends: Backends, labels: dict[str, str]
) -> None:
    backends.run(labels=labels, wait=False)
    watched.settled(lambda: watched.endpoints, "the container is an endpoint")
    assert labels.items() <= watched.endpoints[0].labels.items()


def test_cut_off_from_the_engine_keeps_the_list_and_recovers_within_three_seconds(
    namespace: str, backends: Backends, engine_relay: EngineRelay
) -> None:
    stays, goes = backends.run("stays"), backends.run("goes")
    relayed = Watched(namespace, engine_relay.address)
    relayed.start()
    try:
        assert {endpoint.id for endpoint in relayed.endpoints} == {stays.id, goes.id}
        engine_relay.cut()
        relayed.settled(lambda: relayed.source.error, "it is known that the engine is away")
        goes.kill()
        assert {endpoint.id for endpoint in relayed.endpoints} == {stays.id, goes.id}, "the last good list is kept"
        engine_relay.restore()
        began = time.monotonic()
        eventually(lambda: len(relayed.endpoints) == 1, "what was missed is seen", 3.2)
        print(f"engine back: {(time.monotonic() - began) * 1000:.0f} ms")
        relayed.settled(lambda: relayed.source.error is None, "the error is forgotten")
        eventually(relayed.follows_events, "events are followed again", 3.2)
        with relayed.sees("kill after the engine was away", lambda: not relayed.endpoints):
            stays.kill()
    finally:
        relayed.close()


def test_engine_absent_at_start_is_found_later_and_survives_its_restart(
    private_engine: PrivateEngine, namespace: str, request: pytest.FixtureRequest
) -> None:
    patient = Watched(namespace, private_engine.address)
    began = time.monotonic()
    patient.start()
    try:
        assert time.monotonic() - began < LIMIT_SECONDS, "an engine that is absent must not hold up the start"
        assert "nothing listens there" in str(patient.source.error)
        backends: Backends = request.getfixturevalue("private_backends")
        container = backends.run(restart_policy={"Name": "always"})
        patient.settled(lambda: patient.addresses == [published_address(container)], "the container is an endpoint")

        private_engine.stop()
        patient.settled(lambda: patient.source.error, "it is known that the engine is away")
        assert len(patient.endpoints) <= 1
        again = private_engine.start()
        began = time.monotonic()
        container = again.containers.get(str(container.id))

        def is_endpoint_again() -> bool:
            container.reload()  # the engine starts it again, on another port
            if container.status != "running":
                return False
            return [endpoint.address for endpoint in patient.endpoints] == [Address("http", *published_address(container))]

        patient.settled(is_endpoint_again, "the container is an endpoint again")
        print(f"engine restarted: {(time.monotonic() - began) * 1000:.0f} ms after it answered")
        again.close()
    finally:
        patient.close()


def test_network_address_of_the_harness_is_what_discovery_finds(watched: Watched, backends: Backends) -> None:
    network = backends.network()
    container = backends.run(publish=False, network=network.name, labels={"rgate.network": str(network.name)})
    watched.settled(lambda: watched.endpoints, "the container is an endpoint")
    assert watched.addresses == [network_address(container)]


def test_own_container_is_known_by_its_id(backends: Backends) -> None:
    program = f"{Path(own.__file__).read_text()}\nprint(own_container_id())"
    container = backends.run(command=["python3", "-c", program], publish=False, hostname="not-an-id", wait=False)
    container.wait(timeout=20)
    assert container.logs().decode().strip() == container.id


def test_container_in_a_network_with_rgates_own_is_reached_there(namespace: str, backends: Backends) -> None:
    network, other = backends.network("shared"), backends.network("other")
    gateway = backends.run("gateway", publish=False, network=network.name, labels={"rgate.test": "not this test's"}, wait=False)
    both = backends.run("both", network=network.name, wait=False)
    backends.run("apart", network=other.name, wait=False)
    source = DockerSource(Engine, ["rgate.test"], own_id=lambda: str(gateway.id))
    table = EndpointTable([Backend("b", (("rgate.test", namespace),))], [source])
    table.refresh()
    assert [(e.address.host, e.address.port) for e in table.snapshot.endpoints["b"]] == [network_address(both)]
    assert [i.reason for i in table.snapshot.unusable["b"]] == [
        f"in no network with rgate's own container (it is in: {other.name}; rgate is in: {network.name}); connect one of them"
    ]
