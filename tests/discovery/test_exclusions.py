"""Endpoints that are set aside and taken back: what the snapshot holds, and what is told."""

from __future__ import annotations

import logging
import threading

import pytest

from rgate import Backend, Endpoint
from rgate.discovery import EndpointTable, ExcludedEndpoint, Snapshot

from .sources import DEADLINE_SECONDS, PAYMENT, Hanging, Listing, ids, payment, table


@pytest.fixture
def source() -> Listing:
    return Listing("l", payment("a", 81), payment("b", 82))


@pytest.fixture
def live(source: Listing) -> EndpointTable:
    live = table(source)
    live.refresh()
    return live


def endpoint(live: EndpointTable, id: str) -> Endpoint:
    return next(endpoint for endpoint in live.snapshot.found["payment"] if endpoint.id == id)


def reasons(snapshot: Snapshot) -> dict[str, str]:
    return {aside.endpoint.id: str(aside) for aside in snapshot.excluded.get("payment", ())}


def test_set_aside_endpoint_leaves_the_candidates_until_it_is_taken_back(live: EndpointTable) -> None:
    a = endpoint(live, "a")
    before = live.snapshot
    live.exclude(a, "drain", "draining")
    assert ids(live.snapshot, "payment") == ["b"]
    assert live.snapshot.excluded["payment"] == (ExcludedEndpoint(a, {"drain": "draining"}),)
    assert [e.id for e in live.snapshot.found["payment"]] == ["a", "b"]
    live.readmit(a, "drain")
    assert live.snapshot.endpoints["payment"] is before.endpoints["payment"], "the same tuple as before"
    assert live.snapshot.excluded == {}
    assert live.snapshot.endpoints["payment"][0].state is a.state


def test_set_aside_by_two_is_back_when_both_have_taken_it_back(live: EndpointTable) -> None:
    a = endpoint(live, "a")
    live.exclude(a, "drain", "draining")
    live.exclude(a, "ejection", "ejected")
    assert reasons(live.snapshot) == {"a": "draining; ejected"}
    live.readmit(a, "drain")
    assert ids(live.snapshot, "payment") == ["b"]
    live.readmit(a, "drain")
    assert ids(live.snapshot, "payment") == ["b"], "taken back twice is taken back once"
    live.readmit(a, "ejection")
    assert ids(live.snapshot, "payment") == ["a", "b"]


def test_set_aside_all_leaves_none_but_last_resorts(live: EndpointTable) -> None:
    a, b = endpoint(live, "a"), endpoint(live, "b")
    live.exclude(a, "ejection", "ejected", last_resort=True)
    assert ids(live.snapshot, "payment") == ["b"], "a last resort is not used while there is another"
    live.exclude(b, "drain", "draining")
    assert ids(live.snapshot, "payment") == ["a"]
    live.exclude(a, "drain", "draining")
    assert ids(live.snapshot, "payment") == [], "not every caller says that it is a last resort"


def test_set_aside_on_trial_stays_among_the_candidates(live: EndpointTable) -> None:
    a = endpoint(live, "a")
    live.exclude(a, "ejection", "on trial", on_trial=True)
    assert ids(live.snapshot, "payment") == ["a", "b"]
    assert reasons(live.snapshot) == {"a": "on trial"}
    live.exclude(a, "drain", "draining")
    assert ids(live.snapshot, "payment") == ["b"]


def test_set_aside_outlives_lists_and_a_time_without_address(live: EndpointTable, source: Listing) -> None:
    live.exclude(endpoint(live, "a"), "drain", "draining")
    before = live.snapshot
    for instances in ([payment("a", 81), payment("b", 82), payment("c", 83)], [payment("a", reason="paused"), payment("b", 82)]):
        source.instances = instances
        live.refresh()
        assert "a" not in ids(live.snapshot, "payment")
    source.instances = [payment("a", 81), payment("b", 82)]
    live.refresh()
    assert reasons(live.snapshot) == {"a": "draining"}
    assert live.snapshot.endpoints["payment"] == before.endpoints["payment"]


def test_set_aside_is_forgotten_with_its_instance_and_with_its_address(live: EndpointTable, source: Listing) -> None:
    live.exclude(endpoint(live, "a"), "drain", "draining")
    source.instances = [payment("a", 91), payment("b", 82)]
    live.refresh()
    assert ids(live.snapshot, "payment") == ["a", "b"], "another address is another endpoint"
    source.instances = [payment("b", 82)]
    live.refresh()
    source.instances = [payment("a", 81), payment("b", 82)]
    live.refresh()
    assert ids(live.snapshot, "payment") == ["a", "b"], "what is gone altogether is forgotten"


def test_set_aside_is_kept_while_a_source_has_not_listed_yet() -> None:
    quick, slow = Listing("quick", payment("a", 81)), Hanging("slow")
    live = table(quick, slow)
    listing = threading.Thread(target=live.refresh)
    listing.start()
    assert slow.began.wait(DEADLINE_SECONDS)
    live.exclude(endpoint(live, "a"), "drain", "draining")
    quick.instances = []
    live.watchers["quick"].list_once()
    quick.instances = [payment("a", 81)]
    live.watchers["quick"].list_once()
    slow.free.set()
    listing.join(DEADLINE_SECONDS)
    assert reasons(live.snapshot) == {"a": "draining"}


def test_set_aside_holds_for_every_backend_of_the_endpoint() -> None:
    both = table(Listing("l", payment("a")), backends=[PAYMENT, Backend("other", (("env", "production"),))])
    both.refresh()
    both.exclude(both.snapshot.found["payment"][0], "drain", "draining")
    assert (both.snapshot.endpoints["payment"], both.snapshot.endpoints["other"]) == ((), ())


def test_set_aside_is_told_like_what_discovery_finds(
    live: EndpointTable, source: Listing, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    live.on_change(lambda changes: told.extend(map(str, changes)))
    a = endpoint(live, "a")
    with caplog.at_level(logging.INFO, "rgate.discovery.changes"):
        live.exclude(a, "ejection", "ejected: 5 faults in a row")
        live.exclude(a, "ejection", "on trial", on_trial=True)
        live.exclude(a, "drain", "draining")
        live.readmit(a, "ejection")
        live.readmit(a, "drain")
    assert told == [
        "backend payment: - name-of-a http://127.0.0.1:81 (ejected: 5 faults in a row)",
        "backend payment: + name-of-a http://127.0.0.1:81",
    ], "once out and once back, however many callers and calls there are"
    assert caplog.messages == told
    told.clear()
    live.exclude(a, "drain", "draining")
    source.instances = [payment("b", 82)]
    live.refresh()
    assert told == ["backend payment: - name-of-a http://127.0.0.1:81 (draining)"], "what was out cannot go once more"


def test_set_aside_endpoint_that_comes_back_is_told_as_not_usable(live: EndpointTable, source: Listing) -> None:
    live.exclude(endpoint(live, "a"), "drain", "draining")
    source.instances = [payment("a", reason="paused"), payment("b", 82)]
    live.refresh()
    told: list[str] = []
    live.on_change(lambda changes: told.extend(map(str, changes)))
    source.instances = [payment("a", 81), payment("b", 82)]
    live.refresh()
    assert told == ["backend payment: name-of-a is not usable: draining"]


def test_on_swap_is_called_at_once_and_with_every_new_snapshot(live: EndpointTable, source: Listing) -> None:
    seen: list[list[str]] = []
    live.on_snapshot(lambda snapshot: seen.append(ids(snapshot, "payment")))
    a = endpoint(live, "a")
    live.exclude(a, "drain", "draining")
    live.exclude(a, "drain", "draining")
    source.instances = [payment("a", 81), payment("b", 82, colour="blue")]
    live.refresh()
    live.refresh()
    live.weights_changed()
    assert seen == [["a", "b"], ["b"], ["b"], ["b"]], "without news there is no new snapshot; new labels make one"


def test_on_swap_callback_that_raises_stops_nothing(live: EndpointTable, caplog: pytest.LogCaptureFixture) -> None:
    def broken(snapshot: Snapshot) -> None:
        raise RuntimeError("broken callback")

    live.on_snapshot(broken)
    live.exclude(endpoint(live, "a"), "drain", "draining")
    assert ids(live.snapshot, "payment") == ["b"]
    assert caplog.text.count("RuntimeError: broken callback") == 2
