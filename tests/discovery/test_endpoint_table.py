"""The endpoint table live. Nothing here waits for time to pass: the pauses are long and the test gives the notices."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rgate import RgateError
from rgate.discovery import EndpointTable, Timing

from ..support.waiting import eventually
from .sources import DEADLINE_SECONDS, Hanging, Listing, Watching, ids, payment, table


def test_start_returns_with_the_first_lists_there(running: Callable[[EndpointTable], EndpointTable]) -> None:
    live = running(table(Listing("one", payment("a", 81)), Watching("two", payment("b", 82))))
    assert ids(live.snapshot, "payment") == ["a", "b"]


def test_start_with_a_failing_source_does_not_fail_or_wait(running: Callable[[EndpointTable], EndpointTable]) -> None:
    source = Listing("away")
    source.error = RgateError("away")
    live = running(table(source, timing=Timing(start_timeout=DEADLINE_SECONDS * 10)))
    assert live.snapshot.sources["away"].error == "away"


def test_start_with_a_source_that_hangs_goes_on_after_the_timeout(running: Callable[[EndpointTable], EndpointTable]) -> None:
    slow, quick = Hanging("slow", payment("a")), Listing("quick", payment("b", 81))
    live = running(table(slow, quick, timing=Timing(start_timeout=0.05)))
    eventually(lambda: ids(live.snapshot, "payment") == ["b"], "the quick source is listed")
    slow.free.set()
    eventually(lambda: ids(live.snapshot, "payment") == ["a", "b"], "the slow source is listed, late")


def test_notice_makes_a_new_snapshot(running: Callable[[EndpointTable], EndpointTable]) -> None:
    source = Watching("w", payment("a", 81))
    live = running(table(source))
    eventually(source.watched.is_set, "the source is watched")
    source.instances = [payment("a", 81), payment("b", 82)]
    source.changed()
    eventually(lambda: ids(live.snapshot, "payment") == ["a", "b"], "the new endpoint is there")


def test_burst_of_notices_makes_few_lists(running: Callable[[EndpointTable], EndpointTable]) -> None:
    source = Watching("w")
    live = running(table(source))
    eventually(source.watched.is_set, "the source is watched")
    before = source.lists
    for number in range(1_000):
        source.instances = [payment(f"{number}", 80)]
        source.changed()
    eventually(lambda: ids(live.snapshot, "payment") == ["999"], "the last state is seen")
    assert source.lists - before <= 20, "1,000 notices at once must not be 1,000 lists"


def test_broken_watch_is_listed_and_watched_again(running: Callable[[EndpointTable], EndpointTable]) -> None:
    source = Watching("w", payment("a", 81))
    live = running(table(source))
    eventually(source.watched.is_set, "the source is watched")
    source.watched.clear()
    source.instances = [payment("b", 82)]  # without a notice
    source.broken.set()
    eventually(lambda: ids(live.snapshot, "payment") == ["b"], "what was missed is listed")
    source.broken.clear()
    eventually(source.watched.is_set, "the source is watched again")


def test_stop_ends_every_thread_and_keeps_the_snapshot() -> None:
    live = table(Listing("one", payment("a")), Watching("two"))
    live.discovery.start(live)
    names = {thread.name for thread in threading.enumerate()}
    assert {"rgate-discovery-one", "rgate-discovery-two", "rgate-discovery-two-watch"} <= names
    live.discovery.stop()
    assert not [thread for thread in threading.enumerate() if thread.name in names and "rgate-discovery" in thread.name]
    assert ids(live.snapshot, "payment") == ["a"]


def test_stop_while_a_source_hangs_goes_on_and_drops_what_it_lists_later() -> None:
    source = Hanging("hanging", payment("a"))
    live = table(source, timing=Timing(start_timeout=0.0))
    live.discovery.start(live)
    assert source.began.wait(DEADLINE_SECONDS), "the source is not listed"
    thread = next(thread for thread in threading.enumerate() if thread.name == "rgate-discovery-hanging")
    live.discovery.stop()
    source.free.set()
    thread.join(DEADLINE_SECONDS)
    assert live.snapshot.sources["hanging"].listed_at is None
    assert ids(live.snapshot, "payment") == []


def test_table_can_be_started_again(running: Callable[[EndpointTable], EndpointTable]) -> None:
    source = Watching("w", payment("a", 81))
    live = running(table(source))
    live.discovery.stop()
    source.watched.clear()
    running(live)
    eventually(source.watched.is_set, "the source is watched again")
    source.instances = [payment("b", 82)]
    source.changed()
    eventually(lambda: ids(live.snapshot, "payment") == ["b"], "the notice is acted on")
