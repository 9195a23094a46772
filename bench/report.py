"""Results as Markdown: tables, and the generated sections of docs/performance.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from .results import NotMeasured, Results
from .scale import scale
from .targets import TARGETS, Verdict
from .workloads import WORKLOADS

__all__ = ["OVERVIEW", "details", "overview", "sections", "targets", "with_sections", "workload_table"]

# metric: (heading, format)
LABELS: Mapping[str, tuple[str, str]] = {
    "cpu_us": ("CPU µs/request", "{:,.1f}"),
    "requests_per_second": ("requests/s", "{:,.0f}"),
    "p50_ms": ("p50 ms", "{:,.2f}"),
    "p99_ms": ("p99 ms", "{:,.2f}"),
    "rss_mb": ("RSS MB", "{:,.0f}"),
    "pss_mb": ("Pss MB", "{:,.0f}"),
    "errors": ("errors", "{:,.0f}"),
    "timeouts": ("timeouts", "{:,.0f}"),
    "all_answered_seconds": ("all answered s", "{:,.2f}"),
    "threads_before": ("threads before", "{:,.0f}"),
    "threads_at_end": ("threads at the end", "{:,.0f}"),
    "threads_after": ("threads afterwards", "{:,.0f}"),
    "shrink_seconds": ("after s", "{:,.1f}"),
    "more_mb": ("more MB", "{:,.1f}"),
    "more_threads": ("more threads", "{:,.0f}"),
    "held": ("held", "{:,.0f}"),
    "lost": ("lost", "{:,.0f}"),
    "cpu_us_before": ("without", "{:,.1f}"),
    "p99_ms_before": ("without", "{:,.2f}"),
    "start_seconds": ("first answer s", "{:,.2f}"),
    "processes": ("processes", "{:,.0f}"),
    "threads": ("threads", "{:,.0f}"),
    "down_more_mb": ("down: more MB", "{:,.1f}"),
    "up_more_mb": ("up: more MB", "{:,.1f}"),
    "down_seconds": ("down s", "{:,.2f}"),
    "up_seconds": ("up s", "{:,.2f}"),
}

OVERVIEW = ("json-32", "json-256", "heads-32", "browser-32", "connect", "post-10k", "down-1m", "up-1m", "stream")


def workload_table(results: Results, name: str) -> Iterator[str]:
    """One workload: a row for each gateway; the first column of figures is compared with the first gateway's."""
    entry = results.workloads[name]
    shown = WORKLOADS[name].shown if name in WORKLOADS else tuple(LABELS)
    gateways = results.gateways(name)
    primary = shown[0]
    headings = [LABELS[metric][0] for metric in shown]
    headings.insert(1, f"x {gateways[0]}" if gateways else "ratio")
    yield f"| {name} | " + " | ".join(headings) + " |"
    yield "|---|" + "--:|" * len(headings)
    for gateway in gateways:
        why = entry["gateways"][gateway].get("failed")
        if why:
            yield f"| {gateway} | " + " | ".join(["failed", *[""] * (len(headings) - 1)]) + " |"
            continue
        cells = [_cell(results, name, gateway, metric) for metric in shown]
        cells.insert(1, _ratio(results, name, gateway, gateways[0], primary))
        yield f"| {gateway} | " + " | ".join(cells) + " |"


def overview(results: Results) -> Iterator[str]:
    """CPU time per request, gateways down, workloads across."""
    across = [name for name in OVERVIEW if name in results.workloads]
    gateways = list(dict.fromkeys(chain.from_iterable(map(results.gateways, across))))
    if not across:
        yield "Nothing has been measured yet: `make bench`."
        return
    yield "| CPU µs/request (x rgate) | " + " | ".join(across) + " |"
    yield "|---|" + "--:|" * len(across)
    for gateway in gateways:
        cells = []
        for name in across:
            first = results.gateways(name)[0]
            cells.append(f"{_cell(results, name, gateway, 'cpu_us')} ({_ratio(results, name, gateway, first, 'cpu_us')})")
        yield f"| {gateway} | " + " | ".join(cell.replace("- (-)", "-") for cell in cells) + " |"
    yield ""
    yield "![CPU time per request](performance.svg)"


def targets(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """What is promised, and whether it holds."""
    yield "| work | figure | at most / at least | |"
    yield "|---|--:|--:|---|"
    for verdict in verdicts:
        target = verdict.target
        figure = "-" if verdict.figure is None else f"{_short(verdict.figure)} {target.unit}".strip()
        sign = "≥" if target.at_least else "≤"
        yield f"| {target.work} | {figure} | {sign} {_short(target.limit)} {target.unit}".rstrip() + f" | {verdict.word} |"


def details(results: Results) -> Iterator[str]:
    """All tables, with how each was measured."""
    yield "# All figures"
    yield ""
    yield "Written by `make bench`; [performance.md](performance.md) says how to read them. The ratio is that of the column"
    yield "before it. Figures are medians of all rounds; errors and timeouts are sums."
    for name in (name for name in WORKLOADS if name in results.workloads):
        entry = results.workloads[name]
        yield ""
        yield f"## {name}"
        yield ""
        yield f"{entry['what']}. {_how(entry['run'])}{_foreign(results, name)}"
        yield ""
        yield from workload_table(results, name)


def sections(results: Results) -> dict[str, str]:
    """The generated sections of docs/performance.md by name."""
    runs = [entry["run"] for entry in results.workloads.values()]
    return {
        "overview": "\n".join(overview(results)),
        "targets": "\n".join(targets([target.judge(results) for target in TARGETS])),
        "scale": "\n".join(scale(results)),
        "run": "\n".join(_of_run(runs[-1])) if runs else "",
    }


def with_sections(document: str, texts: Mapping[str, str]) -> str:
    """The document with what stands between its markers replaced. Raises ValueError when a marker is missing."""
    for name, text in texts.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(document):
            raise ValueError(f"the document has no place for {name!r}: {begin} … {end}")
        filled = f"{begin}\n{text}\n{end}"
        document = pattern.sub(lambda _, filled=filled: filled, document)  # type: ignore[misc]
    return document


def _cell(results: Results, workload: str, gateway: str, metric: str) -> str:
    try:
        return LABELS[metric][1].format(results.figure(workload, gateway, metric))
    except NotMeasured:
        return "-"


def _ratio(results: Results, workload: str, gateway: str, first: str, metric: str) -> str:
    try:
        return f"{results.figure(workload, gateway, metric) / results.figure(workload, first, metric):.2f}"
    except (NotMeasured, ZeroDivisionError):
        return "-"


def _short(figure: float) -> str:
    return f"{figure:,.0f}" if figure == round(figure) or abs(figure) >= 100 else f"{figure:.2f}"


def _how(run: Mapping[str, object]) -> str:
    return f"Rounds: {run['rounds']}, of {run['seconds']} s; {run['date']}, rgate {run['rgate']}."


def _foreign(results: Results, workload: str) -> str:
    busiest = 0.0
    for entry in results.workloads[workload]["gateways"].values():
        busiest = max(busiest, entry["median"].get("foreign_cores", 0.0))
    return f" **Others used up to {busiest:.2f} cores meanwhile: measure again on a quiet machine.**" if busiest > 0.1 else ""


def _of_run(run: Mapping[str, object]) -> Iterable[str]:
    versions = run["versions"]
    assert isinstance(versions, Mapping)
    yield f"{run['date']}: {run['cpu']}, {run['cores']} cores, Linux {run['kernel']}, Python {run['python']}."
    yield f"rgate {run['rgate']}, " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."
