"""health: an endpoint that keeps failing gets no requests until it has recovered.

    backends:
      - name: orders
        match_labels: [app_name=orders]
        health:
          consecutive_faults: 5        # default; also when half of 20 or more requests within ten seconds fail
          path: /health                # default: no checks
          slow_start_seconds: 20       # default: a new endpoint gets its whole share at once

Passive: faults are counted where they happen; responses are not counted while nothing has failed recently. An endpoint with too
many faults is ejected for some seconds, longer for each ejection in a row; this is what others call circuit breaking. When the
ejection is over, rgate probes the endpoint: it connects to it, or sends GET `path` if there is one. If that succeeds, the
endpoint is half-open: requests are let through one at a time, at first only those that can be repeated elsewhere, until one is
answered.

Active: an endpoint with a `path` is checked by GET at an interval, by a few threads on connections of their own.

If all endpoints are bad, they are tried anyway (`on_all_unhealthy: use_all`), or the answer is 503 (`fail`). Every worker process
watches endpoints by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial

from rgate import Config, ConfigProblem, ConfigSection, Gateway, hookimpl

from .monitor import HealthMonitor
from .options import HealthOptions

__all__ = ["HealthMonitor"]

CHECK_OPTIONS = ("interval_seconds", "timeout_seconds", "expected_status", "headers", "healthy_threshold", "unhealthy_threshold")


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("health", HealthOptions, per_backend=True)


@hookimpl
def rgate_check_config(config: Config) -> Iterator[ConfigProblem]:
    """Contradictory times, and options of checks without a `path`."""
    for path, health in _sections(config):
        if health.max_eject_seconds < health.eject_seconds:
            message = f"less than eject_seconds, which is {health.eject_seconds:g}"
            yield ConfigProblem((*path, "max_eject_seconds"), message)
        if health.path is None:
            for key in CHECK_OPTIONS:
                if key in health.model_fields_set:
                    yield ConfigProblem((*path, key), "has no effect without path, which is what checks request")


def _sections(config: Config) -> Iterator[tuple[tuple[str | int, ...], HealthOptions]]:
    """The options and where they stand: globally, and in backends that have some."""
    if (options := config.options("health")) is not None:
        yield ("plugins", "health"), options
    for index, backend in enumerate(config.backends):
        if (options := backend.options.get("health")) is not None:
            yield ("backends", index, "health"), options


@hookimpl
def rgate_lifespan(gateway: Gateway) -> AbstractContextManager[object]:
    health = gateway.resource("health", None, HealthMonitor)
    gateway.table.on_snapshot(partial(health.on_snapshot, gateway))
    return health
