"""Under 200 requests a second: what becomes of requests while containers and the engine are stopped, killed and restarted.

GET and POST, on kept connections and on new ones. Nothing may be lost but what was on its way to a container that is killed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from docker.models.containers import Container

from bench.clients import Clients, Outcome, by_answer
from rgate.cli.http_client import ask
from rgate.serving.runtime_dir import admin_sockets

from .engine import FOUND_SECONDS, MACHINE_SECONDS, Backends, address, answers, wait_until
from .private_engine import PrivateEngine
from .relay import EngineRelay

ROOT = Path(__file__).parents[2]
PER_SECOND = 200.0
OWN_ADDRESS = {"rgate.network": "bridge"}
BETWEEN = 40  # requests before, between and after what is done to the containers


class Loaded:
    """A gateway in front of this test's containers, and clients that send to it."""

    def __init__(self, clients: Clients, port: int) -> None:
        self._clients = clients
        self._port = port

    @property
    def outcomes(self) -> list[Outcome]:
        return list(self._clients.outcomes)

    @property
    def bad(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.good]

    @property
    def notice(self) -> str:
        """What `/-/ready` says of Docker while the gateway is ready; nothing when all is well."""
        socket = next(each.path for each in admin_sockets(port=self._port))
        answer, _ = ask(f"unix:{socket}", "/-/ready", {})  # raises for a 503
        return str(answer["warnings"].get("docker", ""))

    def go_on(self) -> None:
        """Return after some more requests."""
        enough = len(self._clients.outcomes) + BETWEEN
        wait_until(lambda: len(self._clients.outcomes) >= enough, f"{BETWEEN} more requests; {by_answer(self.outcomes)}")

    def answered_by(self, container: Container, kind: str = "POST") -> None:
        """Return once a request that is sent from now on has been answered by this container."""
        seen = len(self._clients.outcomes)
        name = str(container.id)[:12]
        wait_until(
            lambda: any(o.who == name and o.kind == kind for o in self._clients.outcomes[seen:]),
            f"{container.name} answers; {by_answer(self.outcomes)}",
        )


@contextmanager
def loaded(namespace: str, folder: Path, host: str | None = None) -> Iterator[Loaded]:
    """Inside, requests are sent. Without a `host` the engine is the one that DOCKER_HOST names."""
    config = folder / "config.yml"
    config.write_text(f"""
routes: [{{path_prefix: /, backend: orders}}]
backends: [{{name: orders, match_labels: ["rgate.test={namespace}"]}}]
plugins:
  docker: {{{f"host: '{host}'" if host else ""}}}
  stats: {{database: "sqlite:///{folder}/rgate.db"}}
""")
    command = [sys.executable, "rgate.py", "--port", "0", "--config", str(config)]
    with (
        (folder / "stderr").open("w") as errors,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True) as gateway,
    ):
        try:
            assert gateway.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:(\d+)", gateway.stdout.readline())
            assert found, (folder / "stderr").read_text()
            threading.Thread(target=gateway.stdout.read, daemon=True).start()
            with Clients(int(found[1]), "/api/orders", PER_SECOND) as clients:
                load = Loaded(clients, int(found[1]))
                load.go_on()
                yield load
                load.go_on()
            assert gateway.poll() is None, "the gateway has ended"
            print(by_answer(load.outcomes), f"slowest {max(o.ended - o.sent for o in load.outcomes):.3f} s")
        finally:
            gateway.terminate()
            gateway.wait(20)
    assert not re.search("Traceback|CRITICAL", (folder / "stderr").read_text()), (folder / "stderr").read_text()


def named(backends: Backends, *names: str, **options: object) -> list[Container]:
    """Containers that show the beginning of their id as their instance."""
    return [backends.run(name, environment={}, **options) for name in names]  # type: ignore[arg-type]


def test_rolling_restart_of_all_containers_loses_none(namespace: str, backends: Backends, tmp_path: Path) -> None:
    containers = named(backends, "one", "two", "three")
    with loaded(namespace, tmp_path) as load:
        for container in containers:
            container.restart(timeout=9)
            load.answered_by(container)
    assert load.bad == []


def test_rolling_restart_as_a_script_would_do_it_loses_none(namespace: str, backends: Backends, tmp_path: Path) -> None:
    containers = named(backends, "one", "two", "three")
    with loaded(namespace, tmp_path) as load:
        for container in containers:  # two of three may be on their way at the same time, as nobody waits
            container.restart(timeout=9)
    assert load.bad == []


@pytest.mark.parametrize("published", [True, False], ids=["published port", "own address"])
def test_restart_of_the_only_container_loses_none(published: bool, namespace: str, backends: Backends, tmp_path: Path) -> None:
    options = {} if published else {"publish": False, "labels": OWN_ADDRESS}
    (only,) = named(backends, "only", **options)
    with loaded(namespace, tmp_path) as load:
        load.answered_by(only)
        only.restart(timeout=9)
        load.answered_by(only)
    assert load.bad == []


def test_restart_of_all_containers_at_once_loses_none(namespace: str, backends: Backends, tmp_path: Path) -> None:
    containers = named(backends, "one", "two")
    with loaded(namespace, tmp_path) as load:
        restarts = [threading.Thread(target=container.restart, kwargs={"timeout": 9}) for container in containers]
        for restart in restarts:
            restart.start()
        for restart in restarts:
            restart.join()
        load.answered_by(containers[0])
    assert load.bad == []


def test_stop_of_one_of_two_loses_none(namespace: str, backends: Backends, tmp_path: Path) -> None:
    stays, goes = named(backends, "stays", "goes")
    with loaded(namespace, tmp_path) as load:
        load.answered_by(goes)
        goes.stop(timeout=9)
    assert load.bad == []
    assert {outcome.who for outcome in load.outcomes[-BETWEEN // 2 :]} == {str(stays.id)[:12]}


def test_kill_of_one_of_two_costs_only_what_it_was_at_and_must_not_be_sent_twice(
    namespace: str, backends: Backends, tmp_path: Path
) -> None:
    _, goes = named(backends, "stays", "goes")
    with loaded(namespace, tmp_path) as load:
        load.answered_by(goes)
        goes.kill()
    assert {str(outcome) for outcome in load.bad} <= {"502 closed"}
    assert [outcome for outcome in load.bad if outcome.kind.startswith("GET")] == [], "these are sent to the other one"
    assert len(load.bad) <= PER_SECOND / 10, "what was sent while the engine had not told of it yet"


def test_pause_of_one_of_two_makes_its_requests_wait_and_loses_none(namespace: str, backends: Backends, tmp_path: Path) -> None:
    _, pauses = named(backends, "stays", "pauses")
    with loaded(namespace, tmp_path) as load:
        load.answered_by(pauses)
        pauses.pause()
        load.go_on()
        pauses.unpause()
        load.answered_by(pauses)
    assert load.bad == []


def test_engine_out_of_reach_loses_none(namespace: str, backends: Backends, engine_relay: EngineRelay, tmp_path: Path) -> None:
    named(backends, "one", "two")
    with loaded(namespace, tmp_path, engine_relay.address) as load:
        engine_relay.cut()
        load.go_on()
        engine_relay.restore()
        load.go_on()
    assert load.bad == []


@pytest.mark.parametrize("end", [PrivateEngine.stop, PrivateEngine.kill])
def test_engine_ended_and_started_again_while_its_containers_run_on_loses_none(
    end: Callable[[PrivateEngine], None],
    namespace: str,
    private_engine: PrivateEngine,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    private_engine.containers_outlive_it = True
    private_backends: Backends = request.getfixturevalue("private_backends")
    # At their own address: what the engine publishes goes through a process of its own, which ends with it.
    containers = named(private_backends, "one", "two", publish=False, labels=OWN_ADDRESS)
    with loaded(namespace, tmp_path, private_engine.address) as load:
        end(private_engine)
        wait_until(lambda: "nothing listens there" in load.notice, "the operator is told that the engine is away")
        wait_until(lambda: re.search(r"keeping the list of [1-9]\d* s ago", load.notice), "and how old the list is")
        load.go_on()

        client = private_engine.start()
        began = time.monotonic()
        wait_until(lambda: not load.notice, "the engine is found again")
        took = time.monotonic() - began
        print(f"found again {took:.3f} s after it answered")
        assert took < FOUND_SECONDS + MACHINE_SECONDS
        again = Backends(client, private_backends.image, namespace)
        load.answered_by(*named(again, "three", publish=False, labels=OWN_ADDRESS))
        client.close()
    assert load.bad == []
    assert all(answers(address(container)) for container in containers)
