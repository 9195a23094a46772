"""histogram: buckets, merging, percentiles."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgate.plugins.stats.histogram import buckets, count_into, middle_seconds, percentiles_seconds

seconds = st.floats(min_value=1e-7, max_value=1e6)
percents = st.integers(min_value=1, max_value=100)


def histogram(latencies: list[float]) -> dict[int, int]:
    half_buckets: Counter[int] = Counter()
    count_into(half_buckets, latencies)
    return buckets(half_buckets)


def nearest_rank(latencies: list[float], percent: int) -> float:
    return sorted(latencies)[math.ceil(percent * len(latencies) / 100) - 1]


@given(seconds)
def test_middle_is_within_one_percent_of_what_is_in_the_bucket(latency: float) -> None:
    [bucket] = histogram([latency])
    assert middle_seconds(bucket) == pytest.approx(latency, rel=0.01)


@given(st.lists(seconds, min_size=1, max_size=300), percents)
def test_percentile_is_within_one_percent_of_the_exact_one(latencies: list[float], percent: int) -> None:
    [found] = percentiles_seconds(histogram(latencies), [percent])
    assert found == pytest.approx(nearest_rank(latencies, percent), rel=0.01)


@given(st.lists(seconds), st.lists(seconds))
def test_histograms_merge_by_adding(some: list[float], others: list[float]) -> None:
    assert Counter(histogram(some)) + Counter(histogram(others)) == Counter(histogram(some + others))


@given(st.lists(seconds, min_size=1))
def test_every_latency_is_counted_once(latencies: list[float]) -> None:
    assert sum(histogram(latencies).values()) == len(latencies)


@given(seconds, seconds)
def test_order_of_buckets_is_that_of_latencies(one: float, other: float) -> None:
    [lower], [higher] = histogram([min(one, other)]), histogram([max(one, other)])
    assert lower <= higher


def test_octave_has_64_buckets() -> None:
    assert len(histogram([1 + at / 4096 for at in range(4096)])) == 64


def test_no_time_at_all_is_zero() -> None:
    [bucket] = histogram([0.0])
    assert middle_seconds(bucket) == pytest.approx(0, abs=1e-30)


def test_percentiles_of_nothing_are_zero() -> None:
    assert percentiles_seconds({}, (95, 99)) == [0.0, 0.0]


def test_percentiles_of_one_are_that_one() -> None:
    assert percentiles_seconds(histogram([0.25]), (50, 95, 99)) == [pytest.approx(0.25, rel=0.01)] * 3


def test_percentiles_of_a_hundred_are_by_nearest_rank() -> None:
    found = percentiles_seconds(histogram([at / 1000 for at in range(1, 101)]), (95, 99))
    assert found == [pytest.approx(0.095, rel=0.01), pytest.approx(0.099, rel=0.01)]
