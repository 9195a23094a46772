"""The overview as a picture."""

from __future__ import annotations

import contextlib
import textwrap
from pathlib import Path
from typing import Any

from .gateways import RGATE
from .report import OVERVIEW
from .results import NotMeasured, Results
from .workloads import WORKLOADS

__all__ = ["draw"]

LONGEST = 4.0  # a bar that is longer than so many times rgate's is cut off and says how long it is
COLUMNS = 3


def draw(results: Results, folder: Path) -> bool:
    """Write performance.svg and performance.png; False when there is nothing to draw. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "rgate"  # the same figures give the same file
    from matplotlib import pyplot

    names = [name for name in OVERVIEW if _figures(results, name)]
    if not names:
        return False
    rows = -(-len(names) // COLUMNS)
    most = max(len(_figures(results, name)) for name in names)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(13, rows * (0.9 + 0.27 * most)), squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        _bars(axis, results, name)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    figure.suptitle("CPU time of the gateway per request, µs (less is better)", fontsize=13)
    figure.tight_layout()
    figure.savefig(folder / "performance.svg", metadata={"Date": None})
    figure.savefig(folder / "performance.png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return True


def _figures(results: Results, workload: str) -> dict[str, float]:
    figures: dict[str, float] = {}
    for gateway in results.gateways(workload):
        with contextlib.suppress(NotMeasured):
            figures[gateway] = results.figure(workload, gateway, "cpu_us")
    return figures


def _bars(axis: Any, results: Results, workload: str) -> None:
    figures = _figures(results, workload)
    longest = min(LONGEST * figures.get(RGATE, max(figures.values())), max(figures.values()))
    names, values = list(figures), list(figures.values())
    axis.barh(names, [min(value, longest) for value in values], color=["#c2410c" if n == RGATE else "#94a3b8" for n in names])
    for row, value in enumerate(values):
        axis.text(
            min(value, longest) + longest * 0.01, row, f"{value:,.0f}{' →' if value > longest else ''}", va="center", fontsize=8
        )
    axis.set_xlim(0, longest * 1.16)
    axis.invert_yaxis()
    axis.set_title(textwrap.fill(f"{workload}: {WORKLOADS[workload].what}", 58), fontsize=8, loc="left")
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
