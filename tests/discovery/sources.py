"""Sources whose every step the test decides, and the backends and instances that the tests here talk of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rgate import Address, Backend, Instance
from rgate.discovery import Discovery, EndpointTable, Snapshot

from ..support.waiting import DEADLINE_SECONDS

PAYMENT = Backend("payment", (("app_name", "payment"), ("env", "production")))
ORDERS = Backend("orders", (("app_name", "orders"), ("env", "production")))
FIXED = Backend("fixed")


def found(id: str, port: int | None = 80, *, backend: str | None = None, reason: str | None = None, **labels: str) -> Instance:
    """An instance at a port of 127.0.0.1; unusable with a `reason`, or when `port` is None."""
    if port is None:
        reason = reason or "paused"
    address = None if port is None or reason else Address("http", "127.0.0.1", port)
    return Instance(id, f"name-of-{id}", labels, address, reason, backend)


def payment(id: str, port: int | None = 80, *, reason: str | None = None, **more: str) -> Instance:
    """The same, with the labels of the payment backend."""
    return found(id, port, reason=reason, app_name="payment", env="production", **more)


class Listing:
    """A source that lists `instances`, or raises `error`."""

    def __init__(self, name: str = "listing", *instances: Instance) -> None:
        self.name = name
        self.instances: Iterable[Instance] = instances
        self.error: Exception | None = None
        self.lists = 0

    def list(self) -> Iterable[Instance]:
        self.lists += 1
        if self.error is not None:
            raise self.error
        return self.instances


class Hanging(Listing):
    """A source whose list has begun when `began` is set, and ends when the test sets `free`."""

    def __init__(self, name: str = "hanging", *instances: Instance) -> None:
        super().__init__(name, *instances)
        self.began, self.free = threading.Event(), threading.Event()

    def list(self) -> Iterable[Instance]:
        self.began.set()
        self.free.wait(DEADLINE_SECONDS)
        return super().list()


class Watching(Listing):
    """A source with a watch that lasts until `broken` is set, and then raises `watch_error` or returns.

    `watched` is set when a watch begins; `changed` is what it was given to call.
    """

    def __init__(self, name: str = "watching", *instances: Instance) -> None:
        super().__init__(name, *instances)
        self.watches = 0
        self.watched, self.broken = threading.Event(), threading.Event()
        self.changed: Callable[[], None] = lambda: None
        self.watch_error: Exception | None = None

    def watch(self, changed: Callable[[], None], stop: threading.Event) -> None:
        self.watches += 1
        self.changed = changed
        self.watched.set()
        while not stop.is_set() and not self.broken.wait(0.01):
            pass
        if self.watch_error is not None:
            raise self.watch_error


def table(*sources: Any, backends: Sequence[Backend] = (PAYMENT, ORDERS, FIXED), **options: Any) -> EndpointTable:
    """A table that is current in a Discovery of its own, with these options."""
    discovery = Discovery(**options)
    made = EndpointTable(backends, sources, discovery)
    discovery.activate(made)
    return made


def ids(snapshot: Snapshot, backend: str) -> list[str]:
    return [endpoint.id for endpoint in snapshot.endpoints[backend]]
