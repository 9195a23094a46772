"""Probes: whether a container accepts connections, after it has started and after it has been told to stop. Nothing is sent.

An engine reports that a container runs before the program in it listens. A request that is sent then is refused, or worse: the
engine's own proxy of a published port accepts every connection at once and drops those that the container does not accept, so a
request that must not be sent twice is lost. StartupProbes therefore withholds a container until a connection to it stays open.

Most programs end soon after SIGTERM, or at least close their port. Requests sent to them at that moment are lost, and some
programs go on serving as long as requests arrive. So at first a container that was told to stop gets no requests; they wait for
the next container. Other programs ignore the signal, as process 1 of a container does by default, and serve until they are
killed ten seconds later. StopProbes finds these by their open port; they are used while there is no other container.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Protocol

from rgate import Address, Instance

from .mapping import PORT_LABEL

__all__ = ["HOLD_SECONDS", "ConnectProbe", "Outcome", "Probe", "StartupProbes", "StopProbes"]

NOT_OPEN = "starting, its port is not open yet"
HOLD_SECONDS = 1.0
_LIMIT_SECONDS = 10.0
_PROBE_SECONDS = 0.1
_PAUSE_SECONDS = 0.05
_LATE_PAUSE_SECONDS = 1.0
_STOP_PAUSE_SECONDS = 0.15


class Outcome(Enum):
    """The result of a probe."""

    OPEN = auto()
    REFUSED = auto()
    UNCLEAR = auto()


class Probe(Protocol):
    """A connection attempt that has been started."""

    def outcome(self) -> Outcome:
        """The result so far. Closes the connection."""


class ConnectProbe:
    """A TCP connection attempt to an address, without blocking. Nothing is sent on it."""

    def __init__(self, address: Address) -> None:
        self._socket: socket.socket | None = None
        self._refused = False
        with suppress(OSError):
            family, kind, protocol, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
            self._socket = socket.socket(family, kind, protocol)
            self._socket.setblocking(False)
            self._refused = self._socket.connect_ex(place) == errno.ECONNREFUSED  # immediately, on this machine

    def outcome(self) -> Outcome:
        """OPEN if the connection was accepted and the peer has not closed it since. Closes it."""
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


@dataclass(slots=True)
class _Starting:
    """A withheld container.

    until   when its ten seconds are over
    probe   the probe that is under way, if there is one
    due     when the result of that probe is read, or else when the next probe is started
    last    the result of the previous probe; None before the first
    late    its ten seconds are over, and connections are refused
    """

    until: float
    probe: Probe | None = None
    due: float = 0.0
    last: Outcome | None = None
    late: bool = False


class StartupProbes:
    """Withholds containers that have just started, until a connection to them has been open for a tenth of a second.

    After ten seconds the port may be the wrong one. A container that refuses connections would refuse requests too: it stays
    withheld, is probed once a second, and its reason says what to check. If the result is unclear (the connection was dropped,
    as the engine's proxy does, or took too long), the container is used, with a note that says so.

    Containers are withheld only while `poll` is being called. The listing thread calls `withhold_unready`, the watching thread
    `poll` and `close`; `started` may be called from any thread. Fields are replaced as a whole or changed by single dict and set
    operations, which are atomic under the interpreter's lock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, connect: Callable[[Address], Probe] | None = None) -> None:
        self._clock = clock
        self._connect = connect or ConnectProbe
        self._polling = False
        self._starting: dict[str, _Starting] = {}
        self._addresses: dict[str, Address] = {}
        self._unconfirmed: set[str] = set()  # containers in use to which no connection ever stayed open

    def started(self, id: str) -> None:
        """Withhold a container, which has just started. From any thread."""
        self._unconfirmed.discard(id)
        if self._polling:
            self._starting[id] = _Starting(self._clock() + _LIMIT_SECONDS)

    def withhold_unready(self, instances: Iterable[Instance]) -> list[Instance]:
        """The instances; those that are withheld have no address, and the reason why."""
        listed, addresses = [], {}
        for instance in instances:
            if instance.address is not None:
                starting = self._starting.get(instance.id)
                if starting is not None:
                    addresses[instance.id] = instance.address
                    reason = _nothing_listens(instance) if starting.late else NOT_OPEN
                    instance = replace(instance, address=None, reason=reason)
                elif instance.id in self._unconfirmed:
                    instance = replace(instance, notes=(*instance.notes, _never_open(instance)))
            listed.append(instance)
        self._addresses = addresses
        for id in self._unconfirmed - {instance.id for instance in listed}:
            self._unconfirmed.discard(id)
        return listed

    def next_poll_in(self) -> float:
        """The seconds until `poll` has something to do."""
        now, containers = self._clock(), list(self._starting.values())
        return min((each.due - now if each.late else _PAUSE_SECONDS for each in containers), default=float("inf"))

    def poll(self) -> bool:
        """Read the results that are due and start the next probes. True if `withhold_unready` would now return something else."""
        self._polling = True
        now, addresses, changed = self._clock(), self._addresses, False
        for id, starting in list(self._starting.items()):
            listed = id in addresses
            if starting.probe is not None and starting.due <= now:
                starting.last, starting.probe = starting.probe.outcome(), None
                starting.due = now + _LATE_PAUSE_SECONDS if starting.late else now
            if starting.last is Outcome.OPEN:
                self._release(id, starting)
            elif starting.late:
                if not listed or (starting.probe is None and starting.last is Outcome.UNCLEAR):
                    self._release(id, starting)
            elif starting.until <= now and not (listed and starting.last is None):
                if listed and starting.last is Outcome.REFUSED:
                    starting.late, changed = True, True
                else:
                    self._release(id, starting)
                    if listed:
                        self._unconfirmed.add(id)
            if self._starting.get(id) is not starting:
                changed |= listed
            elif listed and starting.probe is None and starting.due <= now:
                starting.probe, starting.due = self._connect(addresses[id]), now + _PROBE_SECONDS
        return changed

    def close(self) -> None:
        """Stop probing, and release every container."""
        self._polling = False
        for id, starting in list(self._starting.items()):
            self._release(id, starting)

    def _release(self, id: str, starting: _Starting) -> None:
        if starting.probe is not None:
            starting.probe.outcome()
        if self._starting.get(id) is starting:  # else the container has started again meanwhile
            del self._starting[id]


def _nothing_listens(instance: Instance) -> str:
    assert instance.address is not None
    return f"nothing listens at {instance.address.authority}; {_way_out(instance)}"


def _never_open(instance: Instance) -> str:
    assert instance.address is not None
    limit = f"in its first {_LIMIT_SECONDS:.0f} s no connection to {instance.address.authority} stayed open"
    return f"{limit}; {_way_out(instance)}"


def _way_out(instance: Instance) -> str:
    port = instance.labels.get(PORT_LABEL, "").strip()
    return f"is {PORT_LABEL}={port} right?" if port else f"if its service uses another port, set {PORT_LABEL}"


class StopProbes:
    """Finds containers that were told to stop and still accept connections `hold_seconds` later.

    Each is probed again and again, because it may close its port at any moment. The listing thread calls `accepts`, the
    watching thread all other methods.
    """

    def __init__(
        self,
        hold_seconds: float = HOLD_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        connect: Callable[[Address], Probe] | None = None,
    ) -> None:
        self._hold_seconds = hold_seconds
        self._clock = clock
        self._connect = connect or ConnectProbe
        self._due: dict[str, float] = {}  # when the next probe is started
        self._addresses: dict[str, Address] = {}
        self._probes: dict[str, tuple[Probe, float]] = {}
        self._accepting: frozenset[str] = frozenset()

    def stopping(self, id: str) -> None:
        """Watch a container, which was told to stop."""
        self._due.setdefault(id, self._clock() + self._hold_seconds)

    def ended(self, id: str) -> None:
        """Forget a container, which has ended, is being killed, or has started again."""
        self._due.pop(id, None)
        self._addresses.pop(id, None)
        probe = self._probes.pop(id, None)
        if probe is not None:
            probe[0].outcome()
        self._accepting -= {id}

    def keep_only(self, ids: Collection[str]) -> None:
        """Forget all containers but these."""
        for id in self._due.keys() - ids:
            self.ended(id)

    def accepts(self, id: str, address: Address) -> bool:
        """Whether the container still accepts connections at its address, as far as is known."""
        if id in self._due:
            self._addresses[id] = address
        return id in self._accepting

    def next_poll_in(self) -> float:
        """The seconds until `poll` has something to do."""
        now = self._clock()
        waits = [due - now for _, due in self._probes.values()]
        waits += [max(due - now, _STOP_PAUSE_SECONDS) for id, due in self._due.items() if id not in self._probes]
        return max(0.0, min(waits, default=float("inf")))

    def poll(self) -> bool:
        """Read the results that are due and start the next probes. True if `accepts` now answers differently for a container."""
        now, before = self._clock(), self._accepting
        for id, (probe, due) in list(self._probes.items()):
            if due <= now:
                del self._probes[id]
                self._accepting = self._accepting | {id} if probe.outcome() is Outcome.OPEN else self._accepting - {id}
                self._due[id] = now + _STOP_PAUSE_SECONDS
        for id, due in list(self._due.items()):
            if due <= now and id not in self._probes and id in self._addresses:
                self._probes[id] = self._connect(self._addresses[id]), now + _PROBE_SECONDS
        return self._accepting != before

    def close(self) -> None:
        """Stop probing."""
        for id in list(self._due):
            self.ended(id)
