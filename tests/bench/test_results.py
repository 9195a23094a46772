"""Medians, and figures of earlier runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.results import NotMeasured, Results, summary

from .figures import RUN, small_table


def test_summary_of_rounds_is_the_median() -> None:
    assert summary([{"cpu_us": 30.0}, {"cpu_us": 10.0}, {"cpu_us": 11.0}]) == {"cpu_us": 11.0}


def test_summary_of_what_went_wrong_is_the_sum() -> None:
    assert summary([{"errors": 0, "timeouts": 1}, {"errors": 3, "timeouts": 0}]) == {"errors": 3, "timeouts": 1}


def test_summary_takes_the_worst_of_disturbances_and_lost_connections() -> None:
    assert summary([{"foreign_cores": 0.1, "held": 10}, {"foreign_cores": 0.9, "held": 4}]) == {"foreign_cores": 0.9, "held": 4}


def test_results_written_and_read_are_the_same(tmp_path: Path) -> None:
    results = small_table()
    results.write(tmp_path / "performance.json")

    assert Results.read(tmp_path / "performance.json") == results


def test_reading_without_a_file_gives_nothing(tmp_path: Path) -> None:
    assert Results.read(tmp_path / "performance.json").workloads == {}


def test_workload_begun_again_forgets_its_earlier_figures_only() -> None:
    results = small_table()
    results.begin("json-1", "one connection", RUN)
    results.add("json-1", "rgate", {"cpu_us": 1.0})
    results.begin("json-32", "small JSON", RUN)

    assert results.gateways("json-32") == []
    assert results.figure("json-1", "rgate", "cpu_us") == 1.0


@pytest.mark.parametrize(
    "asked", [("json-2", "rgate", "cpu_us"), ("json-32", "nginx", "cpu_us"), ("json-32", "traefik", "cpu_us")]
)
def test_figure_that_is_not_there_is_not_measured(asked: tuple[str, str, str]) -> None:
    with pytest.raises(NotMeasured, match=asked[1]):
        small_table().figure(*asked)
