"""Docker discovery while a real engine is in trouble, or has much to list. What it is in trouble with is not the containers'.

For engines that are stopped, restarted or out of reach see test_discovery.py, for requests meanwhile test_nothing_lost.py.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from docker.models.containers import Container

from rgate.discovery import Timing
from rgate.plugins.docker import engine as talk

from ..support.waiting import PROCESS_DEADLINE_SECONDS, eventually
from .engine import FOUND_SECONDS, MACHINE_SECONDS, Backends
from .private_engine import PrivateEngine
from .relay import EngineRelay
from .watched import Watched

# rgate's own: 45 s of silence, 10 s for a request, and a list every 30 s whatever is heard.
SILENCE_SECONDS = 2.0
REQUEST_SECONDS = 2.0
REST_SECONDS = 1.0  # when this long nothing was listed, nothing that is known calls for it: echoes of events come sooner
ONLY_WHEN_NOTICED = Timing(resync=3_600.0, backoff_limit=0.5)  # which is less than the silence, as it is by default

CREATED = 300
RUNNING = 24
MAKERS = 4
OWN_ADDRESS = {"rgate.network": "bridge"}  # no proxy process for every container


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk, "_QUIET_SECONDS", SILENCE_SECONDS)
    monkeypatch.setattr(talk, "_REQUEST_SECONDS", REQUEST_SECONDS)


def test_connections_that_fall_silent_without_an_end_are_replaced(
    impatient: None, namespace: str, backends: Backends, engine_relay: EngineRelay
) -> None:
    goes = backends.run("goes")
    relayed = Watched(namespace, engine_relay.address, ONLY_WHEN_NOTICED)
    eventually(lambda: not relayed.follows_events(), "streams of other tests have ended", PROCESS_DEADLINE_SECONDS)
    relayed.start()
    try:
        relayed.settled(relayed.follows_events, "events are followed")
        relayed.settled(
            lambda: time.monotonic() - (relayed.source.listed_at or 0) > REST_SECONDS, "there is nothing more to be listed"
        )
        assert [endpoint.id for endpoint in relayed.endpoints] == [goes.id]
        engine_relay.silence()  # the stream, and the connection that lists
        began = time.monotonic()
        goes.kill()
        relayed.settled(lambda: not relayed.endpoints, "a change without an event is seen")
        print(f"silence: {time.monotonic() - began:.3f} s")
        relayed.settled(lambda: relayed.source.error is None, "the engine answers")
        with relayed.sees("start after the silence", lambda: relayed.endpoints):
            backends.run("comes", wait=False)
    finally:
        relayed.close()


def test_engine_that_hangs_is_noticed_its_last_list_kept_and_found_again_within_three_seconds(
    impatient: None, namespace: str, private_engine: PrivateEngine, private_backends: Backends
) -> None:
    container = private_backends.run(publish=False, labels=OWN_ADDRESS)
    watched = Watched(namespace, private_engine.address)
    watched.start()
    try:
        watched.settled(watched.follows_events, "events are followed")
        private_engine.hang()
        watched.settled(lambda: watched.source.error, "it is known that the engine hangs")
        listed = watched.source.listed_at
        assert [endpoint.id for endpoint in watched.endpoints] == [container.id], "the last good list is kept"

        private_engine.go_on()
        began = time.monotonic()
        watched.settled(lambda: watched.source.error is None, "the engine is found again")
        took = time.monotonic() - began
        print(f"engine goes on: {took:.3f} s")
        assert took < FOUND_SECONDS + MACHINE_SECONDS
        assert listed is not None and watched.source.listed_at is not None and watched.source.listed_at > listed
        watched.settled(watched.follows_events, "events are followed again")
        container.kill()
        watched.settled(lambda: not watched.endpoints, "what happens is seen again")
    finally:
        watched.close()


def test_hundreds_of_containers_are_listed_and_events_are_followed_as_ever(
    namespace: str, private_engine: PrivateEngine, private_backends: Backends
) -> None:
    def create(number: int) -> Container:
        return private_backends.client.containers.create(
            private_backends.image,
            name=f"{namespace}-{number}",
            labels={"rgate.test": namespace, **OWN_ADDRESS},
            command=["sleep", "infinity"],
            stop_signal="SIGKILL",  # so that all of them end at once
        )

    began = time.monotonic()
    with ThreadPoolExecutor(MAKERS) as makers:
        created = list(makers.map(create, range(CREATED)))
        running = created[:RUNNING]
        list(makers.map(Container.start, running))
    print(f"{CREATED} containers, {RUNNING} of them started: {time.monotonic() - began:.3f} s")

    watched = Watched(namespace, private_engine.address)
    began = time.monotonic()
    watched.start()
    print(f"all of them listed: {time.monotonic() - began:.3f} s")
    try:
        assert {endpoint.id for endpoint in watched.endpoints} == {container.id for container in running}

        def rest_is_told() -> bool:
            watched.table.refresh()  # what has been created in the last five seconds may be about to start
            return len(watched.reasons) == CREATED - RUNNING

        watched.settled(rest_is_told, "the others are unusable")
        assert set(watched.reasons.values()) == {"not started"}
        assert len(watched.lines) < CREATED // 3, "a line for each of them would be noise"
        watched.settled(watched.follows_events, "events are followed")
        with watched.sees("start of one more", lambda: len(watched.endpoints) == RUNNING + 1):
            one_more = private_backends.run(publish=False, labels=OWN_ADDRESS, wait=False)
        with watched.sees("kill of it", lambda: len(watched.endpoints) == RUNNING):
            one_more.kill()
        with watched.sees("kill of all others", lambda: not watched.endpoints), ThreadPoolExecutor(MAKERS) as killers:
            list(killers.map(Container.kill, running))
    finally:
        watched.close()
