"""Made-up figures."""

from __future__ import annotations

from bench.gateways import RGATE
from bench.results import Results
from bench.targets import PLAN
from bench.workloads import WORKLOADS

RUN = {
    "date": "2026-01-31",
    "rounds": 3,
    "seconds": 4,
    "rgate": "1.0",
    "cpu": "a CPU",
    "cores": 2,
    "kernel": "6.1",
    "python": "3.11",
    "versions": {"envoy": "1.2"},
}
EXTRA = {"json-1": ("p50_ms",)}


def measured(value: float = 10.0, **by_gateway: float) -> Results:
    """One round of every planned workload in which each gateway has the same value for every metric."""
    results = Results()
    for name, chosen in PLAN.items():
        results.begin(name, WORKLOADS[name].what, RUN)
        for gateway in WORKLOADS[name].gateways(chosen):
            figure = by_gateway.get(gateway.replace("-", "_"), value)
            results.add(name, gateway, {metric: figure for metric in WORKLOADS[name].shown})
    return results


def small_table() -> Results:
    """Two gateways, two rounds of json-32; envoy takes twice as much as rgate; traefik failed."""
    results = Results()
    results.begin("json-32", "small JSON", RUN)
    for cpu_us in (20.0, 22.0):
        results.add("json-32", RGATE, {"cpu_us": cpu_us, "requests_per_second": 40_000.0, "errors": 1, "foreign_cores": 0.02})
        results.add(
            "json-32", "envoy", {"cpu_us": 2 * cpu_us, "requests_per_second": 20_000.0, "errors": 0, "foreign_cores": 0.4}
        )
    results.fail("json-32", "traefik", "no port")
    return results
