"""EndpointQueue: who may wait for an endpoint, and for how long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rgate import Backend, ConnectionRefused, EndpointQueue, Instance, SuspendedResponse
from rgate.discovery import EndpointTable, Snapshot
from rgate.http1.environ import CONNECTION_KEY
from rgate.testing import make_environ, make_exchange

from ..support.waiting import eventually
from .sources import Listing, found

BACKEND = Backend("fixed", queue_seconds=10.0)
HERE = found("a", 9, backend="fixed")


class World:
    """A queue, a table, and a clock that the test sets."""

    def __init__(self, *backends: Backend, most: int = 100) -> None:
        self.now = 1_000.0
        self.source = Listing("listing", HERE)
        self.table = EndpointTable(backends or (BACKEND,), [self.source])
        self.asked: list[SuspendedResponse | None] = []
        self.asks_early = False
        self.table.discovery.on_snapshot(self._before_the_queue)
        self.queue = EndpointQueue(self.table.discovery, lambda: self.now)
        self.queue.configure(backends or (BACKEND,), most)
        self.table.refresh()
        self.suspended: list[SuspendedResponse] = []

    def _before_the_queue(self, snapshot: Snapshot) -> None:
        if self.asks_early and not snapshot.endpoints["fixed"]:
            self.asked.append(self.request())

    def finds(self, *instances: Instance) -> None:
        self.source.instances = instances
        self.table.refresh()

    def request(
        self, started: float | None = None, backend: Backend = BACKEND, has_failed: bool = True
    ) -> SuspendedResponse | None:
        exchange = make_exchange()
        exchange.started = self.now if started is None else started
        environ = {**make_environ(exchange=exchange), CONNECTION_KEY: object()}
        suspended = self.queue.suspended(environ, backend, lambda in_time: [], has_failed)
        if suspended is not None:
            self.suspended.append(suspended)
        return suspended


@contextmanager
def world(*backends: Backend, most: int = 100) -> Iterator[World]:
    made = World(*backends, most=most)
    yield made
    for suspended in made.suspended:
        suspended.close()
    assert not made.queue.waiting
    eventually(lambda: made.queue._thread is None, "the thread ends when nobody waits")


def test_backend_that_has_lost_its_last_endpoint_is_waited_for_until_wait_seconds_have_passed() -> None:
    with world() as made:
        made.finds()
        made.now += 9.9
        assert made.request() is not None
        made.now += 0.1
        assert made.request() is None


def test_backend_whose_loss_the_queue_is_just_being_told_of_is_waited_for() -> None:
    with world() as made:
        made.asks_early = True
        made.finds()
        assert [suspended is not None for suspended in made.asked] == [True]


def test_backend_that_is_back_and_lost_again_is_waited_for_anew() -> None:
    with world() as made:
        made.finds()
        made.now += 60.0
        assert made.request() is None
        made.finds(HERE)
        made.finds()
        assert made.request() is not None


def test_request_that_has_waited_for_so_long_does_not_wait_again() -> None:
    with world() as made:
        made.finds()
        assert made.request(started=made.now - 10.0) is None
        assert made.request(started=made.now - 9.0) is not None


def test_endpoint_that_refuses_is_waited_for_only_if_it_has_answered_before() -> None:
    with world() as made:
        assert made.request() is None
        made.queue.proven("fixed")
        assert made.request() is not None
        made.now += 10.0
        assert made.request() is None, "it has refused for too long"
        made.queue.proven("fixed")
        assert made.request() is not None


def test_nobody_waits_where_nothing_can_wait() -> None:
    with world() as made:
        made.finds()
        with pytest.raises(ConnectionRefused):
            made.queue.park(make_environ(), BACKEND, lambda in_time: [], ConnectionRefused())
        assert made.request(backend=Backend("fixed", queue_seconds=0.0)) is None


def test_one_of_several_backends_leaves_room_for_the_others() -> None:
    other = Backend("other", queue_seconds=10.0)
    with world(BACKEND, other, most=10) as made:
        made.finds(HERE, found("b", 9, backend="other"))
        made.finds()
        assert [made.request() is not None for _ in range(10)] == [True] * 8 + [False] * 2
        assert [made.request(backend=other) is not None for _ in range(3)] == [True, True, False]


def test_they_are_let_go_in_the_order_of_their_start() -> None:
    with world() as made:
        made.finds()
        late, early = made.request(), made.request(started=made.now - 1.0)
        order: list[str] = []
        for name, suspended in (("late", late), ("early", early)):
            assert suspended is not None
            suspended.when_resumed(lambda name=name: order.append(name))  # type: ignore[misc]
        made.queue.proven("fixed")
        made.finds(HERE)
        eventually(lambda: len(order) == 2, "both are let go")
        assert order == ["early", "late"]


def test_a_crowd_is_not_let_go_at_once() -> None:
    with world(most=1_000) as made:
        made.finds()
        crowd = [made.request() for _ in range(600)]
        made.queue.proven("fixed")
        made.finds(HERE)
        eventually(lambda: any(suspended and suspended.resumed for suspended in crowd), "some are let go")
        endpoint = made.queue.endpoints("fixed")[0]
        endpoint.state.active_exchanges.update(make_exchange() for _ in range(32))  # no room any more
        woken = sum(1 for suspended in crowd if suspended and suspended.resumed)
        assert woken < 600
        eventually(lambda: all(suspended and suspended.resumed for suspended in crowd), "but all in the end")
