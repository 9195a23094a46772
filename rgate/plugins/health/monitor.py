"""Health: the records of all endpoints, and what is done about them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Final, Protocol

from rgate import Address, Endpoint, Gateway, GatewayError, Snapshot

from .options import OFF, HealthOptions
from .outlier import FAINT, Record
from .scheduler import Scheduler

__all__ = ["Health", "Jobs"]

EJECTION, CHECK = "ejection", "check"  # who sets endpoints aside
GROWTH_SECONDS: Final = 0.25
LEAST_SHARE: Final = 0.1
CONNECT_SECONDS: Final = 1.0


class Jobs(Protocol):
    """What Health needs of a Schedule."""

    def start(self) -> None:
        """Begin with what is due."""
        ...

    def after(self, seconds: float, job: Callable[[], object]) -> None:
        """Have `job()` called in so many seconds."""
        ...

    def stop(self) -> None:
        """Do no more."""
        ...


class Health:
    """Looks after the endpoints of the gateway in force; one object for all gateways that a process has in its life.

    It is entered and left as the lifespan of the plugin. Left, it takes back whatever it has set aside. The clock, the chance
    and the jobs are there for tests.
    """

    def __init__(
        self,
        clock: Callable[[], float] = monotonic,
        chance: Callable[[], float] = random.random,
        jobs: Callable[[], Jobs] = Scheduler,
    ) -> None:
        self._clock, self._chance = clock, chance
        self._jobs = jobs()
        self._gateway: Gateway
        self._rules: dict[str, HealthOptions] = {}
        self._records: dict[tuple[str, Address], Record] = {}
        self._growing = False  # _grow() is due
        self._growth_lock = threading.Lock()  # of `_growing`, and of what it follows from; nothing else is locked within it
        self._begun = False  # an endpoint that is there from the beginning is not fresh

    def __enter__(self) -> Health:
        self._jobs.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._jobs.stop()
        for record in self._records.values():
            state = record.endpoint.state
            state.on_failure = state.on_response = state.try_acquire_trial = None
            state.weight_factor = 1.0
            for by in (EJECTION, CHECK):
                self._gateway.table.readmit(record.endpoint, by)
        self._gateway.table.weights_changed()

    def look_at(self, gateway: Gateway, snapshot: Snapshot) -> None:
        """Follow the endpoints that there are now. Called with every new snapshot, within the table's lock."""
        if not gateway.table.in_force:
            return
        self._gateway = gateway
        self._rules = {b.name: gateway.options("health", backend=b) or OFF for b in gateway.backends.values()}
        seen: set[tuple[str, Address]] = set()
        for backend, endpoints in snapshot.found.items():
            for endpoint in endpoints:
                if endpoint.key not in seen:  # one that is in several backends follows the rules of the first
                    seen.add(endpoint.key)
                    self._follow(endpoint, self._rules[backend])
        for key, record in list(self._records.items()):
            if key not in seen and record.state == "well" and record.passing is not False:
                self._records.pop(key, None)  # the others are forgotten when their next job finds that they are gone
        self._begun = self._begun or bool(seen)

    def _follow(self, endpoint: Endpoint, rules: HealthOptions) -> None:
        record = self._records.get(endpoint.key)
        before = record.rules if record else None
        if record is None:
            record = self._records[endpoint.key] = Record(self, self._clock)
        elif record.endpoint is endpoint and before == rules:
            return
        record.follow(endpoint, rules)
        if before is None and self._begun and rules.slow_start_seconds:
            self._slow_down(record)
            self._jobs.after(0.0, self._reshare)
        if rules.path and not record.is_checked:
            record.is_checked = True
            self._jobs.after(
                self._chance() * min(rules.interval_seconds, 1.0) if self._begun else 0.0, partial(self._check, record)
            )

    # What follows from a record (see HealthListener).

    def may_eject(self, record: Record) -> bool:
        """Whether one more endpoint of the backend may be ejected; one may always be."""
        backend = self._gateway.table.snapshot.found.get(record.endpoint.backend, ())
        known = [self._records.get(endpoint.key) for endpoint in backend]
        ejected = sum(1 for other in known if other is not None and other is not record and other.state != "well")
        return ejected + 1 <= max(1, int(len(backend) * record.rules.max_ejected_percent / 100))

    def ejected(self, record: Record, why: str, seconds: float) -> None:
        """Set the endpoint aside, and see after it in so many seconds, a little less by chance."""
        record.endpoint.state.weight_factor = FAINT
        self._set_aside(record, EJECTION, f"ejected: {why}")
        self._jobs.after(seconds * (1 - self._chance() / 10), partial(self._look_after, record))

    def tried(self, record: Record) -> None:
        """Let trial requests through, which the record claims; others only where there is nothing else to try."""
        record.endpoint.state.weight_factor = FAINT if record.rules.on_all_unhealthy == "use_all" else 0.0
        self._set_aside(record, EJECTION, "on trial", on_trial=True)

    def returned(self, record: Record) -> None:
        """Take the endpoint back, slowly if that is wanted."""
        self._slow_down(record)
        self._gateway.table.readmit(record.endpoint, EJECTION)

    def checked(self, record: Record, why: str | None) -> None:
        """Do what the checks say."""
        if why is not None:
            self._set_aside(record, CHECK, f"check failed: {why}")
            return
        if record.state == "well":
            self._slow_down(record)
        self._gateway.table.readmit(record.endpoint, CHECK)

    def _set_aside(self, record: Record, by: str, reason: str, *, on_trial: bool = False) -> None:
        anyway = record.rules.on_all_unhealthy == "use_all"
        self._gateway.table.exclude(record.endpoint, by, reason, last_resort=anyway, on_trial=on_trial)

    # Jobs.

    def _look_after(self, record: Record) -> None:
        """The time of an ejection is over."""
        if self._is_gone(record):
            self._gateway.table.readmit(record.endpoint, EJECTION)
            self._forget(record)
        else:
            record.looked_at(self._ask(record))

    def _check(self, record: Record) -> None:
        """One active check; the next one follows."""
        if self._records.get(record.endpoint.key) is not record:
            return
        if record.rules.path is None or self._is_gone(record):
            self._gateway.table.readmit(record.endpoint, CHECK)
            record.is_checked, record.passing = False, None
            if record.state == "well" and self._is_gone(record):
                self._forget(record)
            return
        began = self._clock()
        record.check(self._ask(record))
        pause = record.rules.interval_seconds * (0.9 + self._chance() / 5)
        self._jobs.after(max(0.0, pause - (self._clock() - began)), partial(self._check, record))

    def _forget(self, record: Record) -> None:
        if self._records.get(record.endpoint.key) is record:
            self._records.pop(record.endpoint.key, None)

    def _ask(self, record: Record) -> str | None:
        """Why the endpoint is not well, as far as can be told outside of traffic; None when it is."""
        rules = record.rules
        try:
            if rules.path is None:
                self._gateway.probe(record.endpoint, seconds=CONNECT_SECONDS)
                return None
            status = self._gateway.probe(record.endpoint, rules.path, rules.headers, rules.timeout_seconds)
        except GatewayError as error:
            return error.reason
        return None if rules.expects(status) else f"status {status}"

    def _is_gone(self, record: Record) -> bool:
        found = self._gateway.table.snapshot.found
        return not any(endpoint.key == record.endpoint.key for endpoints in found.values() for endpoint in endpoints)

    # Slow start.

    def _slow_down(self, record: Record) -> None:
        """Begin with a small share for an endpoint that is fresh or back, if its rules want it so."""
        if not record.rules.slow_start_seconds:
            record.fresh_since, record.endpoint.state.weight_factor = None, 1.0
            return
        with self._growth_lock:
            record.fresh_since, record.endpoint.state.weight_factor = self._clock(), LEAST_SHARE
            due, self._growing = self._growing, True
        if not due:
            self._jobs.after(GROWTH_SECONDS, self._grow)

    def _grow(self) -> None:
        with self._growth_lock:
            now, more = self._clock(), False
            for record in list(self._records.values()):
                if record.fresh_since is not None and record.state == "well":
                    share = (now - record.fresh_since) / (record.rules.slow_start_seconds or 1.0)
                    record.endpoint.state.weight_factor = min(1.0, max(LEAST_SHARE, share))
                    if share < 1:
                        more = True
                    else:
                        record.fresh_since = None
            self._growing = more
        if more:
            self._jobs.after(GROWTH_SECONDS, self._grow)
        else:
            self._reshare()

    def _reshare(self) -> None:
        self._gateway.table.weights_changed()
