"""report: from sums to the answer of `/stats`."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgate import PluginError, QueryError
from rgate.plugins.stats.aggregator import NO_BUCKET, Kind
from rgate.plugins.stats.query import Query
from rgate.plugins.stats.report import QueryResult, Report, StorageError, TrafficRow, report

from .traffic import NOON_MINUTE, counted

EMPTY = {"requests_count": {"success": 0, "error": 0}, "latency_ms": {"average": 0.0, "p95": 0.0, "p99": 0.0}}


def test_report_of_nothing_is_zeros_and_nothing_else() -> None:
    assert Report(Query()).json() == EMPTY


@pytest.mark.parametrize(("status", "success"), [(101, 1), (200, 1), (304, 1), (399, 1), (400, 0), (404, 0), (503, 0), (599, 0)])
def test_success_is_up_to_399(status: int, success: int) -> None:
    answer = Report(Query())
    answer.add_unsaved([counted(status=status)])
    assert answer.json()["requests_count"] == {"success": success, "error": 1 - success}


def test_client_that_has_left_is_neither_success_nor_error_and_in_no_latency() -> None:
    answer = Report(Query(("status",)))
    answer.add_saved(
        QueryResult(None, [TrafficRow((499,), NO_BUCKET, client_closed=2), TrafficRow((200,), 500, success=1, sum_us=3_000)])
    )
    answer.add_unsaved([counted([70_000], status=499)])
    whole = answer.json()
    assert whole["requests_count"] == {"success": 1, "error": 0, "client_closed": 3}
    assert whole["latency_ms"]["average"] == 3.0
    assert [(group["status"], group["requests_count"].get("client_closed")) for group in whole["groups"]] == [
        (200, None),
        (499, 3),
    ]


def test_average_is_exact_and_percentiles_are_within_one_percent() -> None:
    answer = Report(Query())
    answer.add_unsaved([counted(range(1, 101))])
    latency = answer.json()["latency_ms"]
    assert latency["average"] == 50.5
    assert (latency["p95"], latency["p99"]) == (pytest.approx(95, rel=0.01), pytest.approx(99, rel=0.01))


def test_stored_and_unsaved_counts_add_up() -> None:
    answer = Report(Query())
    answer.add_saved(QueryResult(None, [TrafficRow((), 500, success=2, errors=1), TrafficRow((), NO_BUCKET, sum_us=3_000)]))
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
    answer.add_saved(QueryResult(NOON_MINUTE))
    assert answer.json()["since"] == "2027-01-15T12:00:00Z"


def test_losses_are_shown_and_in_no_count() -> None:
    answer = Report(Query(("route",)))
    answer.add_saved(QueryResult(None, [TrafficRow(("",), 0, lost=5)]))
    answer.add_unsaved([counted(kind=Kind.LOST), counted([1, 1])])
    assert answer.json()["storage"] == {"state": "ok", "lost": 6, "unsaved": 2}
    assert answer.json()["requests_count"] == {"success": 2, "error": 0}
    assert [group["route"] for group in answer.json()["groups"]] == ["/api/orders"]


def test_trouble_and_a_new_beginning_are_shown() -> None:
    answer = Report(Query())
    begun = {"at": "2027-01-15T12:00:00+00:00", "because": "the counts had vanished"}
    answer.add_saved(QueryResult(None, begun=begun))
    answer.state = "locked"
    assert answer.json()["storage"] == {"state": "locked", "lost": 0, "unsaved": 0, "begun": begun}


RETRIES = (
    counted([1, 2, 3], status=200),
    counted([0, 0], endpoint="", kind=Kind.RETRIED),  # two requests, of two and of three attempts
    counted([0, 0, 0], endpoint="", kind=Kind.RETRY),
    counted([9], route="/b", backend="b", status=503),
    counted([0], route="/b", backend="b", endpoint="", kind=Kind.RETRIED),
    counted([0], route="/b", backend="b", endpoint="", kind=Kind.RETRY),
)


def test_retries_are_shown_by_route_and_backend_where_more_is_asked_for() -> None:
    for by in (("route",), ("backend",), ("route", "backend")):
        answer = Report(Query(by))
        answer.add_unsaved(RETRIES)
        shown = answer.json()
        assert shown["retries"] == {"requests": 3, "attempts": 7}
        retries = [tuple(group["retries"].values()) for group in shown["groups"]]
        assert sorted(retries) == [(1, 2), (2, 5)]
        assert shown["requests_count"] == {"success": 3, "error": 1} and shown["latency_ms"]["average"] == 3.75


@pytest.mark.parametrize("by", [("endpoint",), ("status",), ("route", "status")])
def test_retries_are_in_the_total_only_where_a_request_has_several_values(by: tuple[str, ...]) -> None:
    answer = Report(Query(by))
    answer.add_unsaved(RETRIES)
    shown = answer.json()
    assert shown["retries"] == {"requests": 3, "attempts": 7}
    assert len(shown["groups"]) == (1 if by == ("endpoint",) else 2)
    assert not [group for group in shown["groups"] if "retries" in group]


def test_retries_are_not_in_the_plain_report_and_not_where_there_are_none() -> None:
    plain, none = Report(Query()), Report(Query(("route",)))
    plain.add_unsaved(RETRIES)
    none.add_unsaved([counted()])
    assert "retries" not in plain.json()
    assert "retries" not in none.json() and "retries" not in none.json()["groups"][0]


def test_time_in_plugins_is_shown_by_plugin_and_in_no_other_report() -> None:
    times = [
        counted([1, 3], endpoint="auth", kind=Kind.PLUGIN),
        counted([5], endpoint="auth", route="/b", backend="b", kind=Kind.PLUGIN),
        counted([7], endpoint="limit", kind=Kind.PLUGIN),
    ]
    answer = Report(Query(("plugin",)))
    answer.add_unsaved([*times, counted([10])])
    shown = answer.json()
    assert [(group["plugin"], group["count"], group["latency_ms"]["average"]) for group in shown["groups"]] == [
        ("auth", 3, 3.0),
        ("limit", 1, 7.0),
    ]
    assert shown["groups"][0]["latency_ms"]["p99"] == pytest.approx(5, rel=0.01)
    assert shown["requests_count"] == {"success": 1, "error": 0}
    by_route = Report(Query(("plugin", "route")))
    by_route.add_unsaved(times)
    assert [(group["plugin"], group["route"], group["count"]) for group in by_route.json()["groups"]] == [
        ("auth", "/api/orders", 2), ("auth", "/b", 1), ("limit", "/api/orders", 1),
    ]  # fmt: skip
    other = Report(Query(("route",)))
    other.add_unsaved(times)
    assert other.json() == {**EMPTY, "groups": []}


@given(st.lists(st.tuples(st.sampled_from([101, 200, 404, 503, None]), st.floats(0, 1e9))))
def test_any_report_is_valid_json_that_adds_up(exchanges: list[tuple[int | None, float]]) -> None:
    answer = Report(Query(("status",)))
    answer.add_unsaved(
        counted([ms], kind=Kind.LOST) if status is None else counted([ms], status=status) for status, ms in exchanges
    )
    read = json.loads(json.dumps(answer.json(), allow_nan=False))
    counts = read["requests_count"]
    assert counts["success"] + counts["error"] + read.get("storage", {"lost": 0})["lost"] == len(exchanges)
    for kind in ("success", "error"):
        assert sum(group["requests_count"][kind] for group in read["groups"]) == counts[kind]


def test_report_of_a_database_that_is_not_there_says_so(tmp_path: object) -> None:
    with pytest.raises(StorageError, match=r"there is no .*none\.db"):
        report(f"sqlite:///{tmp_path}/none.db")


def test_report_by_what_is_not_known_is_refused(tmp_path: object) -> None:
    with pytest.raises(QueryError, match="by=colour is not known"):
        report(f"sqlite:///{tmp_path}/none.db", by=["colour"])


def test_report_of_another_kind_of_database_is_refused() -> None:
    with pytest.raises(PluginError, match="oracle is not one of sqlite, postgresql"):
        report("oracle://host/name")
