"""report: from sums to the answer of `/stats`."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgate import PluginError
from rgate.plugins.stats.pending import LOST, NO_BUCKET
from rgate.plugins.stats.query import Query, QueryError
from rgate.plugins.stats.report import Reading, Report, Sums, report
from rgate.plugins.stats.trouble import Trouble

from .traffic import NOON_MINUTE, counted

EMPTY = {"requests_count": {"success": 0, "error": 0}, "latency_ms": {"average": 0.0, "p95": 0.0, "p99": 0.0}}


def test_report_of_nothing_is_zeros_and_nothing_else() -> None:
    assert Report(Query()).json() == EMPTY


@pytest.mark.parametrize(("status", "success"), [(101, 1), (200, 1), (304, 1), (399, 1), (400, 0), (404, 0), (503, 0), (599, 0)])
def test_success_is_up_to_399(status: int, success: int) -> None:
    answer = Report(Query())
    answer.add_unsaved([counted(status=status)])
    assert answer.json()["requests_count"] == {"success": success, "error": 1 - success}


def test_average_is_exact_and_percentiles_are_within_one_percent() -> None:
    answer = Report(Query())
    answer.add_unsaved([counted(range(1, 101))])
    latency = answer.json()["latency_ms"]
    assert latency["average"] == 50.5
    assert (latency["p95"], latency["p99"]) == (pytest.approx(95, rel=0.01), pytest.approx(99, rel=0.01))


def test_stored_and_unsaved_counts_add_up() -> None:
    answer = Report(Query())
    answer.add_reading(Reading(None, [Sums((), 500, 2, 1, 0, 0), Sums((), NO_BUCKET, 0, 0, 0, 3_000)], None))
    answer.add_unsaved([counted([5])])
    assert answer.json()["requests_count"] == {"success": 3, "error": 1}
    assert answer.json()["latency_ms"]["average"] == 2.0


def test_groups_are_sorted_and_nameless_ones_are_null() -> None:
    answer = Report(Query(("route", "status")))
    answer.add_unsaved(
        [counted([4], route="/b"), counted(route="", status=404), counted(route="/a", status=500), counted(route="/a")]
    )
    groups = answer.json()["groups"]
    assert [(group["route"], group["status"]) for group in groups] == [(None, 404), ("/a", 200), ("/a", 500), ("/b", 200)]
    assert groups[3] == {
        "route": "/b",
        "status": 200,
        "requests_count": {"success": 1, "error": 0},
        "latency_ms": {"average": 4.0, "p95": pytest.approx(4, rel=0.01), "p99": pytest.approx(4, rel=0.01)},
    }


def test_groups_of_nothing_are_none() -> None:
    assert Report(Query(("route",))).json() == {**EMPTY, "groups": []}


def test_since_leaves_out_what_is_older_and_is_shown() -> None:
    answer = Report(Query(since_minute=NOON_MINUTE))
    answer.add_unsaved([counted(minute=NOON_MINUTE - 1), counted(minute=NOON_MINUTE, status=500)])
    assert answer.json()["requests_count"] == {"success": 0, "error": 1}
    assert answer.json()["since"] == "2027-01-15T12:00:00Z"


def test_since_shown_is_where_the_database_begins() -> None:
    answer = Report(Query(since_minute=NOON_MINUTE + 5))
    answer.add_reading(Reading(NOON_MINUTE, [], None))
    assert answer.json()["since"] == "2027-01-15T12:00:00Z"


def test_losses_are_shown_and_in_no_count() -> None:
    answer = Report(Query(("route",)))
    answer.add_reading(Reading(None, [Sums(("",), 0, 0, 0, 5, 0)], None))
    answer.add_unsaved([counted(status=LOST), counted([1, 1])])
    assert answer.json()["storage"] == {"state": "ok", "lost": 6, "unsaved": 2}
    assert answer.json()["requests_count"] == {"success": 2, "error": 0}
    assert [group["route"] for group in answer.json()["groups"]] == ["/api/orders"]


def test_trouble_and_a_new_beginning_are_shown() -> None:
    answer = Report(Query())
    begun = {"at": "2027-01-15T12:00:00+00:00", "because": "the counts had vanished"}
    answer.add_reading(Reading(None, [], begun))
    answer.state = "locked"
    assert answer.json()["storage"] == {"state": "locked", "lost": 0, "unsaved": 0, "begun": begun}


@given(st.lists(st.tuples(st.sampled_from([101, 200, 404, 503, LOST]), st.floats(0, 1e9))))
def test_any_report_is_valid_json_that_adds_up(exchanges: list[tuple[int, float]]) -> None:
    answer = Report(Query(("status",)))
    answer.add_unsaved([counted([ms], status=status) for status, ms in exchanges])
    read = json.loads(json.dumps(answer.json(), allow_nan=False))
    counts = read["requests_count"]
    assert counts["success"] + counts["error"] + read.get("storage", {"lost": 0})["lost"] == len(exchanges)
    for kind in ("success", "error"):
        assert sum(group["requests_count"][kind] for group in read["groups"]) == counts[kind]


def test_report_of_a_database_that_is_not_there_says_so(tmp_path: object) -> None:
    with pytest.raises(Trouble, match=r"there is no .*none\.db"):
        report(f"sqlite:///{tmp_path}/none.db")


def test_report_by_what_is_not_known_is_refused(tmp_path: object) -> None:
    with pytest.raises(QueryError, match="by=plugin is not known"):
        report(f"sqlite:///{tmp_path}/none.db", by=["plugin"])


def test_report_of_another_kind_of_database_is_refused() -> None:
    with pytest.raises(PluginError, match="oracle is none of sqlite, postgresql"):
        report("oracle://host/name")
