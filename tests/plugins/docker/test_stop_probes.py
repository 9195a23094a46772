"""StopProbes: containers that were told to stop and may go on serving."""

from __future__ import annotations

from rgate import Address
from rgate.plugins.docker.probes import Outcome, StopProbes

PLACE = Address("http", "127.0.0.1", 8000)


class Port:
    """A port that the test opens and closes."""

    def __init__(self) -> None:
        self.open = True
        self.tried: list[Address] = []

    def connect(self, address: Address) -> Port:
        self.tried.append(address)
        return self

    def outcome(self) -> Outcome:
        return Outcome.OPEN if self.open else Outcome.UNCLEAR


class World:
    def __init__(self, hold_seconds: float = 1.0) -> None:
        self.now = 100.0
        self.port = Port()
        self.probes = StopProbes(hold_seconds, lambda: self.now, self.port.connect)

    def accepts(self) -> bool:
        return self.probes.accepts("a", PLACE)

    def goes_on(self, seconds: float) -> bool:
        """Poll as often as is due; whether something has changed."""
        until, changed = self.now + seconds, False
        while self.now < until:
            changed = self.probes.poll() or changed
            self.now += min(max(self.probes.next_poll_in(), 0.01), 0.25)
        return changed


def told(hold_seconds: float = 1.0) -> World:
    world = World(hold_seconds)
    world.probes.stopping("a")
    assert not world.accepts(), "at first nothing is sent to it"
    return world


def test_container_that_serves_on_accepts_after_the_hold() -> None:
    world = told()
    assert not world.goes_on(0.9) and not world.port.tried
    assert world.goes_on(0.6) and world.accepts()


def test_without_a_hold_it_is_tried_at_once() -> None:
    world = told(0.0)
    assert world.goes_on(0.3) and world.accepts()


def test_container_that_has_closed_its_port_does_not_accept() -> None:
    world = told()
    world.port.open = False
    assert not world.goes_on(3.0) and not world.accepts() and len(world.port.tried) > 3


def test_container_that_closes_its_port_later_no_longer_accepts() -> None:
    world = told()
    world.goes_on(1.5)
    assert world.accepts()
    world.port.open = False
    assert world.goes_on(0.5) and not world.accepts()


def test_container_that_has_ended_is_not_tried_any_more() -> None:
    world = told()
    world.goes_on(1.5)
    world.probes.ended("a")
    tried = len(world.port.tried)
    assert not world.accepts()
    world.goes_on(1.0)
    assert len(world.port.tried) == tried
    assert world.probes.next_poll_in() == float("inf")


def test_container_told_again_is_not_held_again() -> None:
    world = told()
    world.goes_on(0.7)
    world.probes.stopping("a")
    world.goes_on(0.7)
    assert world.accepts()


def test_containers_that_are_not_kept_are_forgotten() -> None:
    world = told()
    world.goes_on(1.5)
    world.probes.keep_only(["a"])
    assert world.accepts()
    world.probes.keep_only([])
    assert not world.accepts()


def test_nobody_told_to_stop_is_nobody_tried() -> None:
    world = World()
    assert not world.accepts() and not world.goes_on(2.0) and not world.port.tried
