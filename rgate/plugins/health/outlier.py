"""What is known of one endpoint, and what follows from it: the rules of ejection and of checks. No threads, no I/O.

well ── faults in a row, or too many of all ──→ ejected ── time over, and it can be connected to ──→ on trial
  ↑                                                ↑                                                  │
  └── its trial request is answered ───────────────┼──────────────────────────────────────────────────┤
                                                   └── the trial request fails ───────────────────────┘
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, Protocol

from rgate import (
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

__all__ = ["FAINT", "HealthListener", "Record"]

FAULTS: Final = (ConnectionRefused, Unreachable, ConnectTimeout, ResponseTimeout, BadGateway)
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

FAINT: Final = 1e-6
"""The share of an endpoint that is to get requests only when there is no other."""

SAFE_SECONDS: Final = 0.5
"""How long a trial waits for a request that can be sent again elsewhere, before it takes any other."""


class HealthListener(Protocol):
    """What a record calls when something follows from it; its endpoint's lock is held."""

    def may_eject(self, record: Record) -> bool:
        """Whether one more endpoint of the backend may be ejected."""
        ...

    def ejected(self, record: Record, why: str, seconds: float) -> None:
        """The endpoint is to get no requests, and is to be looked at again in so many seconds."""
        ...

    def tried(self, record: Record) -> None:
        """The endpoint is to get trial requests."""
        ...

    def returned(self, record: Record) -> None:
        """The endpoint is to get requests again."""
        ...

    def checked(self, record: Record, why: str | None) -> None:
        """The checks have begun to fail, and why; or to succeed (None)."""
        ...


class Record:
    """One endpoint's record, kept over snapshots and reloads. While the endpoint is well and nothing has failed of late, its
    responses are not even looked at."""

    def __init__(self, warden: HealthListener, clock: Callable[[], float]) -> None:
        self._warden = warden
        self._clock = clock
        self._lock = threading.Lock()
        self.endpoint: Endpoint
        self.rules: HealthOptions
        self.state: Literal["well", "ejected", "on trial"] = "well"
        self.passing: bool | None = None  # what the checks say; None before the first
        self.is_checked = False  # a next check is due
        self.fresh_since: float | None = None
        self._in_a_row = 0
        self._requests = self._faults = 0
        self._window_ends = 0.0
        self._ejections = 0  # in a row
        self._ejected_at = self._returned_at = self._on_trial_since = float("-inf")
        self._trial: Exchange | None = None
        self._checks = 0  # of one outcome in a row

    def follow(self, endpoint: Endpoint, rules: HealthOptions) -> None:
        """Be the record of this endpoint, by these rules, from now on. The table's lock is held."""
        self.endpoint, self.rules = endpoint, rules
        activity = endpoint.state
        activity.on_failure = self.fault if rules.max_ejected_percent else None
        if rules.count_5xx or self.state != "well":
            activity.on_response = self.response  # which removes itself when there is nothing left to count
        # The record's lock comes before the table's (_eject() sets the endpoint aside), so it cannot be taken here. Whoever
        # changes the state writes `try_acquire_trial` after it: when the state is still the same, so is what it asks for.
        state: str | None = None
        while state is not self.state:
            state = self.state
            activity.try_acquire_trial = self.try_acquire_trial if state == "on trial" else None

    def fault(self, exchange: Exchange, error: BaseException) -> None:
        """An attempt has failed. What is the client's fault, or the gateway's own, says nothing about the endpoint."""
        with self._lock:
            if isinstance(error, FAULTS):
                assert isinstance(error, GatewayError)
                self._failed(exchange, error.reason, isinstance(error, UpstreamTruncated))
            elif exchange is self._trial:
                self._trial = None

    def response(self, exchange: Exchange, status: int) -> None:
        """The head of a response has come."""
        with self._lock:
            if status >= 500 and self.rules.count_5xx:
                self._failed(exchange, f"status {status}")
            elif self.state == "well":
                self._in_a_row = 0
                self._requests += 1
                if self._clock() >= self._window_ends and not self.rules.count_5xx:
                    self.endpoint.state.on_response = None
            elif self.state == "on trial" and self._tells(exchange):
                self._return()

    def try_acquire_trial(self, environ: WSGIEnvironment) -> bool:
        """Whether this request is to be the trial: one at a time, and at first only such as can be sent again elsewhere."""
        exchange = Exchange.of(environ)
        if exchange.attempts:
            return False  # it has met one bad endpoint already
        with self._lock:
            if self.state != "on trial" or (self._trial is not None and not self._trial.finished):
                return False
            waits = self._clock() - self._on_trial_since < SAFE_SECONDS and len(exchange.candidates) > 1
            if waits and environ["REQUEST_METHOD"] not in SAFE:
                return False
            self._trial = exchange
            return True

    def looked_at(self, why: str | None) -> None:
        """The time of an ejection is over, and the endpoint has been asked outside of traffic: it fails because of `why`, or it
        answers (None), so that a request may be risked."""
        with self._lock:
            if self.state != "ejected":
                return
            if why is not None:
                self._eject(why)
                return
            self.state, self._on_trial_since = "on trial", self._clock()
            self.endpoint.state.try_acquire_trial = self.try_acquire_trial
            self._warden.tried(self)

    def check(self, why: str | None) -> None:
        """An active check has failed because of `why`, or succeeded (None). The first one decides alone."""
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
                self._warden.checked(self, why)

    def _tells(self, exchange: Exchange) -> bool:
        """Whether what becomes of this exchange says how the endpoint is now: it began after the ejection."""
        return exchange is self._trial or exchange.started > self._ejected_at

    def _failed(self, exchange: Exchange, reason: str, has_responded: bool = False) -> None:
        if self.state != "well":
            if self.state == "on trial" and self._tells(exchange):
                self._eject(f"its trial: {reason}")
            return
        rules, now = self.rules, self._clock()
        if now >= self._window_ends:
            self._requests = self._faults = 0
            self._window_ends = now + rules.window_seconds
        self._faults += 1
        self._in_a_row += 1
        self._requests += not has_responded
        self.endpoint.state.on_response = self.response
        if rules.consecutive_faults and self._in_a_row >= rules.consecutive_faults:
            why = f"{self._in_a_row} faults in a row, the last: {reason}"
        elif rules.fault_percent and self._requests >= rules.min_requests and self._is_too_much():
            why = f"{self._faults} of {self._requests} requests failed, the last: {reason}"
        else:
            return
        if self._warden.may_eject(self):
            self._eject(why)

    def _is_too_much(self) -> bool:
        return self._faults * 100 >= self.rules.fault_percent * self._requests

    def _eject(self, why: str) -> None:
        rules, now = self.rules, self._clock()
        in_a_row = self.state != "well" or now - self._returned_at < rules.window_seconds
        self._ejections = self._ejections + 1 if in_a_row else 1
        self.state, self._ejected_at, self._trial = "ejected", now, None
        self._in_a_row = self._requests = self._faults = 0
        activity = self.endpoint.state
        activity.on_response, activity.try_acquire_trial = self.response, None
        seconds = min(rules.max_eject_seconds, rules.eject_seconds * 2.0 ** min(self._ejections - 1, 32))
        self._warden.ejected(self, why, seconds)

    def _return(self) -> None:
        self.state, self._returned_at, self._trial = "well", self._clock(), None
        activity = self.endpoint.state
        activity.try_acquire_trial = None
        activity.on_response = self.response if self.rules.count_5xx else None
        self._warden.returned(self)
