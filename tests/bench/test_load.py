"""The output of wrk, read."""

from __future__ import annotations

import pytest

from bench.load import read_figures

WRITTEN = """Running 4s test @ http://127.0.0.1:1/
  1 threads and 32 connections

figures {"requests": 80000, "bytes": 1, "microseconds": 4000000, "p50_us": 512, "p99_us": 1500, \
"connect": 1, "read": 2, "write": 4, "status": 8, "timeout": 16}
"""


def test_figures_written_by_wrk_are_read_with_their_units() -> None:
    figures = read_figures(WRITTEN)

    assert (figures.requests, figures.seconds, figures.p50_ms, figures.p99_ms) == (80_000, 4.0, 0.512, 1.5)


def test_errors_are_summed_and_timeouts_stand_apart() -> None:
    figures = read_figures(WRITTEN)

    assert (figures.errors, figures.timeouts) == (15, 16)


def test_output_without_figures_is_told_with_what_wrk_said() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        read_figures("", "unable to connect to 127.0.0.1:1")
