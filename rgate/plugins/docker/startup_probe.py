"""StartupProbes: containers that have just started, and whose port may not be open yet.

An engine tells that a container runs before the program in it listens. A request that is sent then is refused, or worse: the
engine's own proxy of a published port takes every connection at once, and drops those that the container does not take.
A request that must not be sent twice is lost with it. So a connection is tried first, and nothing is sent on it.

When that has failed for ten seconds, the port may be wrong. Where connections are refused, a request would be refused too: the
container stays out, is tried once a second, and the reason says what to look at. Where it is not clear whether anybody listens
(the connection was dropped, as the engine's proxy does, or took too long), it comes into use with a note that says so.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Protocol

from rgate import Address, Instance

from .mapping import PORT_LABEL

__all__ = ["Connection", "Outcome", "StartupProbes", "Trial"]

NOT_OPEN = "starting, its port is not open yet"
_LIMIT_SECONDS = 10.0
_TRIAL_SECONDS = 0.1
_PAUSE_SECONDS = 0.05
_LATE_PAUSE_SECONDS = 1.0


class Outcome(Enum):
    """What has become of a connection that was tried."""

    OPEN = auto()
    REFUSED = auto()
    UNCLEAR = auto()


class Trial(Protocol):
    """A connection that is being tried."""

    def outcome(self) -> Outcome:
        """What has become of it by now; it is closed with that."""


@dataclass(slots=True)
class _Arrival:
    """A container that is held back.

    until   when its ten seconds are over
    trial   the connection that is being tried, if there is one
    due     when that is judged, or else when the next one is made
    last    what became of the one before; None: none has been judged
    late    its ten seconds are over, and connections are refused
    """

    until: float
    trial: Trial | None = None
    due: float = 0.0
    last: Outcome | None = None
    late: bool = False


class StartupProbes:
    """Which containers have just started, and whether they can be reached already.

    A container is held back until a connection to it has stood for a tenth of a second; after ten seconds only as long as
    connections to it are refused. While nobody looks, nobody is held back. The listing thread calls `hold`, the watching
    thread `look` and `close`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, connect: Callable[[Address], Trial] | None = None) -> None:
        self._clock = clock
        self._connect = connect or Connection
        self._looking = False
        self._held: dict[str, _Arrival] = {}
        self._addresses: dict[str, Address] = {}
        self._never_stood: set[str] = set()  # of those that are in use all the same

    def started(self, id: str) -> None:
        """A container has started. From any thread."""
        self._never_stood.discard(id)
        if self._looking:
            self._held[id] = _Arrival(self._clock() + _LIMIT_SECONDS)

    def hold(self, instances: Iterable[Instance]) -> list[Instance]:
        """The instances, those held back without their address and with the reason why."""
        told, addresses = [], {}
        for instance in instances:
            if instance.address is not None:
                arrival = self._held.get(instance.id)
                if arrival is not None:
                    addresses[instance.id] = instance.address
                    reason = _nothing_listens(instance) if arrival.late else NOT_OPEN
                    instance = replace(instance, address=None, reason=reason)
                elif instance.id in self._never_stood:
                    instance = replace(instance, notes=(*instance.notes, _never_stood(instance)))
            told.append(instance)
        self._addresses = addresses
        for id in self._never_stood - {instance.id for instance in told}:
            self._never_stood.discard(id)
        return told

    def look_in_seconds(self) -> float:
        """How long until `look` has something to do."""
        now, arrivals = self._clock(), list(self._held.values())
        return min((arrival.due - now if arrival.late else _PAUSE_SECONDS for arrival in arrivals), default=float("inf"))

    def look(self) -> bool:
        """Try connections, and judge those tried before; whether anything else is to be said of a container now."""
        self._looking = True
        now, addresses, changed = self._clock(), self._addresses, False
        for id, arrival in list(self._held.items()):
            listed = id in addresses
            if arrival.trial is not None and arrival.due <= now:
                arrival.last, arrival.trial = arrival.trial.outcome(), None
                arrival.due = now + _LATE_PAUSE_SECONDS if arrival.late else now
            if arrival.last is Outcome.OPEN:
                self._let_go(id, arrival)
            elif arrival.late:
                if not listed or (arrival.trial is None and arrival.last is Outcome.UNCLEAR):
                    self._let_go(id, arrival)
            elif arrival.until <= now and not (listed and arrival.last is None):
                if listed and arrival.last is Outcome.REFUSED:
                    arrival.late, changed = True, True
                else:
                    self._let_go(id, arrival)
                    if listed:
                        self._never_stood.add(id)
            if self._held.get(id) is not arrival:
                changed |= listed
            elif listed and arrival.trial is None and arrival.due <= now:
                arrival.trial, arrival.due = self._connect(addresses[id]), now + _TRIAL_SECONDS
        return changed

    def _let_go(self, id: str, arrival: _Arrival) -> None:
        if arrival.trial is not None:
            arrival.trial.outcome()
        if self._held.get(id) is arrival:  # else it has started again meanwhile
            del self._held[id]

    def close(self) -> None:
        """Look no more, and hold nobody back."""
        self._looking = False
        for id, arrival in list(self._held.items()):
            self._let_go(id, arrival)


def _nothing_listens(instance: Instance) -> str:
    assert instance.address is not None
    return f"nothing listens at {instance.address.authority}; {_way_out(instance)}"


def _never_stood(instance: Instance) -> str:
    assert instance.address is not None
    limit = f"in its first {_LIMIT_SECONDS:.0f} s no connection to {instance.address.authority} stood"
    return f"{limit}; {_way_out(instance)}"


def _way_out(instance: Instance) -> str:
    port = instance.labels.get(PORT_LABEL, "").strip()
    return f"is {PORT_LABEL}={port} right?" if port else f"if its service uses another port, set {PORT_LABEL}"


class Connection:
    """A connection that is being made; nothing is sent on it."""

    def __init__(self, address: Address) -> None:
        self._socket: socket.socket | None = None
        self._refused = False
        with suppress(OSError):
            family, kind, protocol, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
            self._socket = socket.socket(family, kind, protocol)
            self._socket.setblocking(False)
            self._refused = self._socket.connect_ex(place) == errno.ECONNREFUSED  # at once, on this machine

    def outcome(self) -> Outcome:
        """OPEN when it was taken, and not ended since. It is closed with that."""
        if self._socket is None:
            return Outcome.UNCLEAR
        with self._socket as sock:
            if self._refused or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED:
                return Outcome.REFUSED
            try:
                sock.getpeername()
                return Outcome.OPEN if sock.recv(1) else Outcome.UNCLEAR
            except BlockingIOError:
                return Outcome.OPEN
            except OSError:
                return Outcome.UNCLEAR
