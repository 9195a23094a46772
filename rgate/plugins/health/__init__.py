"""health: an endpoint that keeps failing gets no requests until it is well again.

    backends:
      - name: orders
        match_labels: [app_name=orders]
        health:
          consecutive_faults: 5        # default; and half of 20 or more requests within ten seconds
          path: /health                # default: no checks
          slow_start_seconds: 20       # default: a fresh endpoint gets its whole share at once

Passive: faults are counted where they happen, so a good request is not even looked at while nothing has failed of late. An
endpoint with too many is ejected for a moment (circuit breaking is that, and nothing else). Then it is connected to, or asked
for `path` where there is one, and only if that works a request is risked: one at a time, such as can be sent again elsewhere
before others, until one is answered. Each ejection in a row lasts longer.

Active: with a `path` every endpoint is asked for it again and again, by a few threads, on connections of their own.

When all endpoints are bad they are tried all the same (`on_all_unhealthy: use_all`), or the answer is 503 (`fail`).
Every worker process looks for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial

from rgate import Config, ConfigProblem, ConfigSection, Gateway, hookimpl

from .monitor import Health
from .options import HealthOptions

__all__ = ["Health"]

CHECK_OPTIONS = ("interval_seconds", "timeout_seconds", "expected_status", "headers", "healthy_threshold", "unhealthy_threshold")


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("health", HealthOptions, per_backend=True)


@hookimpl
def rgate_check_config(config: Config) -> Iterator[ConfigProblem]:
    """Times that do not go together, and options of checks where there are none."""
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
    health = gateway.resource("health", None, Health)
    gateway.table.on_snapshot(partial(health.look_at, gateway))
    return health
