"""The figures of a run, and of earlier ones: performance.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

__all__ = ["NotMeasured", "Results", "summary"]

Metrics = Mapping[str, float]

SUMMED = frozenset({"errors", "timeouts", "lost"})  # one bad answer in any round counts
LARGEST = frozenset({"foreign_cores"})
SMALLEST = frozenset({"held"})
DIGITS = 4


class NotMeasured(Exception):
    """There is no such figure."""


def summary(rounds: Sequence[Metrics]) -> dict[str, float]:
    """One figure for each metric of all rounds: the median; the sum of what went wrong."""
    told: dict[str, float] = {}
    for name in rounds[0]:
        values = [metrics[name] for metrics in rounds]
        if name in SUMMED:
            told[name] = sum(values)
        elif name in LARGEST or name in SMALLEST:
            told[name] = max(values) if name in LARGEST else min(values)
        else:
            told[name] = statistics.median(values)
    return told


@dataclass
class Results:
    """What has been measured, by workload and gateway.

    Workloads of a later run take the place of the same ones of an earlier run. A workload's figures are always of one run:
    only these may be compared.
    """

    workloads: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What a file holds; nothing if there is none."""
        return cls(json.loads(path.read_text())["workloads"]) if path.exists() else cls()

    def write(self, path: Path) -> None:
        """Put all of it into a file."""
        path.write_text(json.dumps({"workloads": self.workloads}, indent=1, ensure_ascii=False) + "\n")

    def begin(self, workload: str, what: str, run: Mapping[str, Any]) -> None:
        """Forget what an earlier run has measured of this workload. `run` says on what and how it is measured."""
        self.workloads[workload] = {"what": what, "run": dict(run), "gateways": {}}

    def add(self, workload: str, gateway: str, metrics: Metrics) -> None:
        """One more round."""
        entry = self.workloads[workload]["gateways"].setdefault(gateway, {"median": {}, "rounds": []})
        entry["rounds"].append({name: float(f"{value:.{DIGITS}g}") if value % 1 else value for name, value in metrics.items()})
        entry["median"] = summary(entry["rounds"])

    def fail(self, workload: str, gateway: str, why: str) -> None:
        """The gateway could not be measured."""
        self.workloads[workload]["gateways"][gateway] = {"failed": why, "median": {}, "rounds": []}

    def gateways(self, workload: str) -> list[str]:
        """Who was measured, in order."""
        return list(self.workloads.get(workload, {}).get("gateways", {}))

    def figure(self, workload: str, gateway: str, metric: str) -> float:
        """One figure over all rounds. Raises NotMeasured."""
        try:
            figure: float = self.workloads[workload]["gateways"][gateway]["median"][metric]
        except KeyError:
            raise NotMeasured(f"{workload}: no {metric} of {gateway}") from None
        return figure
