"""Arrivals: containers that have just started, and whose port may not be open yet.

An engine tells that a container runs before the program in it listens. A request that is sent then is refused, or worse: the
engine's own proxy of a published port takes every connection at once, and drops those that the container does not take.
A request that must not be sent twice is lost with it. So a connection is tried first, and nothing is sent on it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

from rgate import Address, Instance

__all__ = ["Arrivals", "Connection", "Trial"]

NOT_OPEN = "starting, its port is not open yet"
_LIMIT_SECONDS = 10.0
_TRIAL_SECONDS = 0.1
_PAUSE_SECONDS = 0.05


class Trial(Protocol):
    """A connection that is being tried."""

    def stands(self) -> bool:
        """Whether it stands now; it is closed with that."""


class Arrivals:
    """Which containers have just started, and whether they can be reached already.

    A container is held back until a connection to it has stood for a tenth of a second; after ten seconds it is let go
    whatever was seen, and counts like any other. While nobody looks, nobody is held back. The listing thread calls `hold`,
    the watching thread `look` and `close`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, connect: Callable[[Address], Trial] | None = None) -> None:
        self._clock = clock
        self._connect = connect or Connection
        self._looking = False
        self._until: dict[str, float] = {}
        self._addresses: dict[str, Address] = {}
        self._trials: dict[str, tuple[Trial, float]] = {}

    def started(self, id: str) -> None:
        """A container has started. From any thread."""
        if self._looking:
            self._until[id] = self._clock() + _LIMIT_SECONDS

    def hold(self, instances: Iterable[Instance]) -> list[Instance]:
        """The instances, those held back without their address and with the reason why."""
        told, addresses = [], {}
        for instance in instances:
            if instance.address is not None and instance.id in self._until:
                addresses[instance.id] = instance.address
                instance = Instance(instance.id, instance.name, instance.labels, reason=NOT_OPEN)
            told.append(instance)
        self._addresses = addresses
        return told

    def look_in_seconds(self) -> float:
        """How long until `look` has something to do."""
        if not self._until:
            return float("inf")
        return min([_PAUSE_SECONDS, *(due - self._clock() for _, due in self._trials.values())])

    def look(self) -> bool:
        """Try connections, and judge those tried before; whether somebody who was held back is let go now."""
        self._looking = True
        now, addresses = self._clock(), self._addresses
        let_go = [id for id, until in list(self._until.items()) if until <= now]
        for id, (trial, due) in list(self._trials.items()):
            if due <= now:
                del self._trials[id]
                if trial.stands():
                    let_go.append(id)
        for id in let_go:
            self._until.pop(id, None)
        for id in self._until.keys() & addresses.keys() - self._trials.keys():
            self._trials[id] = self._connect(addresses[id]), now + _TRIAL_SECONDS
        return any(id in addresses for id in let_go)

    def close(self) -> None:
        """Look no more, and hold nobody back."""
        self._looking = False
        self._until.clear()
        for trial, _ in self._trials.values():
            trial.stands()
        self._trials.clear()


class Connection:
    """A connection that is being made; nothing is sent on it."""

    def __init__(self, address: Address) -> None:
        self._socket: socket.socket | None = None
        with suppress(OSError):
            family, kind, protocol, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
            self._socket = socket.socket(family, kind, protocol)
            self._socket.setblocking(False)
            self._socket.connect_ex(place)

    def stands(self) -> bool:
        """Whether it was taken, and not ended since. It is closed with that."""
        if self._socket is None:
            return False
        with self._socket as sock:
            try:
                sock.getpeername()
                return bool(sock.recv(1))
            except BlockingIOError:
                return True
            except OSError:
                return False
