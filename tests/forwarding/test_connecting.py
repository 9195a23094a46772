"""How many connections to an endpoint are made at a time, and who waits."""

from __future__ import annotations

import threading
from time import monotonic

import pytest

from rgate import Address, ConnectTimeout, Timeouts
from rgate.forwarding import connecting
from rgate.forwarding.connecting import MAX_CONNECTING, MIN_CONNECTING, ConnectQueue
from rgate.forwarding.upstream import UpstreamPools
from rgate.testing import ScriptedBackend, closed_port_url

from ..support.waiting import eventually


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place is given up when its holder says so, and not because this machine is slow."""
    monkeypatch.setattr(connecting, "HOLD_SECONDS", 3600.0)


def in_an_hour() -> float:
    return monotonic() + 3600


def full(queue: ConnectQueue, places: int = MAX_CONNECTING) -> list[object]:
    holders = [object() for _ in range(places)]
    for holder in holders:
        assert queue.enter(holder, in_an_hour())
    assert not queue.enter(object(), monotonic()), "there is no place left, and no time to wait for one"
    return holders


class Waiting:
    """Threads that wait for a place, in order, and who has had one."""

    def __init__(self, queue: ConnectQueue, count: int) -> None:
        self.entered: list[int] = []
        self.holders = [object() for _ in range(count)]
        self.threads = [threading.Thread(target=self._enter, args=(queue, number)) for number in range(count)]
        for number, thread in enumerate(self.threads, 1):
            thread.start()
            eventually(lambda number=number: len(queue._waiting) == number)  # type: ignore[misc]

    def _enter(self, queue: ConnectQueue, number: int) -> None:
        if queue.enter(self.holders[number], in_an_hour()):
            self.entered.append(number)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.usefixtures("patient")
def test_queue_is_first_come_first_served() -> None:
    queue = ConnectQueue()
    holders = full(queue)
    waiting = Waiting(queue, 3)
    for number in range(3):
        queue.connected(holders[number], 0.001, answered=True)
        eventually(lambda number=number: waiting.entered == list(range(number + 1)))  # type: ignore[misc]
    waiting.join()
    assert not queue._waiting


@pytest.mark.usefixtures("patient")
def test_queue_goes_on_when_one_that_waits_has_no_more_time() -> None:
    queue = ConnectQueue()
    holders = full(queue)
    results: list[bool] = []
    impatient = threading.Thread(target=lambda: results.append(queue.enter(object(), monotonic() + 0.2)))
    impatient.start()
    eventually(lambda: len(queue._waiting) == 1)
    entering = threading.Thread(target=lambda: results.append(queue.enter(object(), in_an_hour())))
    entering.start()
    impatient.join(10)
    assert results == [False]
    queue.connected(holders[0], 0.001, answered=True)
    entering.join(10)
    assert results == [False, True]


def test_queue_waits_for_no_place_longer_than_the_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead endpoint, or one that accepts without answering, must not have all wait for it one after the other."""
    monkeypatch.setattr(connecting, "HOLD_SECONDS", 0.01)
    queue = ConnectQueue()
    for _ in range(3 * MAX_CONNECTING):  # of which none ever says that it has ended
        assert queue.enter(object(), in_an_hour())
    assert len(queue._holders) <= MAX_CONNECTING


@pytest.mark.usefixtures("patient")
def test_queue_narrows_when_packets_are_lost_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(connecting, "monotonic", lambda: now[0])

    def places() -> int:
        queue._holders.clear()
        holders = []
        while queue.enter(holder := object(), now[0]):
            holders.append(holder)
        return len(holders)

    queue = ConnectQueue()
    seen = [places()]
    for _ in range(5):
        queue.connected(object(), 1.0, answered=True)
        queue.connected(object(), 4.0, answered=False)  # of the same burst
        seen.append(places())
        now[0] += 0.3
    assert seen == [32, 16, 8, 4, 4, 4] == [MAX_CONNECTING, 16, 8, MIN_CONNECTING, MIN_CONNECTING, MIN_CONNECTING]
    seen = []
    for _ in range(4):
        now[0] += 2.1
        seen.append(places())
    assert seen == [8, 16, 32, 32]


@pytest.mark.usefixtures("patient")
def test_queue_that_is_narrow_counts_connections_until_the_backend_has_answered() -> None:
    queue = ConnectQueue()
    queue.connected(object(), 1.0, answered=True)
    holders = full(queue, 16)
    queue.connected(holders[0], 0.001, answered=True)
    assert not queue.enter(object(), monotonic()), "it is connected, but may not be accepted"
    queue.accepted(holders[0])
    queue.accepted(holders[0])
    assert queue.enter(object(), monotonic())
    queue.connected(holders[1], 0.001, answered=False)
    assert queue.enter(object(), monotonic())
    assert not queue.enter(object(), monotonic())


# In a pool


@pytest.mark.usefixtures("patient")
def test_connecting_includes_the_wait_for_a_place() -> None:
    with ScriptedBackend() as backend:
        pool = UpstreamPools().get(Address("http", "127.0.0.1", backend.port)).pool
        full(pool.connect_queue)
        with pytest.raises(ConnectTimeout):
            pool.connect_new(Timeouts(connect_seconds=0.05))


@pytest.mark.usefixtures("patient")
def test_connecting_leaves_its_place_however_it_ends() -> None:
    with ScriptedBackend() as backend, closed_port_url() as url:
        pool = UpstreamPools().get(Address("http", "127.0.0.1", backend.port)).pool
        refused = UpstreamPools().get(Address("http", "127.0.0.1", int(url.rpartition(":")[2]))).pool
        for _ in range(2):
            pool.connect_new(Timeouts()).close()
            with pytest.raises(Exception, match="refused"):
                refused.connect_new(Timeouts())
        assert not pool.connect_queue._holders
        assert not refused.connect_queue._holders


@pytest.mark.usefixtures("patient")
def test_connection_of_a_narrow_queue_leaves_its_place_with_the_first_answer() -> None:
    with ScriptedBackend() as backend:
        pool = UpstreamPools().get(Address("http", "127.0.0.1", backend.port)).pool
        pool.connect_queue.connected(object(), 1.0, answered=True)
        connection = pool.connect_new(Timeouts())
        assert pool.connect_queue._holders
        connection.set_io_timeout(10)
        connection.send_bytes(b"GET / HTTP/1.1\r\n\r\n")
        connection.read_head()
        assert not pool.connect_queue._holders
        connection.close()
