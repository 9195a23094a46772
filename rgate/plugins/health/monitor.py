"""HealthMonitor: the health of all endpoints; it excludes and readmits them, probes them, and slows their start."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Final, Protocol

from rgate import Address, Endpoint, Gateway, GatewayError, Snapshot

from .options import OFF, HealthOptions
from .outlier import MIN_WEIGHT_FACTOR, EndpointHealth, HealthState
from .scheduler import Scheduler

__all__ = ["HealthMonitor", "Jobs"]

EJECTION, CHECK = "ejection", "check"  # by whom an endpoint is excluded
RAMP_SECONDS: Final = 0.25
MIN_SHARE: Final = 0.1
CONNECT_SECONDS: Final = 1.0


class Jobs(Protocol):
    """The methods of Scheduler that HealthMonitor uses."""

    def start(self) -> None:
        """Start running jobs."""
        ...

    def call_later(self, seconds: float, job: Callable[[], object]) -> None:
        """Call `job()` in so many seconds."""
        ...

    def stop(self) -> None:
        """Stop running jobs."""
        ...


class HealthMonitor:
    """Watches the endpoints of the active gateway; one object for all gateways that a process has in its life.

    It is entered and left as the lifespan of the plugin. When it is left, it readmits all that it excluded. `clock`, `random` and
    `jobs` are replaced in tests.

    Locks: each EndpointHealth has one, which is taken before the lock of the endpoint table. `_ramp_lock` protects `_ramping` and
    the slow start of all endpoints; no other lock is taken while it is held. `_endpoints` is changed under the table's lock and
    by jobs; each change is a single dict operation, which is atomic under the interpreter's lock.
    """

    def __init__(
        self,
        clock: Callable[[], float] = monotonic,
        random: Callable[[], float] = random.random,
        jobs: Callable[[], Jobs] = Scheduler,
    ) -> None:
        self._clock, self._random = clock, random
        self._jobs = jobs()
        self._gateway: Gateway
        self._rules: dict[str, HealthOptions] = {}
        self._endpoints: dict[tuple[str, Address], EndpointHealth] = {}
        self._ramping = False  # _ramp() is scheduled
        self._ramp_lock = threading.Lock()
        self._begun = False  # endpoints that are there from the beginning have no slow start

    def __enter__(self) -> HealthMonitor:
        self._jobs.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._jobs.stop()
        for health in self._endpoints.values():
            state = health.endpoint.state
            state.on_failure = state.on_response = state.try_acquire_trial = None
            state.weight_factor = 1.0
            for by in (EJECTION, CHECK):
                self._gateway.table.readmit(health.endpoint, by)
        self._gateway.table.weights_changed()

    def on_snapshot(self, gateway: Gateway, snapshot: Snapshot) -> None:
        """Watch the endpoints of a new snapshot of the current gateway. Discovery's lock is held."""
        self._gateway = gateway
        self._rules = {b.name: gateway.options("health", backend=b) or OFF for b in gateway.backends.values()}
        seen: set[tuple[str, Address]] = set()
        for backend, endpoints in snapshot.found.items():
            for endpoint in endpoints:
                if endpoint.key not in seen:  # an endpoint of several backends has the rules of the first
                    seen.add(endpoint.key)
                    self._watch(endpoint, self._rules[backend])
        for key, health in list(self._endpoints.items()):
            if key not in seen and health.state is HealthState.HEALTHY and health.passing is not False:
                self._endpoints.pop(key, None)  # the others are forgotten by their next job
        self._begun = self._begun or bool(seen)

    def _watch(self, endpoint: Endpoint, rules: HealthOptions) -> None:
        health = self._endpoints.get(endpoint.key)
        before = health.rules if health else None
        if health is None:
            health = self._endpoints[endpoint.key] = EndpointHealth(self, self._clock)
        elif health.endpoint is endpoint and before == rules:
            return
        health.bind(endpoint, rules)
        if before is None and self._begun and rules.slow_start_seconds:
            self._start_slowly(health)
            self._jobs.call_later(0.0, self._update_weights)
        if rules.path and not health.is_checked:
            health.is_checked = True
            self._jobs.call_later(
                self._random() * min(rules.interval_seconds, 1.0) if self._begun else 0.0, partial(self._check, health)
            )

    # The methods of HealthListener.

    def may_eject(self, health: EndpointHealth) -> bool:
        """Whether one more endpoint of the backend may be ejected; one always may."""
        backend = self._gateway.table.snapshot.found.get(health.endpoint.backend, ())
        known = [self._endpoints.get(endpoint.key) for endpoint in backend]
        ejected = sum(
            1 for other in known if other is not None and other is not health and other.state is not HealthState.HEALTHY
        )
        return ejected + 1 <= max(1, int(len(backend) * health.rules.max_ejected_percent / 100))

    def on_ejected(self, health: EndpointHealth, why: str, seconds: float) -> None:
        """Exclude the endpoint, and probe it in so many seconds, at random up to a tenth earlier."""
        health.endpoint.state.weight_factor = MIN_WEIGHT_FACTOR
        self._exclude(health, EJECTION, f"ejected: {why}")
        self._jobs.call_later(seconds * (1 - self._random() / 10), partial(self._end_ejection, health))

    def on_half_open(self, health: EndpointHealth) -> None:
        """Let trial requests through; other requests only if there is no other endpoint and the rules allow it."""
        health.endpoint.state.weight_factor = MIN_WEIGHT_FACTOR if health.rules.on_all_unhealthy == "use_all" else 0.0
        self._exclude(health, EJECTION, "on trial", on_trial=True)

    def on_recovered(self, health: EndpointHealth) -> None:
        """Readmit the endpoint, with a slow start if the rules have one."""
        self._start_slowly(health)
        self._gateway.table.readmit(health.endpoint, EJECTION)

    def on_checks_changed(self, health: EndpointHealth, why: str | None) -> None:
        """Exclude or readmit the endpoint."""
        if why is not None:
            self._exclude(health, CHECK, f"check failed: {why}")
            return
        if health.state is HealthState.HEALTHY:
            self._start_slowly(health)
        self._gateway.table.readmit(health.endpoint, CHECK)

    def _exclude(self, health: EndpointHealth, by: str, reason: str, *, on_trial: bool = False) -> None:
        anyway = health.rules.on_all_unhealthy == "use_all"
        self._gateway.table.exclude(health.endpoint, by, reason, last_resort=anyway, on_trial=on_trial)

    # Jobs.

    def _end_ejection(self, health: EndpointHealth) -> None:
        """Probe an endpoint at the end of its ejection."""
        if self._is_gone(health):
            self._gateway.table.readmit(health.endpoint, EJECTION)
            self._forget(health)
        else:
            health.on_probe(self._probe(health))

    def _check(self, health: EndpointHealth) -> None:
        """Do one active check, and schedule the next."""
        if self._endpoints.get(health.endpoint.key) is not health:
            return
        if health.rules.path is None or self._is_gone(health):
            self._gateway.table.readmit(health.endpoint, CHECK)
            health.is_checked, health.passing = False, None
            if health.state is HealthState.HEALTHY and self._is_gone(health):
                self._forget(health)
            return
        began = self._clock()
        health.on_check(self._probe(health))
        pause = health.rules.interval_seconds * (0.9 + self._random() / 5)
        self._jobs.call_later(max(0.0, pause - (self._clock() - began)), partial(self._check, health))

    def _forget(self, health: EndpointHealth) -> None:
        if self._endpoints.get(health.endpoint.key) is health:
            self._endpoints.pop(health.endpoint.key, None)

    def _probe(self, health: EndpointHealth) -> str | None:
        """Probe the endpoint: connect to it, or GET its `path`. The reason why that failed; None if it succeeded."""
        rules = health.rules
        try:
            if rules.path is None:
                self._gateway.probe(health.endpoint, seconds=CONNECT_SECONDS)
                return None
            status = self._gateway.probe(health.endpoint, rules.path, rules.headers, rules.timeout_seconds)
        except GatewayError as error:
            return error.reason
        return None if rules.expects(status) else f"status {status}"

    def _is_gone(self, health: EndpointHealth) -> bool:
        found = self._gateway.table.snapshot.found
        return not any(endpoint.key == health.endpoint.key for endpoints in found.values() for endpoint in endpoints)

    # Slow start.

    def _start_slowly(self, health: EndpointHealth) -> None:
        """Give a new or recovered endpoint a small share at first, if its rules have a slow start."""
        if not health.rules.slow_start_seconds:
            health.slow_start_since, health.endpoint.state.weight_factor = None, 1.0
            return
        with self._ramp_lock:
            health.slow_start_since, health.endpoint.state.weight_factor = self._clock(), MIN_SHARE
            due, self._ramping = self._ramping, True
        if not due:
            self._jobs.call_later(RAMP_SECONDS, self._ramp)

    def _ramp(self) -> None:
        """Raise the shares of all endpoints in slow start, every quarter of a second."""
        with self._ramp_lock:
            now, more = self._clock(), False
            for health in list(self._endpoints.values()):
                if health.slow_start_since is not None and health.state is HealthState.HEALTHY:
                    share = (now - health.slow_start_since) / (health.rules.slow_start_seconds or 1.0)
                    health.endpoint.state.weight_factor = min(1.0, max(MIN_SHARE, share))
                    if share < 1:
                        more = True
                    else:
                        health.slow_start_since = None
            self._ramping = more
        if more:
            self._jobs.call_later(RAMP_SECONDS, self._ramp)
        else:
            self._update_weights()

    def _update_weights(self) -> None:
        self._gateway.table.weights_changed()
