"""The table of promises."""

from __future__ import annotations

import pytest

from bench.results import Results
from bench.targets import PLAN, TARGETS, Target
from bench.workloads import WORKLOADS

from .figures import measured


@pytest.mark.parametrize(
    ("figure", "at_least", "met"), [(1.0, False, True), (1.1, False, False), (1.0, True, True), (0.9, True, False)]
)
def test_target_is_met_up_to_its_limit(figure: float, at_least: bool, met: bool) -> None:
    assert Target("work", lambda _: figure, 1.0, at_least=at_least).judge(Results()).met is met


def test_target_without_figures_is_not_measured_and_not_met() -> None:
    verdicts = [target.judge(Results()) for target in TARGETS]

    assert {verdict.word for verdict in verdicts} == {"not measured"}
    assert not any(verdict.met for verdict in verdicts)


def test_plan_measures_all_that_targets_need() -> None:
    results = measured(10.0, direct=1.0)
    missing = [target.work for target in TARGETS if target.judge(results).figure is None]

    assert not missing


def test_plan_is_of_workloads_that_there_are() -> None:
    assert PLAN.keys() <= WORKLOADS.keys()


def test_middleware_is_the_difference_of_twenty_and_five() -> None:
    assert figure_of("each further no-op middleware", measured(rgate=20.0, rgate_5=30.0, rgate_20=37.5)) == pytest.approx(0.5)


def test_two_workers_at_the_same_cost_are_twice_as_fast() -> None:
    assert figure_of("two workers on two cores", measured(rgate=20.0, rgate_2_workers=20.0)) == pytest.approx(2.0)


def test_latency_is_what_is_added_to_the_backend() -> None:
    assert figure_of("p50 added", measured(direct=1.0, rgate=3.0, traefik=5.0)) == pytest.approx(0.5)


def figure_of(work: str, results: Results) -> float:
    """The figure of the one target that is called so."""
    (target,) = (target for target in TARGETS if work in target.work)
    return target.figure(results)
