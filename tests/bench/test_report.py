"""Tables, and the generated sections of docs/performance.md."""

from __future__ import annotations

import pytest

from bench.gateways import ROOT
from bench.report import LABELS, details, overview, sections, with_sections, workload_table
from bench.results import Results
from bench.workloads import WORKLOADS, Workload

from .figures import measured, small_table


def test_workload_table_compares_with_the_first_gateway() -> None:
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in workload_table(small_table(), "json-32")]

    assert rows[0][:4] == ["json-32", "CPU µs/request", "x rgate", "requests/s"]
    assert rows[2][:4] == ["rgate", "21.0", "1.00", "40,000"]
    assert rows[3][:4] == ["envoy", "42.0", "2.00", "20,000"]


def test_workload_table_names_a_gateway_that_failed() -> None:
    assert "| traefik | failed |" in "\n".join(workload_table(small_table(), "json-32"))


def test_workload_table_has_as_many_cells_in_every_row() -> None:
    assert len({row.count("|") for row in workload_table(small_table(), "json-32")}) == 1


def test_details_warn_of_a_machine_that_was_not_quiet() -> None:
    assert "Others used up to 0.40 cores" in "\n".join(details(small_table()))


def test_overview_of_nothing_says_how_to_measure() -> None:
    assert "make bench" in "\n".join(overview(Results()))


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=lambda workload: workload.name)
def test_every_figure_shown_has_a_heading(workload: Workload) -> None:
    assert set(workload.shown) <= LABELS.keys()


def test_document_shipped_has_a_place_for_every_section() -> None:
    document = (ROOT / "docs" / "performance.md").read_text()
    filled = with_sections(document, sections(measured()))

    assert "| small JSON, 32 connections: CPU per request | 1 x Envoy | ≤ 1 x Envoy | pass |" in filled
    assert with_sections(filled, sections(measured())) == filled, "filling it again changes it"


def test_document_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="'targets'"):
        with_sections("# Performance\n", {"targets": "text"})


def test_document_keeps_what_stands_outside_the_markers() -> None:
    document = "before\n<!-- begin: run -->\nold \\1\n<!-- end: run -->\nafter\n"

    assert with_sections(document, {"run": "new \\2"}) == "before\n<!-- begin: run -->\nnew \\2\n<!-- end: run -->\nafter\n"


def test_document_names_every_workload() -> None:
    document = (ROOT / "docs" / "performance.md").read_text()
    missing = [name for name in WORKLOADS if f"`{name}`" not in document and f"`{name.rsplit('-', 1)[0]}-N`" not in document]

    assert not missing, f"docs/performance.md does not explain {missing}"
