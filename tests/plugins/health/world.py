"""A gateway whose health plugin lives by a clock and jobs that the test moves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from rgate import Config, ConfigSection, Endpoint, Exchange, Gateway, GatewayError, build, hookimpl
from rgate.config import load_text
from rgate.plugin.registry import Registry
from rgate.plugins.health.monitor import Health
from rgate.plugins.health.options import HealthOptions
from rgate.plugins.health.outlier import Record


class FakeJobs:
    """Jobs that are done when the test lets time pass."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.due: list[tuple[float, Callable[[], object]]] = []
        self.running = False

    def clock(self) -> float:
        return self.now

    def start(self) -> None:
        self.running = True

    def after(self, seconds: float, job: Callable[[], object]) -> None:
        self.due.append((self.now + seconds, job))

    def stop(self) -> None:
        self.running = False

    def passes(self, seconds: float) -> None:
        """Let so much time pass, and do each job in it when it is due."""
        end = self.now + seconds
        while ready := sorted((due for due in self.due if due[0] <= end), key=lambda due: due[0]):
            self.due.remove(ready[0])
            self.now = max(self.now, ready[0][0])
            ready[0][1]()
        self.now = end


class World:
    """Three endpoints of backend "x" at addresses where the test says what a probe finds: a status, or a fault it raises."""

    def __init__(self, gateway: Gateway, health: Health, jobs: FakeJobs) -> None:
        self.gateway, self.health, self.jobs = gateway, health, jobs
        self.found: dict[str, int | GatewayError] = {}
        self.probes: list[tuple[str, str]] = []
        self.told: list[str] = []
        object.__setattr__(gateway, "probe", self.probe)  # a gateway is frozen
        gateway.table.on_change(lambda changes: self.told.extend(map(str, changes)))

    def probe(self, endpoint: Endpoint, target: str = "", headers: Any = None, seconds: float = 2.0) -> int:
        self.probes.append((self.letter(endpoint), target))
        found = self.found.get(self.letter(endpoint), 200)
        if isinstance(found, GatewayError):
            raise found
        return found

    def letter(self, endpoint: Endpoint) -> str:
        return "abcdefghi"[endpoint.address.port - 1]

    def __getitem__(self, letter: str) -> Endpoint:
        return next(e for e in self.gateway.table.snapshot.found["x"] if self.letter(e) == letter)

    @property
    def candidates(self) -> str:
        """What new requests choose from; in capitals what is on trial."""
        return "".join(
            self.letter(e).upper() if e.state.try_acquire_trial is not None else self.letter(e)
            for e in self.gateway.table.snapshot.endpoints["x"]
        )

    @property
    def reasons(self) -> dict[str, str]:
        return {self.letter(aside.endpoint): str(aside) for aside in self.gateway.table.snapshot.excluded.get("x", ())}

    def exchange(self) -> Exchange:
        """A request that comes now."""
        exchange = Exchange()
        exchange.started = self.jobs.now
        exchange.candidates = self.gateway.table.snapshot.endpoints["x"]
        self.jobs.now += 0.001
        return exchange

    def fails(self, letter: str, error: BaseException, times: int = 1, exchange: Exchange | None = None) -> None:
        for _ in range(times):
            load = self[letter].state
            assert load.on_failure is not None, "faults are not counted"
            load.on_failure(exchange or self.exchange(), error)

    def answers(self, letter: str, status: int = 200, times: int = 1, exchange: Exchange | None = None) -> None:
        for _ in range(times):
            load = self[letter].state
            if load.on_response is not None:
                load.on_response(exchange or self.exchange(), status)

    def claims(self, letter: str, method: str = "GET", exchange: Exchange | None = None) -> Exchange | None:
        """The exchange of a request, if it must go to this endpoint."""
        claim = self[letter].state.try_acquire_trial
        exchange = exchange or self.exchange()
        assert claim is not None, f"{letter} is not on trial"
        return exchange if claim({"rgate.exchange": exchange, "REQUEST_METHOD": method}) else None

    def record(self, letter: str) -> Record:
        return self.health._records[self[letter].key]

    def reloads(self, endpoints: str, **rules: object) -> None:
        """Another config takes the place of the one in force."""
        urls = [f"http://in-process.invalid:{'abcdefghi'.index(letter) + 1}" for letter in endpoints]
        after = build(*composed(urls, rules), self.gateway.runtime)
        object.__setattr__(after, "probe", self.probe)  # a gateway is frozen
        after.table.on_snapshot(partial(self.health.look_at, after))
        after.table.refresh()
        after.runtime.activate(after)
        self.gateway = after

    def share(self, letter: str) -> float:
        return self[letter].state.weight_factor


@contextmanager
def world(endpoints: str = "abc", **rules: object) -> Iterator[World]:
    """Endpoints a, b and c of backend x, with these rules of health; discovery has found them."""
    jobs = FakeJobs()
    urls = [f"http://in-process.invalid:{'abcdefghi'.index(letter) + 1}" for letter in endpoints]
    gateway = build(*composed(urls, rules))
    health = Health(clock=jobs.clock, chance=lambda: 0.0, jobs=lambda: jobs)
    gateway.table.on_snapshot(partial(health.look_at, gateway))
    with health:
        made = World(gateway, health, jobs)
        gateway.table.refresh()
        made.told.clear()
        yield made


class Options:
    """The options of the plugin without the rest of it: the test has a Health of its own."""

    @hookimpl
    def rgate_config_sections(self) -> ConfigSection:
        return ConfigSection("health", HealthOptions, per_backend=True)


def composed(urls: Sequence[str], rules: Mapping[str, object]) -> tuple[Config, Registry]:
    registry = Registry()
    registry.register("health", Options())
    config = {
        "backends": [{"name": "x", "endpoints": urls, "health": rules}],
        "routes": [{"path_prefix": "/", "backend": "x"}],
        "plugins": {"disable": ["health", "stats", "docker"]},
    }
    return load_text(json.dumps(config), registry, {}), registry
