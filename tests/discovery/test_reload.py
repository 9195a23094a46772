"""Another table becomes current, and nothing is missing for a moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from rgate import Backend, RgateError
from rgate.discovery import Discovery, EndpointTable, Timing

from ..support.waiting import eventually
from .sources import DEADLINE_SECONDS, ORDERS, PAYMENT, Hanging, Listing, Watching, found, ids, payment


class Same(Watching):
    """Equal to every other of its kind."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same)

    __hash__ = None  # type: ignore[assignment]


class SlowSame(Hanging):
    """Equal to every other of its kind."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlowSame)

    __hash__ = None  # type: ignore[assignment]


class World:
    """A Discovery, and the tables that are current in it, one after the other."""

    def __init__(self) -> None:
        self.discovery = Discovery(timing=Timing(start_timeout=0.05))

    def table(self, *sources: Listing, backends: Iterable[Backend] = (PAYMENT, ORDERS)) -> EndpointTable:
        """One that is not current yet, nor are its sources started."""
        return EndpointTable(backends, sources, self.discovery)

    def current(self, *sources: Listing, backends: Iterable[Backend] = (PAYMENT, ORDERS)) -> EndpointTable:
        """One that is current, with its sources listed."""
        table = self.table(*sources, backends=backends)
        self.discovery.start(table)
        self.activate(table)
        return table

    def activate(self, table: EndpointTable) -> None:
        self.discovery.activate(table)
        self.discovery.stop_unused()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.discovery.stop()


def test_next_table_begins_with_the_lists_of_before(world: World) -> None:
    before = world.current(Listing("l", payment("a", 81)))
    after = world.table(Hanging("l"))
    assert ids(after.snapshot, "payment") == ["a"]
    assert after.snapshot.endpoints["payment"][0].state is before.snapshot.endpoints["payment"][0].state


def test_source_that_cannot_be_listed_keeps_the_list_of_before(world: World) -> None:
    world.current(Listing("l", payment("a", 81)))
    source = Listing("l")
    source.error = RgateError("away")
    after = world.current(source)
    assert ids(after.snapshot, "payment") == ["a"]
    assert after.snapshot.sources["l"].error == "away"


def test_equal_source_goes_on_for_the_next_table(world: World) -> None:
    source = Same("s", payment("a", 81))
    before = world.current(source)
    other = Same("s")
    after = world.table(other)
    world.discovery.start(after)
    eventually(source.watched.is_set, "the source is watched")
    source.instances = [payment("a", 81), payment("b", 82)]
    source.changed()
    eventually(lambda: ids(before.snapshot, "payment") == ["a", "b"], "until it is replaced, the first table is current")
    world.activate(after)
    assert ids(after.snapshot, "payment") == ["a", "b"], "what was found meanwhile is not lost"
    source.instances = [payment("b", 82)]
    source.changed()
    eventually(lambda: ids(after.snapshot, "payment") == ["b"], "the next table has it")
    assert ids(before.snapshot, "payment") == ["a", "b"], "requests in flight keep what they had"
    assert other.lists == other.watches == 0


def test_list_in_progress_during_the_change_is_not_lost(world: World) -> None:
    slow = SlowSame("slow", payment("late", 83))
    before = world.current(Listing("l", payment("a", 81)), slow)
    assert slow.began.wait(DEADLINE_SECONDS)
    after = world.current(Listing("l", payment("a", 81)), SlowSame("slow"))
    slow.free.set()
    eventually(lambda: ids(after.snapshot, "payment") == ["a", "late"], "it is in the table that is current then")
    assert ids(before.snapshot, "payment") == ["a"]


def test_other_source_is_listed_before_it_counts(world: World) -> None:
    before = world.current(Listing("l", payment("a", 81)))
    after = world.table(Listing("l", payment("b", 82)))
    world.discovery.start(after)
    assert ids(before.snapshot, "payment") == ["a"]
    world.activate(after)
    assert (ids(before.snapshot, "payment"), ids(after.snapshot, "payment")) == (["a"], ["b"])


def test_backend_that_is_new_has_its_endpoints_at_once(world: World) -> None:
    world.current(Same("s", payment("a", 81), found("o", 82, app_name="orders", env="production")), backends=[PAYMENT])
    after = world.table(Same("s"))
    assert (ids(after.snapshot, "payment"), ids(after.snapshot, "orders")) == (["a"], ["o"])


def test_changes_are_reported_once_and_only_of_the_current_table(world: World) -> None:
    source = Same("s", payment("a", 81), found("o", 82, app_name="orders", env="production"))
    before = world.current(source, backends=[PAYMENT])
    reported: list[str] = []
    after = world.table(Same("s"), Listing("more", payment("c", 83)))
    for table in (before, after):
        table.on_change(lambda changes: reported.extend(map(str, changes)))
    of_all: list[str] = []
    world.discovery.on_change(lambda changes: of_all.extend(map(str, changes)))
    world.discovery.start(after)
    eventually(source.watched.is_set, "the source is watched")
    source.instances = [found("o", 82, app_name="orders", env="production")]
    source.changed()
    eventually(lambda: not ids(before.snapshot, "payment"), "it is gone")
    assert reported == ["backend payment: - name-of-a http://127.0.0.1:81"]
    world.activate(after)
    assert reported[1:] == [
        "backend payment: + name-of-c http://127.0.0.1:83",
        "backend orders: + name-of-o http://127.0.0.1:82",
    ]
    assert of_all == reported


def test_snapshots_are_given_to_the_current_table_s_callbacks_only(world: World) -> None:
    source = Same("s", payment("a", 81))
    first, second = world.current(source), world.table(Same("s"))
    given: list[str] = []
    for name, table in (("first", first), ("second", second)):
        table.on_snapshot(lambda snapshot, name=name: given.append(name))  # type: ignore[misc]
    assert given == ["first"], "at once, as it is current"
    first.weights_changed()
    assert given == ["first"] * 2
    world.activate(second)
    assert given[2:] == ["second"], "when it becomes current"
    first.weights_changed()
    assert given[3:] == ["second"], "whichever table is asked"


def test_what_is_excluded_stays_so_and_is_readmitted_by_who_knows_the_old_table(world: World) -> None:
    before = world.current(Same("s", payment("a", 81), payment("b", 82)))
    a = before.snapshot.found["payment"][0]
    before.exclude(a, "drain", "draining")
    after = world.table(Same("s"))
    assert ids(after.snapshot, "payment") == ["b"]
    world.activate(after)
    assert ids(after.snapshot, "payment") == ["b"]
    before.readmit(a, "drain")
    assert ids(after.snapshot, "payment") == ["a", "b"]


def test_table_that_never_becomes_current_changes_nothing(world: World) -> None:
    source = Same("s", payment("a", 81))
    before = world.current(source)
    more = Watching("more", payment("c", 83))
    world.discovery.start(world.table(Same("s"), more))
    eventually(more.watched.is_set, "its own source is watched")
    world.discovery.stop_unused()
    eventually(source.watched.is_set, "the source is watched")
    source.instances = [payment("b", 82)]
    source.changed()
    eventually(lambda: ids(before.snapshot, "payment") == ["b"], "the source goes on")
    assert list(before.snapshot.sources) == ["s"]


def test_table_of_a_table_that_never_ran_starts_every_source(world: World) -> None:
    world.activate(world.table(Same("s", payment("a", 81))))
    after = world.table(Same("s"))
    world.activate(after)
    world.discovery.start(after)
    eventually(lambda: ids(after.snapshot, "payment") == ["a"], "the source is listed")


def test_many_changes_leave_one_watch(world: World) -> None:
    source = Same("s", payment("a", 81))
    table = world.current(source)
    eventually(source.watched.is_set, "the source is watched")
    for _ in range(50):
        table = world.current(Same("s"))
    assert source.watches == 1
    source.instances = []
    source.changed()
    eventually(lambda: not ids(table.snapshot, "payment"), "the newest table has it")


def test_source_that_the_current_table_does_not_have_is_stopped(world: World) -> None:
    old = Watching("old", payment("a", 81))
    world.current(old)
    eventually(old.watched.is_set, "the source is watched")
    table = world.current(Watching("new", payment("b", 82)))
    lists = old.lists
    old.changed()
    assert ids(table.snapshot, "payment") == ["b"]
    assert (old.lists, old.watches) == (lists, 1)
