"""One table takes the place of another, and nothing is missing for a moment."""

from __future__ import annotations

from collections.abc import Callable

from rgate import RgateError
from rgate.discovery import EndpointTable, Timing

from ..support.waiting import eventually
from .sources import ORDERS, PAYMENT, Hanging, Listing, Watching, found, ids, payment

Start = Callable[[EndpointTable], EndpointTable]


class Same(Watching):
    """Equal to every other of its kind."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same)

    __hash__ = None  # type: ignore[assignment]


def successor(before: EndpointTable, *sources: Listing) -> EndpointTable:
    return EndpointTable((PAYMENT, ORDERS), sources, before=before, timing=Timing(start_patience=0.05))


def first(*sources: Listing) -> EndpointTable:
    return EndpointTable((PAYMENT, ORDERS), sources)


def test_next_table_begins_with_the_lists_of_before(running: Start) -> None:
    before = running(first(Listing("l", payment("a", 81))))
    after = successor(before, Hanging("l"))
    assert ids(after.snapshot, "payment") == ["a"]
    assert after.snapshot.endpoints["payment"][0].state is before.snapshot.endpoints["payment"][0].state


def test_source_that_cannot_be_listed_keeps_the_list_of_before(running: Start) -> None:
    before = running(first(Listing("l", payment("a", 81))))
    source = Listing("l")
    source.error = RgateError("away")
    after = running(successor(before, source))
    after.take_over(before)
    assert ids(after.snapshot, "payment") == ["a"]
    assert after.snapshot.sources["l"].error == "away"


def test_equal_source_goes_on_and_tells_the_next_table(running: Start) -> None:
    source = Same("s", payment("a", 81))
    before = running(first(source))
    other = Same("s")
    after = running(successor(before, other))
    eventually(source.watched.is_set, "the source is watched")
    source.instances = [payment("a", 81), payment("b", 82)]
    source.changed()
    eventually(lambda: ids(before.snapshot, "payment") == ["a", "b"], "before it is replaced the old table is told")
    after.take_over(before)
    assert ids(after.snapshot, "payment") == ["a", "b"], "what has come meanwhile is not lost"
    before.stop()
    source.instances = [payment("b", 82)]
    source.changed()
    eventually(lambda: ids(after.snapshot, "payment") == ["b"], "the next table is told")
    assert ids(before.snapshot, "payment") == ["a", "b"], "requests in flight keep what they had"
    assert other.lists == other.watches == 0


def test_list_under_way_at_the_change_is_not_lost(running: Start) -> None:
    before = running(first(Same("s", payment("a", 81))))
    after = running(successor(before, Same("s")))
    after.take_over(before)
    before._accept("s", (payment("late", 83),))
    assert ids(after.snapshot, "payment") == ["late"]


def test_other_source_is_listed_before_it_counts(running: Start) -> None:
    before = running(first(Listing("l", payment("a", 81))))
    after = running(successor(before, Listing("l", payment("b", 82))))
    assert (ids(before.snapshot, "payment"), ids(after.snapshot, "payment")) == (["a"], ["b"])


def test_backend_that_is_new_has_its_endpoints_at_once(running: Start) -> None:
    source = Same("s", payment("a", 81), found("o", 82, app_name="orders", env="production"))
    before = running(EndpointTable((PAYMENT,), [source]))
    after = successor(before, Same("s"))
    assert (ids(after.snapshot, "payment"), ids(after.snapshot, "orders")) == (["a"], ["o"])


def test_changes_are_told_when_the_next_table_is_in_force_and_once(running: Start) -> None:
    source = Same("s", payment("a", 81), found("o", 82, app_name="orders", env="production"))
    before = running(EndpointTable((PAYMENT,), [source]))
    told: list[str] = []
    after = successor(before, Same("s"), Listing("more", payment("c", 83)))
    for table in (before, after):
        table.on_change(lambda changes: told.extend(map(str, changes)))
    running(after)
    eventually(source.watched.is_set, "the source is watched")
    source.instances = [found("o", 82, app_name="orders", env="production")]
    source.changed()
    eventually(lambda: not ids(before.snapshot, "payment"), "it is gone")
    assert told == ["backend payment: - name-of-a http://127.0.0.1:81"]
    after.take_over(before)
    assert told[1:] == [
        "backend payment: + name-of-c http://127.0.0.1:83",
        "backend orders: + name-of-o http://127.0.0.1:82",
    ]


def test_what_is_set_aside_stays_so_and_is_taken_back_by_who_knows_the_old_table(running: Start) -> None:
    before = running(first(Same("s", payment("a", 81), payment("b", 82))))
    a = before.snapshot.found["payment"][0]
    before.exclude(a, "drain", "draining")
    after = running(successor(before, Same("s")))
    assert ids(after.snapshot, "payment") == ["b"]
    after.take_over(before)
    assert ids(after.snapshot, "payment") == ["b"]
    before.readmit(a, "drain")
    assert ids(after.snapshot, "payment") == ["a", "b"]


def test_table_that_never_takes_over_leaves_the_other_as_it_was(running: Start) -> None:
    source = Same("s", payment("a", 81))
    before = running(first(source))
    refused = running(successor(before, Same("s"), Listing("more", payment("c", 83))))
    refused.stop()
    eventually(source.watched.is_set, "the source is watched")
    source.instances = [payment("b", 82)]
    source.changed()
    eventually(lambda: ids(before.snapshot, "payment") == ["b"], "the source goes on")


def test_table_of_a_table_that_never_ran_begins_every_source(running: Start) -> None:
    before = first(Same("s", payment("a", 81)))
    after = successor(before, Same("s"))
    after.take_over(before)
    running(after)
    eventually(lambda: ids(after.snapshot, "payment") == ["a"], "the source is listed")


def test_many_changes_leave_one_watch(running: Start) -> None:
    source = Same("s", payment("a", 81))
    table = running(first(source))
    eventually(source.watched.is_set, "the source is watched")
    for _ in range(50):
        after = running(successor(table, Same("s")))
        after.take_over(table)
        table.stop()
        table = after
    assert source.watches == 1
    source.instances = []
    source.changed()
    eventually(lambda: not ids(table.snapshot, "payment"), "the newest is told")
