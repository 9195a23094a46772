"""The harness itself: what the other tests here take for granted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from docker.client import DockerClient
from docker.models.containers import Container

from ..support.waiting import PROCESS_DEADLINE_SECONDS, eventually
from .engine import HEALTHCHECK, Backends, EngineUnavailable, answers, connect, network_address, published_address
from .private_engine import PrivateEngine
from .relay import EngineRelay


def test_run_container_published_answers_on_loopback_and_stops_at_once(run_container: Callable[..., Container]) -> None:
    container = run_container("one", labels={"app_name": "orders"})
    host, port = published_address(container)
    assert host == "127.0.0.1"
    assert answers((host, port))

    container.stop(timeout=8)  # seconds after which the engine would kill it

    container.reload()
    assert container.attrs["State"]["ExitCode"] == 0, "the backend was killed instead of ending by SIGTERM"
    assert not answers((host, port))


def test_run_container_in_a_network_without_published_port_has_an_address(backends: Backends) -> None:
    network = backends.network()
    container = backends.run(network=network.name, publish=False)
    with pytest.raises(LookupError):
        published_address(container)
    assert answers(network_address(container))


def test_remove_all_takes_paused_stopped_and_restarting_containers_away(engine: DockerClient, backends: Backends) -> None:
    backends.run("paused").pause()
    backends.run("stopped").kill()
    backends.run("restarting", command=["false"], restart_policy={"Name": "always"}, wait=False)

    def left() -> list[Container]:
        return engine.containers.list(all=True, filters={"label": f"rgate.test={backends.namespace}"}, ignore_removed=True)

    assert len(left()) == 3
    backends.remove_all()
    assert left() == []


def test_healthcheck_flips_when_the_file_appears(run_container: Callable[..., Container]) -> None:
    container = run_container(healthcheck=HEALTHCHECK)

    def health() -> str:
        container.reload()
        return str(container.health)

    eventually(lambda: health() == "healthy", "the container is healthy", PROCESS_DEADLINE_SECONDS)
    container.exec_run(["touch", "/tmp/unhealthy"])
    eventually(lambda: health() == "unhealthy", "the container is unhealthy", PROCESS_DEADLINE_SECONDS)


def test_engine_relay_cut_ends_the_event_stream_and_restore_answers_again(engine_relay: EngineRelay) -> None:
    client = connect(engine_relay.address)
    events = client.events()
    engine_relay.cut()
    assert list(events) == []
    events.close()
    with pytest.raises(EngineUnavailable):
        connect(engine_relay.address)
    engine_relay.restore()
    assert client.ping()
    client.close()


def test_private_engine_restarted_has_its_container_again(private_engine: PrivateEngine, private_backends: Backends) -> None:
    before = private_backends.run(restart_policy={"Name": "always"})

    private_engine.stop()
    with pytest.raises(EngineUnavailable):
        connect(private_engine.address)

    again = private_engine.start()
    eventually(
        lambda: answers(published_address(again.containers.get(str(before.id)))),
        "the container answers again",
        PROCESS_DEADLINE_SECONDS,
    )
    again.close()
