"""What rgate promises about its speed, each as one figure with a limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .gateways import RGATE
from .results import NotMeasured, Results

__all__ = ["PLAN", "TARGETS", "Target", "Verdict"]

Figure = Callable[[Results], float]
_THREE = (RGATE, "envoy", "traefik")
_ALONE = (RGATE,)

# The workloads that TARGETS look at, and the gateways that they need there.
PLAN: Mapping[str, tuple[str, ...]] = {
    "json-1": _THREE,
    "json-32": _THREE,
    "json-256": _THREE,
    "json-1000": _THREE,
    "post-10k": _THREE,
    "down-1m": _THREE,
    "up-1m": _THREE,
    "middlewares": _ALONE,
    "statistics": _ALONE,
    "slow-256": _ALONE,
    "workers": _ALONE,
    "idle-10k": _ALONE,
    "start": _ALONE,
    "gigabyte": _ALONE,
}


@dataclass(frozen=True)
class Verdict:
    """A target and what was measured; `figure` is None when it was not."""

    target: Target
    figure: float | None

    @property
    def met(self) -> bool:
        """Whether the figure is within the limit."""
        if self.figure is None:
            return False
        return self.figure >= self.target.limit if self.target.at_least else self.figure <= self.target.limit

    @property
    def word(self) -> str:
        """For a table."""
        return "not measured" if self.figure is None else "pass" if self.met else "**fail**"


@dataclass(frozen=True)
class Target:
    """One promise: `figure` is at most `limit`, or at least."""

    work: str
    figure: Figure
    limit: float
    unit: str = ""
    at_least: bool = False

    def judge(self, results: Results) -> Verdict:
        """Hold it against what was measured."""
        try:
            return Verdict(self, self.figure(results))
        except (NotMeasured, ZeroDivisionError):
            return Verdict(self, None)


def _of(workload: str, metric: str, gateway: str = RGATE) -> Figure:
    return lambda results: results.figure(workload, gateway, metric)


def _against(workload: str, metric: str, other: str) -> Figure:
    return lambda results: results.figure(workload, RGATE, metric) / results.figure(workload, other, metric)


def _added_p50(results: Results) -> float:
    """What rgate adds to the median latency of the backend itself, against what Traefik adds."""
    direct = results.figure("json-1", "direct", "p50_ms")
    return (results.figure("json-1", RGATE, "p50_ms") - direct) / (results.figure("json-1", "traefik", "p50_ms") - direct)


def _each_middleware(results: Results) -> float:
    cpu_us = [results.figure("middlewares", name, "cpu_us") for name in ("rgate-5", "rgate-20")]
    return (cpu_us[1] - cpu_us[0]) / 15


def _statistics(results: Results) -> float:
    return results.figure("statistics", RGATE, "cpu_us") - results.figure("statistics", "rgate-no-stats", "cpu_us")


def _speed_up(results: Results) -> float:
    """Two workers do in a second of both cores what one on a core like these needs so many seconds for."""
    return 2 * results.figure("workers", RGATE, "cpu_us") / results.figure("workers", "rgate-2-workers", "cpu_us")


def _bad(workload: str) -> Figure:
    return lambda results: results.figure(workload, RGATE, "errors") + results.figure(workload, RGATE, "timeouts")


def _threads_left(results: Results) -> float:
    return results.figure("slow-256", RGATE, "threads_after") - results.figure("slow-256", RGATE, "threads_before")


def _idle_bad(results: Results) -> float:
    missing = 10_000 - results.figure("idle-10k", RGATE, "held")
    return missing + results.figure("idle-10k", RGATE, "lost") + results.figure("idle-10k", RGATE, "errors")


def _idle_harm(metric: str) -> Figure:
    return lambda results: results.figure("idle-10k", RGATE, metric) / results.figure("idle-10k", RGATE, f"{metric}_before")


def _further_worker(results: Results) -> float:
    return results.figure("start", "rgate-3-workers", "pss_mb") - results.figure("start", "rgate-2-workers", "pss_mb")


TARGETS = (
    Target("small JSON, 32 connections: CPU per request", _against("json-32", "cpu_us", "envoy"), 1.0, "x Envoy"),
    Target("small JSON, 256 connections: CPU per request", _against("json-256", "cpu_us", "envoy"), 1.0, "x Envoy"),
    Target("small JSON, 32 connections: CPU per request", _against("json-32", "cpu_us", "traefik"), 0.70, "x Traefik"),
    Target("small JSON, 256 connections: CPU per request", _against("json-256", "cpu_us", "traefik"), 0.60, "x Traefik"),
    Target("small JSON, 32 connections: p99", _against("json-32", "p99_ms", "traefik"), 1.0, "x Traefik"),
    Target("small JSON, 256 connections: p99", _against("json-256", "p99_ms", "traefik"), 1.0, "x Traefik"),
    Target("small JSON, 1 connection: p50 added to the backend's", _added_p50, 1.0, "x Traefik"),
    Target("1,000 connections: errors and timeouts", _bad("json-1000"), 0),
    Target("1,000 connections: requests per second", _against("json-1000", "requests_per_second", "envoy"), 1.0, "x Envoy", True),
    Target("POST of 10 kB: CPU per request", _against("post-10k", "cpu_us", "traefik"), 0.75, "x Traefik"),
    Target("1 MB down: throughput", _against("down-1m", "requests_per_second", "traefik"), 1.0, "x Traefik", True),
    Target("1 MB up: throughput", _against("up-1m", "requests_per_second", "traefik"), 1.0, "x Traefik", True),
    Target("1 MB down: throughput", _against("down-1m", "requests_per_second", "envoy"), 0.9, "x Envoy", True),
    Target("1 MB up: throughput", _against("up-1m", "requests_per_second", "envoy"), 0.9, "x Envoy", True),
    Target("each further no-op middleware", _each_middleware, 1.0, "µs"),
    Target("statistics on, against off", _statistics, 1.5, "µs"),
    Target("256 in flight to a backend that takes 1 s: all answered", _of("slow-256", "all_answered_seconds"), 2.5, "s"),
    Target("256 in flight to a backend that takes 1 s: errors", _of("slow-256", "errors"), 0),
    Target("256 in flight, afterwards: more threads than before", _threads_left, 0),
    Target("two workers on two cores, against one on each, by CPU accounting", _speed_up, 1.8, "x one", True),
    Target("10,000 idle connections: more memory", _of("idle-10k", "more_mb"), 60, "MB"),
    Target("10,000 idle connections: more threads", _of("idle-10k", "more_threads"), 0),
    Target("10,000 idle connections: lost, and other requests that failed", _idle_bad, 0),
    Target("10,000 idle connections: CPU of other requests", _idle_harm("cpu_us"), 1.1, "x without"),
    Target("10,000 idle connections: p99 of other requests", _idle_harm("p99_ms"), 1.5, "x without"),
    Target("memory at rest, one worker (RSS)", _of("start", "rss_mb"), 75, "MB"),
    Target("memory at rest, each further worker (Pss)", _further_worker, 30, "MB"),
    Target("start-up to the first answer", _of("start", "start_seconds"), 1.0, "s"),
    Target("1 GiB down: more memory", _of("gigabyte", "down_more_mb"), 32, "MiB"),
    Target("1 GiB up: more memory", _of("gigabyte", "up_more_mb"), 32, "MiB"),
)
