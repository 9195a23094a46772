"""Runtime: gateways become current one after the other; what goes on, what ends, and when."""

from __future__ import annotations

import gc
import logging
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rgate import ConfigError, ConfigProblem, Gateway, Middleware, build, hookimpl
from rgate.runtime.runtime import Runtime
from rgate.testing import client, make_gateway, respond_with

from ..support.waiting import eventually


class Life:
    """A plugin whose lifespan, and the thing that it keeps, note what happens to them."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.number = 0
        self.key = "a"
        self.fails = False
        self.lifespan_is_kept = False

    @hookimpl
    def rgate_middlewares(self, gateway: Gateway) -> Middleware:
        self.number += 1
        body = b"%d" % self.number
        gateway.resource("life", self.key, lambda: Thing(self.happened, self.key))
        return Middleware("life", lambda app, options: respond_with(body), before="stats")

    @hookimpl
    def rgate_lifespan(self, gateway: Gateway) -> Any:
        if self.lifespan_is_kept:
            return gateway.resource("life.span", self.key, lambda: self.span(f"kept {self.key}"))
        return self.span(str(self.number))

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        if self.fails:
            raise OSError("the port is taken")
        self.happened.append(f"begin {name}")
        yield
        self.happened.append(f"end {name}")


class Thing:
    def __init__(self, happened: list[str], name: str) -> None:
        self._happened = happened
        self._name = name

    def close(self) -> None:
        self._happened.append(f"close {self._name}")


class Serving:
    """A fake server: the gateway it was given last, and whether the requests before it are over."""

    def __init__(self) -> None:
        self.gateway: Gateway | None = None
        self.over = threading.Event()

    def __call__(self, gateway: Gateway) -> Callable[[], bool]:
        self.gateway = gateway
        over, self.over = self.over, threading.Event()
        self.ending = over
        return over.is_set

    def body(self) -> bytes:
        assert self.gateway is not None
        return client(self.gateway).get("/").data


@pytest.fixture
def life() -> Life:
    return Life()


@pytest.fixture
def served() -> Serving:
    return Serving()


class World:
    """A runtime with a current gateway, which is built again at every reload."""

    def __init__(self, life: Life, served: Serving) -> None:
        first = make_gateway({}, {}, {"life": life})
        self.runtime = first.runtime
        served.gateway = first
        self._served = served
        self.runtime.start(first)

    @property
    def gateway(self) -> Gateway:
        assert self.runtime.current is not None
        return self.runtime.current

    def build(self, runtime: Runtime) -> Gateway:
        return build(self.gateway.config, self.gateway.registry, runtime)

    def reload(self) -> str:
        return self.runtime.reload(self.build, self._served)


@pytest.fixture
def world(life: Life, served: Serving) -> Iterator[World]:
    world = World(life, served)
    yield world
    world.runtime.stop()


def test_reload_serves_with_the_next_and_ends_the_old_after_its_requests(world: World, life: Life, served: Serving) -> None:
    assert served.body() == b"1"
    assert world.reload() == ""
    assert (served.body(), world.gateway) == (b"2", served.gateway)
    assert life.happened == ["begin 1", "begin 2"], "the old one has requests in flight"
    served.ending.set()
    eventually(lambda: life.happened[2:] == ["end 1"], "the old one ends")


def test_reload_ends_the_oldest_first(world: World, life: Life, served: Serving) -> None:
    world.reload()
    first = served.ending
    world.reload()
    served.ending.set()
    assert not [what for what in life.happened if what.startswith("end")]
    first.set()
    eventually(lambda: life.happened[3:] == ["end 1", "end 2"], "both end, in order")


def test_reload_waits_a_limited_time_for_the_last_request(world: World, life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.runtime.runtime.MAX_DRAIN_SECONDS", 0.05)
    world.reload()
    eventually(lambda: "end 1" in life.happened, "the old one ends although a request is left")


def test_reload_keeps_what_has_an_equal_key_and_closes_the_rest(world: World, life: Life, served: Serving) -> None:
    world.reload()
    served.ending.set()
    eventually(lambda: "end 1" in life.happened, "the first one ends")
    assert "close a" not in life.happened
    life.key = "b"
    world.reload()
    served.ending.set()
    eventually(lambda: life.happened[-2:] == ["end 2", "close a"], "the second one ends")


def test_reload_lifespan_that_is_kept_goes_on(world: World, life: Life, served: Serving) -> None:
    life.lifespan_is_kept = True
    for _ in range(3):
        world.reload()
        served.ending.set()
    eventually(lambda: "end 1" in life.happened, "the first one ends")
    assert life.happened == ["begin 1", "begin kept a", "end 1"]
    life.key = "b"
    world.reload()
    served.ending.set()
    eventually(lambda: life.happened[3:] == ["begin kept b", "end kept a", "close a"], "the kept one ends")


def test_reload_lifespan_that_fails_leaves_everything_as_it_was(world: World, life: Life, served: Serving) -> None:
    life.fails, life.key = True, "b"
    problems = world.reload()
    assert "its lifespan cannot start: OSError: the port is taken" in problems
    assert (served.body(), life.happened) == (b"1", ["begin 1", "close b"])
    assert world.gateway.readiness.warnings == {"config": f"refused, the config before stays active: {problems}"}
    assert not [thread for thread in threading.enumerate() if thread.name == "rgate-drain"]
    life.fails = False
    assert world.reload() == ""
    assert world.gateway.readiness.warnings == {}


@pytest.mark.parametrize("failure", [ConfigError([ConfigProblem(("routes", 0), "no")]), ValueError("unforeseen")])
def test_reload_of_what_cannot_be_composed_is_refused(
    world: World, life: Life, served: Serving, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(runtime: Runtime) -> Gateway:
        raise failure

    first = world.gateway
    with caplog.at_level(logging.CRITICAL, "rgate.runtime"):
        assert str(failure) in world.runtime.reload(fails, served)
    assert served.gateway is world.gateway is first
    world.runtime.stop()
    assert life.happened == ["begin 1", "end 1", "close a"]


def test_stop_ends_all_in_order_and_lets_nothing_follow(world: World, life: Life, served: Serving) -> None:
    world.reload()
    world.runtime.stop()
    assert life.happened == ["begin 1", "begin 2", "end 1", "end 2", "close a"]
    assert "about to end" in world.reload()


def test_reload_leaves_no_threads_and_no_old_gateways(world: World, served: Serving) -> None:
    first = world.gateway  # holding the first one must not keep all later ones alive
    gateways: list[weakref.ref[Gateway]] = []
    for _ in range(20):
        world.reload()
        gateways.append(weakref.ref(world.gateway))
        served.ending.set()
    eventually(lambda: not [t for t in threading.enumerate() if t.name == "rgate-drain"], "the old ones have ended")
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("rgate-maintenance") == 1, names
    gc.collect()
    assert len([gateway for gateway in gateways if gateway() is not None]) <= 2, "the current one, and the last one before it"
    assert not first.is_current and world.gateway.is_current


def test_prefork_runtime_replaces_its_gateway_at_once_and_starts_the_last_one(life: Life, served: Serving) -> None:
    first = make_gateway({}, {}, {"life": life})
    runtime = first.runtime
    life.key = "b"
    second = build(first.config, first.registry, runtime)
    runtime.activate(second)
    assert (runtime.current, life.happened) == (second, ["close a"]), "it never ran, so nothing has to end"
    runtime.start(second)
    assert life.happened[1:] == ["begin 2"]
    runtime.stop()
    assert life.happened[2:] == ["end 2", "close b"]


def test_gateway_cannot_be_changed_once_it_is_built() -> None:
    with pytest.raises(AttributeError, match=r"gateway\.app cannot change"):
        make_gateway().app = respond_with(b"")


def test_commands_of_other_workers_are_run_by_the_current_gateway(world: World) -> None:
    first = world.gateway
    second = world.build(world.runtime)
    ran: list[str] = []
    for name, gateway in (("first", first), ("second", second)):
        gateway.workers.on_command("note", lambda _, name=name: ran.append(name))  # type: ignore[misc]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        world.runtime.workers.connect(theirs)
        for number, gateway in enumerate((first, second)):
            if gateway is second:
                world.runtime.activate(second)
            ours.sendall(b"ask %d note\n" % number)
            assert ours.recv(100) == b"done %d\n" % number
    assert ran == ["first", "second"]
