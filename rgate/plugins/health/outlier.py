"""EndpointHealth: the state of one endpoint, and the rules of its ejection and its checks. No threads, no I/O.

healthy ── faults in a row, or too many of all ──→ ejected ── time over, and a probe succeeds ──→ half-open
  ↑                                                  ↑                                                │
  └── the trial request is answered ─────────────────┼────────────────────────────────────────────────┤
                                                     └── the trial request fails ─────────────────────┘
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from rgate import (
    SAFE_METHODS,
    BadGateway,
    ConnectionRefused,
    ConnectTimeout,
    Endpoint,
    Exchange,
    GatewayError,
    ResponseTimeout,
    Unreachable,
    UpstreamTruncated,
)

from .options import HealthOptions

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["MIN_WEIGHT_FACTOR", "EndpointHealth", "HealthListener", "HealthState"]

FAULTS: Final = (ConnectionRefused, Unreachable, ConnectTimeout, ResponseTimeout, BadGateway)

MIN_WEIGHT_FACTOR: Final = 1e-6
"""The weight factor of an endpoint that gets requests only when there is no other."""

SAFE_SECONDS: Final = 0.5
"""How long a half-open endpoint waits for a request that can be repeated elsewhere, before any other may be the trial."""


class HealthState(Enum):
    """The state of an endpoint, as drawn at the top of this module."""

    HEALTHY = "healthy"
    EJECTED = "ejected"
    HALF_OPEN = "half-open"


class HealthListener(Protocol):
    """Receives the changes of an EndpointHealth, whose lock is held during the call."""

    def may_eject(self, health: EndpointHealth) -> bool:
        """Whether one more endpoint of the backend may be ejected."""
        ...

    def on_ejected(self, health: EndpointHealth, why: str, seconds: float) -> None:
        """The endpoint must get no requests, and must be probed in so many seconds."""
        ...

    def on_half_open(self, health: EndpointHealth) -> None:
        """The endpoint must get trial requests."""
        ...

    def on_recovered(self, health: EndpointHealth) -> None:
        """The endpoint must get requests again."""
        ...

    def on_checks_changed(self, health: EndpointHealth, why: str | None) -> None:
        """The checks now fail because of `why`, or succeed (None)."""
        ...


class EndpointHealth:
    """The health of one endpoint; it outlives snapshots and reloads. While the endpoint is healthy and has not failed recently,
    its responses are not counted at all."""

    def __init__(self, listener: HealthListener, clock: Callable[[], float]) -> None:
        self._listener = listener
        self._clock = clock
        self._lock = threading.Lock()  # protects all below; it is taken before the endpoint table's lock, never after
        self.endpoint: Endpoint
        self.rules: HealthOptions
        self.state = HealthState.HEALTHY
        self.passing: bool | None = None  # the result of the checks; None before the first
        self.is_checked = False  # a next check is scheduled
        self.slow_start_since: float | None = None
        self._in_a_row = 0
        self._requests = self._faults = 0
        self._window_ends = 0.0
        self._ejections = 0  # in a row
        self._ejected_at = self._returned_at = self._half_open_since = float("-inf")
        self._trial: Exchange | None = None
        self._checks = 0  # in a row with a result other than `passing`

    def bind(self, endpoint: Endpoint, rules: HealthOptions) -> None:
        """Apply to this object of the endpoint and to these rules from now on. The table's lock is held."""
        self.endpoint, self.rules = endpoint, rules
        activity = endpoint.state
        activity.on_failure = self.on_fault if rules.max_ejected_percent else None
        if rules.count_5xx or self.state is not HealthState.HEALTHY:
            activity.on_response = self.on_response  # it removes itself when there is nothing left to count
        # self._lock is taken before the table's lock (_eject() excludes the endpoint), so it cannot be taken here. Every method
        # that changes the state writes `try_acquire_trial` after it, so an unchanged state means that the value is right.
        state: HealthState | None = None
        while state is not self.state:
            state = self.state
            activity.try_acquire_trial = self.try_acquire_trial if state is HealthState.HALF_OPEN else None

    def on_fault(self, exchange: Exchange, error: BaseException) -> None:
        """Count a failed attempt. Faults of the client and of the gateway itself are not the endpoint's and are not counted."""
        with self._lock:
            if isinstance(error, FAULTS):
                assert isinstance(error, GatewayError)
                self._count_failure(exchange, error.reason, isinstance(error, UpstreamTruncated))
            elif exchange is self._trial:
                self._trial = None

    def on_response(self, exchange: Exchange, status: int) -> None:
        """Count a response, whose head has arrived."""
        with self._lock:
            if status >= 500 and self.rules.count_5xx:
                self._count_failure(exchange, f"status {status}")
            elif self.state is HealthState.HEALTHY:
                self._in_a_row = 0
                self._requests += 1
                if self._clock() >= self._window_ends and not self.rules.count_5xx:
                    self.endpoint.state.on_response = None
            elif self.state is HealthState.HALF_OPEN and self._is_conclusive(exchange):
                self._recover()

    def try_acquire_trial(self, environ: WSGIEnvironment) -> bool:
        """Whether this request may be the trial: one at a time, and at first only requests that can be repeated elsewhere."""
        exchange = Exchange.of(environ)
        if exchange.attempts:
            return False  # it has failed at another endpoint already
        with self._lock:
            if self.state is not HealthState.HALF_OPEN or (self._trial is not None and not self._trial.finished):
                return False
            waits = self._clock() - self._half_open_since < SAFE_SECONDS and len(exchange.candidates) > 1
            if waits and environ["REQUEST_METHOD"] not in SAFE_METHODS:
                return False
            self._trial = exchange
            return True

    def on_probe(self, why: str | None) -> None:
        """Handle the probe at the end of an ejection: it failed because of `why`, or succeeded (None), so that a request may be
        tried."""
        with self._lock:
            if self.state is not HealthState.EJECTED:
                return
            if why is not None:
                self._eject(why)
                return
            self.state, self._half_open_since = HealthState.HALF_OPEN, self._clock()
            self.endpoint.state.try_acquire_trial = self.try_acquire_trial
            self._listener.on_half_open(self)

    def on_check(self, why: str | None) -> None:
        """Handle an active check, which failed because of `why`, or succeeded (None). The first one alone decides."""
        with self._lock:
            passes = why is None
            wanted = self.rules.healthy_threshold if passes else self.rules.unhealthy_threshold
            if passes is self.passing:
                self._checks = 0
                return
            self._checks += 1
            if self.passing is not None and self._checks < wanted:
                return
            was, self.passing, self._checks = self.passing, passes, 0
            if not (was is None and passes):
                self._listener.on_checks_changed(self, why)

    def _is_conclusive(self, exchange: Exchange) -> bool:
        """Whether the outcome of this exchange reflects the endpoint's current health: it began after the ejection."""
        return exchange is self._trial or exchange.started > self._ejected_at

    def _count_failure(self, exchange: Exchange, reason: str, has_responded: bool = False) -> None:
        if self.state is not HealthState.HEALTHY:
            if self.state is HealthState.HALF_OPEN and self._is_conclusive(exchange):
                self._eject(f"its trial: {reason}")
            return
        rules, now = self.rules, self._clock()
        if now >= self._window_ends:
            self._requests = self._faults = 0
            self._window_ends = now + rules.window_seconds
        self._faults += 1
        self._in_a_row += 1
        self._requests += not has_responded
        self.endpoint.state.on_response = self.on_response
        if rules.consecutive_faults and self._in_a_row >= rules.consecutive_faults:
            why = f"{self._in_a_row} faults in a row, the last: {reason}"
        elif rules.fault_percent and self._requests >= rules.min_requests and self._exceeds_fault_percent():
            why = f"{self._faults} of {self._requests} requests failed, the last: {reason}"
        else:
            return
        if self._listener.may_eject(self):
            self._eject(why)

    def _exceeds_fault_percent(self) -> bool:
        return self._faults * 100 >= self.rules.fault_percent * self._requests

    def _eject(self, why: str) -> None:
        rules, now = self.rules, self._clock()
        in_a_row = self.state is not HealthState.HEALTHY or now - self._returned_at < rules.window_seconds
        self._ejections = self._ejections + 1 if in_a_row else 1
        self.state, self._ejected_at, self._trial = HealthState.EJECTED, now, None
        self._in_a_row = self._requests = self._faults = 0
        activity = self.endpoint.state
        activity.on_response, activity.try_acquire_trial = self.on_response, None
        seconds = min(rules.max_eject_seconds, rules.eject_seconds * 2.0 ** min(self._ejections - 1, 32))
        self._listener.on_ejected(self, why, seconds)

    def _recover(self) -> None:
        self.state, self._returned_at, self._trial = HealthState.HEALTHY, self._clock(), None
        activity = self.endpoint.state
        activity.try_acquire_trial = None
        activity.on_response = self.on_response if self.rules.count_5xx else None
        self._listener.on_recovered(self)
