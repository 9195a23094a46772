"""Discovery as a test watches it: a live table, and a stopwatch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rgate import Backend, Config, Endpoint
from rgate.discovery import Discovery, EndpointTable, SourceState, Timing
from rgate.plugins.docker import DockerOptions, rgate_discovery_sources

from .engine import wait_until

__all__ = ["LIMIT_SECONDS", "Watched"]

LIMIT_SECONDS = 2.0
ENGINE_SECONDS = 30.0  # a call of the engine's takes no longer than that
STANDARD = Timing()


class Watched:
    """A live table for one backend, the containers of this test, and a stopwatch."""

    def __init__(self, namespace: str, host: str | None = None, timing: Timing = STANDARD) -> None:
        label = f"rgate.test={namespace}"
        plugins = {"docker": DockerOptions(host=host)}
        config = Config.model_validate({"backends": [{"name": "b", "match_labels": [label]}], "plugins": plugins})
        source = rgate_discovery_sources(config)
        assert source is not None
        self.lines: list[str] = []
        self.discovery = Discovery(timing=timing)
        self.table = EndpointTable([Backend("b", (("rgate.test", namespace),))], [source], self.discovery)
        self.discovery.activate(self.table)
        self.table.on_change(lambda changes: self.lines.extend(map(str, changes)))

    def start(self) -> None:
        """Start discovery; returns when the engine has been asked once."""
        self.discovery.start(self.table)

    def close(self) -> None:
        """End discovery and its threads; stop() alone leaves one behind, with its socket, that still waits for the engine."""
        own = [thread for thread in threading.enumerate() if thread.name.startswith(("rgate-discovery", "rgate-docker"))]
        self.discovery.stop()
        for thread in own:
            thread.join(ENGINE_SECONDS)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return self.table.snapshot.endpoints["b"]

    @property
    def source(self) -> SourceState:
        return self.table.snapshot.sources["docker"]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [(endpoint.address.host, endpoint.address.port) for endpoint in self.endpoints]

    @property
    def reasons(self) -> dict[str, str | None]:
        return {instance.name: instance.reason for instance in self.table.snapshot.unusable["b"]}

    @contextmanager
    def sees(self, what: str, condition: Callable[[], object]) -> Iterator[None]:
        """The condition must hold at the latest two seconds after the block, and must not hold before it."""
        assert not condition(), f"seen before it happened: {what}"
        seen = threading.Event()
        moment: list[float] = []

        def look() -> None:
            pause = threading.Event()
            while not seen.is_set():
                if condition():
                    moment.append(time.monotonic())
                    return
                pause.wait(0.002)

        began = time.monotonic()
        looking = threading.Thread(target=look)
        looking.start()
        try:
            yield
            ended = time.monotonic()
            looking.join(LIMIT_SECONDS)
        finally:
            seen.set()
            looking.join()
        state = f"endpoints {self.addresses}, changes {self.lines}, {self.table.snapshot.sources}"
        assert moment, f"not seen within {LIMIT_SECONDS:g} s: {what}; {state}"
        print(f"{what}: {max(0.0, moment[0] - ended) * 1000:.0f} ms after the command, {(moment[0] - began) * 1000:.0f} in all")

    @staticmethod
    def follows_events() -> bool:
        """Whether a stream of events is open, in this process."""
        return any(thread.name == "rgate-docker-events" for thread in threading.enumerate())

    def settled(self, condition: Callable[[], object], what: str) -> None:
        wait_until(condition, f"{what}; unusable: {self.reasons}, changes {self.lines}")
