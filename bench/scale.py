"""How many machines a load takes: arithmetic on measured figures, nothing more."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .gateways import RGATE
from .results import NotMeasured, Results

__all__ = ["CORES", "LOADS", "UTILISATION", "machines", "scale"]

CORES = 64
UTILISATION = 0.6  # what is left is for peaks, and for the machines that are down
MEMORY_GB = 128  # of a machine's, for idle connections
KERNEL_KB = 4  # what a TCP socket, its file and its place in an epoll take of the kernel's memory, by the sizes in slabinfo
OPEN_CONNECTIONS = 1_000_000_000
WORKLOAD = "browser-32"
LOADS = (100_000, 1_000_000, 10_000_000, 100_000_000)
COMPARED = (RGATE, "nginx", "envoy", "traefik", "caddy", "aiohttp", "flask")


def machines(requests_per_second: float, cpu_us: float, efficiency: float = 1.0) -> int:
    """requests/s x CPU seconds per request / (cores x utilisation x efficiency), rounded up."""
    return math.ceil(requests_per_second * cpu_us / 1e6 / (CORES * UTILISATION * efficiency))


def efficiency(results: Results) -> float:
    """How much of two cores two workers make use of; 1 when it has not been measured."""
    try:
        return min(1.0, results.figure("workers", RGATE, "cpu_us") / results.figure("workers", "rgate-2-workers", "cpu_us"))
    except NotMeasured:
        return 1.0


def scale(results: Results) -> Iterator[str]:
    """The section as Markdown."""
    if WORKLOAD not in results.workloads:
        yield "Nothing has been measured yet: `make bench`."
        return
    own = efficiency(results)
    yield f"Assumed: {CORES} cores per machine, at a utilisation of {UTILISATION:.0%}; the CPU time per request of `{WORKLOAD}`,"
    yield f"where no head is found in a cache; an efficiency of {own:.2f} (`workers`) for rgate, and of 1.00 for all others."
    yield ""
    yield "| | CPU µs/request | " + " | ".join(f"{load:,}/s" for load in LOADS) + " |"
    yield "|---|--:|" + "--:|" * len(LOADS)
    for name in COMPARED:
        try:
            cpu_us = results.figure(WORKLOAD, name, "cpu_us")
        except NotMeasured:
            continue
        counts = [machines(load, cpu_us, own if name == RGATE else 1.0) for load in LOADS]
        yield f"| {name} | {cpu_us:.1f} | " + " | ".join(f"{count:,}" for count in counts) + " |"
    try:
        more_mb, held = (results.figure("idle-10k", RGATE, metric) for metric in ("more_mb", "held"))
    except NotMeasured:
        return
    each_kb = max(more_mb, 0) * 1024 / max(held, 1)
    per_machine = MEMORY_GB * 1024 * 1024 / (each_kb + KERNEL_KB)
    count = math.ceil(OPEN_CONNECTIONS / per_machine)
    yield ""
    yield f"An idle connection costs rgate {each_kb:.1f} kB ({more_mb:.0f} MB for {held:,.0f}) and the kernel about {KERNEL_KB},"
    yield f"so {MEMORY_GB} GB hold {per_machine:,.0f}: a billion open connections take {count:,} machines."
