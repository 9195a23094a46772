"""query: ?by= and ?since= in the words of a person."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgate import QueryError
from rgate.plugins.stats.query import BY, Query

from .traffic import NOON, NOON_MINUTE


def test_query_without_words_asks_for_everything() -> None:
    assert Query.parse("", NOON) == Query((), None)


@pytest.mark.parametrize("name", BY)
def test_by_takes_each_name(name: str) -> None:
    assert Query.parse(f"by={name}", NOON).by == (name,)


@pytest.mark.parametrize("other", ["endpoint", "status"])
def test_by_plugin_goes_with_what_is_known_of_plugins_only(other: str) -> None:
    assert Query.parse("by=plugin,route,backend", NOON).by == ("plugin", "route", "backend")
    with pytest.raises(QueryError, match="allowed with route and backend only"):
        Query.parse(f"by={other},plugin", NOON)


@pytest.mark.parametrize("query", ["by=route,status", "by=route&by=status", "by=route%2Cstatus", "by=route,status,route"])
def test_by_takes_several_names_in_their_order(query: str) -> None:
    assert Query.parse(query, NOON).by == ("route", "status")


@pytest.mark.parametrize(
    ("since", "minutes_ago"), [("0s", 0), ("59s", 1), ("60s", 1), ("15m", 15), ("1h", 60), ("7d", 10_080), ("999999999d", None)]
)
def test_since_a_duration_is_the_minute_it_began_in(since: str, minutes_ago: int | None) -> None:
    expected = 0 if minutes_ago is None else NOON_MINUTE - minutes_ago
    assert Query.parse(f"since={since}", NOON).since_minute == expected


@pytest.mark.parametrize(
    "since",
    [
        "2027-01-15T12:00:00Z",
        "2027-01-15T12:00:59",
        "2027-01-15T12:00",
        "2027-01-15+12:00",
        "2027-01-15T14:00:00%2B02:00",
        "2027-01-15T14:00:00+02:00",
        "2027-01-15T10:00:00-02:00",
    ],
)
def test_since_a_time_is_its_minute(since: str) -> None:
    assert Query.parse(f"since={since}", NOON + 3600).since_minute == NOON_MINUTE


def test_since_a_day_is_its_first_minute() -> None:
    assert Query.parse("since=2027-01-15", NOON).since_minute == NOON_MINUTE - 720


@pytest.mark.parametrize("since", ["1900-01-01", "0001-01-01T00:00:00%2B23:00"])
def test_since_before_1970_is_1970(since: str) -> None:
    assert Query.parse(f"since={since}", NOON).since_minute == 0


def test_since_of_a_clock_that_is_a_little_fast_is_now() -> None:
    assert Query.parse("since=2027-01-15T12:01:00Z", NOON).since_minute == NOON_MINUTE


@pytest.mark.parametrize("since", ["2027-01-15T12:01:01Z", "2099-01-01"])
def test_since_in_the_future_is_refused(since: str) -> None:
    with pytest.raises(QueryError, match=f"since={since} is in the future; allowed is .*7d"):
        Query.parse(f"since={since}", NOON)


def test_since_that_is_beyond_all_times_is_refused() -> None:
    with pytest.raises(QueryError, match=r"cannot be read|is in the future"):
        Query.parse("since=9999-12-31T23:59:59-14:00", NOON)


@pytest.mark.parametrize("since", ["", "1", "h", "-1h", "1w", "1.5h", "yesterday", "1h30m", "2027-02-30", "\u0661h"])
def test_since_that_cannot_be_read_is_refused_with_what_can(since: str) -> None:
    with pytest.raises(QueryError, match=r"since=.*cannot be read; allowed is .*7d.*ISO 8601"):
        Query.parse(f"since={since}", NOON)


def test_since_twice_is_refused() -> None:
    with pytest.raises(QueryError, match="since is given twice"):
        Query.parse("since=1h&since=2h", NOON)


@pytest.mark.parametrize("by", ["", "colour", "Route", "route,", "route;status"])
def test_by_that_is_not_known_is_refused_with_what_is(by: str) -> None:
    with pytest.raises(QueryError, match="allowed are route, backend, endpoint, status"):
        Query.parse(f"by={by}", NOON)


def test_word_that_is_not_known_is_refused_with_what_is() -> None:
    with pytest.raises(QueryError, match="sicne is not known; allowed are by and since"):
        Query.parse("sicne=1h", NOON)


_names = st.one_of(st.sampled_from(BY), st.text(max_size=8))
_since = st.one_of(
    st.builds("{}{}".format, st.integers(0, 10**12), st.sampled_from("smhdx")),
    st.datetimes().map(lambda moment: moment.isoformat()),
    st.text(max_size=12),
)
_pairs = st.one_of(
    st.tuples(st.just("by"), st.lists(_names, max_size=5).map(",".join)),
    st.tuples(st.just("since"), _since),
    st.tuples(st.text(max_size=4), st.text(max_size=4)),
)


@given(st.lists(_pairs, max_size=3))
def test_any_query_is_read_or_refused(pairs: list[tuple[str, str]]) -> None:
    try:
        query = Query.parse(urlencode(pairs), NOON)
    except QueryError:
        return
    asked = [name for key, value in pairs if key == "by" for name in value.split(",")]
    assert set(query.by) == set(asked) and set(asked) <= set(BY)
    assert (query.since_minute is not None) == any(key == "since" for key, _ in pairs)
    assert query.since_minute is None or 0 <= query.since_minute <= NOON_MINUTE


@given(st.lists(st.sampled_from(["route", "backend", "endpoint", "status"]), min_size=1), st.integers(0, 10**8))
def test_query_of_known_words_is_always_read(names: list[str], minutes: int) -> None:
    query = Query.parse(f"by={','.join(names)}&since={minutes}m", NOON)
    assert query == Query(tuple(dict.fromkeys(names)), max(0, NOON_MINUTE - minutes))
