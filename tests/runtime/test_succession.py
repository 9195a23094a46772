"""The gateways of one process, one after the other: what goes on, what ends, and when."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rgate import ConfigError, ConfigProblem, Gateway, Middleware, build, hookimpl
from rgate.runtime.reload_coordinator import LAST_SECONDS, ReloadCoordinator
from rgate.testing import answering, client, make_gateway

from ..waiting import eventually


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
        return Middleware("life", lambda app, options: answering(body), before="stats")

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
    """What stands in for the server: the gateway it was given last, and whether the requests before it are over."""

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


@pytest.fixture
def succession(life: Life, served: Serving) -> Iterator[ReloadCoordinator]:
    gateway = make_gateway({}, {}, {"life": life})
    served.gateway = gateway
    succession = ReloadCoordinator(gateway, lambda before: build(before.config, before.registry, before), served)
    yield succession
    served.ending.set() if hasattr(served, "ending") else None
    succession.close()


def test_reload_serves_with_the_next_and_ends_the_old_after_its_requests(
    succession: ReloadCoordinator, life: Life, served: Serving
) -> None:
    assert served.body() == b"1"
    assert succession.reload() == ""
    assert (served.body(), succession.gateway) == (b"2", served.gateway)
    assert life.happened == ["begin 1", "begin 2"], "the old one has requests in flight"
    served.ending.set()
    eventually(lambda: life.happened[2:] == ["end 1"], "the old one ends")


def test_reload_ends_the_oldest_first(succession: ReloadCoordinator, life: Life, served: Serving) -> None:
    succession.reload()
    first = served.ending
    succession.reload()
    served.ending.set()
    assert not [what for what in life.happened if what.startswith("end")]
    first.set()
    eventually(lambda: life.happened[3:] == ["end 1", "end 2"], "both end, in order")


def test_reload_does_not_wait_for_the_last_request_for_ever(life: Life, served: Serving) -> None:
    times = iter([0.0, LAST_SECONDS - 1, LAST_SECONDS + 1])
    gateway = make_gateway({}, {}, {"life": life})
    succession = ReloadCoordinator(
        gateway, lambda before: build(before.config, before.registry, before), served, lambda: next(times, LAST_SECONDS + 1)
    )
    succession.reload()
    eventually(lambda: "end 1" in life.happened, "the old one ends although a request is left")
    succession.close()


def test_reload_keeps_what_has_an_equal_key_and_closes_the_rest(
    succession: ReloadCoordinator, life: Life, served: Serving
) -> None:
    succession.reload()
    served.ending.set()
    eventually(lambda: "end 1" in life.happened, "the first one ends")
    assert "close a" not in life.happened
    life.key = "b"
    succession.reload()
    served.ending.set()
    eventually(lambda: life.happened[-2:] == ["end 2", "close a"], "the second one ends")


def test_reload_lifespan_that_is_kept_goes_on(succession: ReloadCoordinator, life: Life, served: Serving) -> None:
    life.lifespan_is_kept = True
    for _ in range(3):
        succession.reload()
        served.ending.set()
    eventually(lambda: "end 1" in life.happened, "the first one ends")
    assert life.happened == ["begin 1", "begin kept a", "end 1"]
    life.key = "b"
    succession.reload()
    served.ending.set()
    eventually(lambda: life.happened[3:] == ["begin kept b", "end kept a", "close a"], "the kept one ends")


def test_reload_lifespan_that_fails_leaves_everything_as_it_was(
    succession: ReloadCoordinator, life: Life, served: Serving
) -> None:
    life.fails, life.key = True, "b"
    problems = succession.reload()
    assert "its lifespan cannot start: OSError: the port is taken" in problems
    assert (served.body(), life.happened) == (b"1", ["begin 1", "close b"])
    assert succession.gateway.readiness.notices == {"config": f"refused, the one before is in force: {problems}"}
    assert not [thread for thread in threading.enumerate() if thread.name == "rgate-retire"]
    life.fails = False
    assert succession.reload() == ""
    assert succession.gateway.readiness.notices == {}


@pytest.mark.parametrize("failure", [ConfigError([ConfigProblem(("routes", 0), "no")]), ValueError("unforeseen")])
def test_reload_of_what_cannot_be_composed_is_refused(
    life: Life, served: Serving, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def compose(before: Gateway) -> Gateway:
        raise failure

    succession = ReloadCoordinator(make_gateway({}, {}, {"life": life}), compose, served)
    with caplog.at_level(logging.CRITICAL, "rgate.runtime"):
        assert str(failure) in succession.reload()
    assert served.gateway is None
    succession.close()
    assert life.happened == ["begin 1", "end 1", "close a"]


def test_end_ends_all_in_order_and_lets_nothing_follow(succession: ReloadCoordinator, life: Life, served: Serving) -> None:
    succession.reload()
    succession.close()
    assert life.happened == ["begin 1", "begin 2", "end 1", "end 2", "close a"]
    assert "about to end" in succession.reload()


def test_reload_leaves_no_threads_and_no_old_gateways(succession: ReloadCoordinator, served: Serving) -> None:
    table = succession.gateway.table  # whoever still holds the first one must not hold all that have come since
    gateways: list[weakref.ref[Gateway]] = []
    for _ in range(20):
        succession.reload()
        gateways.append(weakref.ref(succession.gateway))
        served.ending.set()
    eventually(lambda: not [t for t in threading.enumerate() if t.name == "rgate-retire"], "the old ones have ended")
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("rgate-upstreams") == 1, names
    gc.collect()
    assert len([gateway for gateway in gateways if gateway() is not None]) <= 2, "the one in force, and the last one before it"
    assert not table.in_force
