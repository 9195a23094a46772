"""EndpointQueue: requests that wait, suspended, for an endpoint of their backend."""

from __future__ import annotations

import heapq
import itertools
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Final

from ..chain.suspended import SuspendedResponse
from ..errors import GatewayError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ..chain.exchange import Exchange
    from ..config import Backend
    from .endpoint_table import EndpointTable
    from .model import Address, Endpoint
    from .snapshot import Snapshot

__all__ = ["EndpointQueue"]

ROUND_SECONDS: Final = 0.01
IN_FLIGHT: Final = 32  # of an endpoint, up to which as many as there is room for are let go at once
TRIAL_SECONDS: Final = 0.1  # so long a connection must stand: a container's published port accepts before the container does
IDLE_SECONDS: Final = 1.0
SLACK: Final = 64
NEVER: Final = float("-inf")
_log = logging.getLogger("rgate.discovery")


class EndpointQueue:
    """Who waits for an endpoint, first come first served. One for the life of a process; its methods may be called by any
    thread.

    A request waits when its backend has lost its last endpoint, or its endpoints refuse connections, since no longer than the
    backend's `queue_seconds`; it waits that long at most, counted from its own start. A backend that has had no endpoint, or
    has answered nothing, since the process has begun is not waited for, so that what is not there says so at once.

    At most `most` wait in all, and 80 % of them for one of several backends.

    When an endpoint comes, those that have room in it (IN_FLIGHT) go on at once; the others follow a hundred times a second,
    one more each time, as long as it takes. A request that comes meanwhile stands behind. Before requests go on to endpoints
    that have refused, a connection to one of them must have stood for TRIAL_SECONDS. All of that is done by one thread, which is
    there while somebody waits.

    waiting    the names of the backends that somebody waits for
    unproven   backends of which no response has come since they refused, or at all: proven() is to be called for these
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.waiting: dict[str, int] = {}
        self.unproven: dict[str, float] = {}  # since when; NEVER: it has never answered
        self.most = 0
        self._table: EndpointTable | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._lines: dict[str, list[tuple[float, int, SuspendedResponse]]] = {}
        self._numbers = itertools.count()
        self._lost: dict[str, float] = {}
        self._found: set[str] = set()
        self._shares: dict[str, int] = {}
        self._thread: threading.Thread | None = None

    def follow(self, table: EndpointTable, backends: Iterable[Backend], most: int) -> None:
        """Let requests wait for the endpoints of `table` from now on. Those that wait already are judged anew, by whoever has
        suspended them."""
        names = [backend.name for backend in backends]
        with self._lock:
            self._table, self.most = table, most
            self._found.intersection_update(names)
            self._shares = dict.fromkeys(names, most if len(names) == 1 else max(1, most * 4 // 5) if most else 0)
            for gone in self.unproven.keys() - set(names):
                del self.unproven[gone]
            for name in names:
                if name not in self._found and name not in self._lost:
                    self.unproven.setdefault(name, NEVER)
        table.on_snapshot(lambda snapshot: self._look_at(snapshot) if self._table is table else None)
        self._let_go_all()

    def endpoints(self, backend: str) -> tuple[Endpoint, ...]:
        """What new requests of a backend choose from just now."""
        assert self._table is not None
        return self._table.snapshot.endpoints.get(backend, ())

    def park(
        self, environ: WSGIEnvironment, backend: Backend, go_on: Callable[[bool], Iterable[bytes]], fault: GatewayError
    ) -> SuspendedResponse:
        """Have a request wait for an endpoint; `go_on` as for SuspendedResponse. Raises `fault` when it may not wait."""
        suspended = self.suspended(environ, backend, go_on, has_failed=True)
        if suspended is None:
            raise fault
        return suspended

    def suspended(
        self, environ: WSGIEnvironment, backend: Backend, go_on: Callable[[bool], Iterable[bytes]], has_failed: bool = False
    ) -> SuspendedResponse | None:
        """The same; None when it may not wait. Without `has_failed` nothing has been refused, but others wait."""
        queue_seconds, name = backend.queue_seconds, backend.name
        if not queue_seconds or not SuspendedResponse.can_wait(environ):
            return None
        exchange: Exchange = environ["rgate.exchange"]
        now = self._clock()
        left_seconds = exchange.started + queue_seconds - now
        with self._lock:
            if left_seconds <= 0 or now - self._since(name, now, has_failed) >= queue_seconds:
                return None
            if self.waiting.get(name, 0) >= self._shares.get(name, 0) or sum(self.waiting.values()) >= self.most:
                words = "backend %s: %d requests wait for an endpoint; more are answered 503 (server.max_queued: %d)"
                _log.warning(words, name, self.waiting.get(name, 0), self.most, extra={"about": name})
                return None
            self.waiting[name] = self.waiting.get(name, 0) + 1
            suspended = SuspendedResponse(environ, left_seconds, go_on, on_close=lambda: self._left(name))
            line = self._lines.setdefault(name, [])
            if len(line) > 2 * self.waiting[name] + SLACK:  # those who have left stand in it until their turn comes
                line[:] = [each for each in line if not each[2].resumed]
                heapq.heapify(line)
            heapq.heappush(line, (exchange.started, next(self._numbers), suspended))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rgate-queue", daemon=True)
                self._thread.start()
            self._changed.notify()
        return suspended

    def proven(self, backend: str) -> None:
        """A response of this backend has come."""
        self.unproven.pop(backend, None)

    def _since(self, name: str, now: float, has_failed: bool) -> float:
        """Since when there is nothing that answers; NEVER when there has been nothing."""
        if not self.endpoints(name):
            # The table shows that the last one is gone a moment before it tells this queue.
            return now if name in self._found else self._lost.get(name, NEVER)
        if has_failed:
            return self.unproven.setdefault(name, now)
        return self.unproven.get(name, now)

    def _left(self, name: str) -> None:
        with self._lock:
            count = self.waiting.pop(name) - 1
            if count:
                self.waiting[name] = count
            else:
                self._lines.pop(name, None)

    def _look_at(self, snapshot: Snapshot) -> None:
        now = self._clock()
        with self._lock:
            for name, endpoints in snapshot.endpoints.items():
                if endpoints:
                    self._found.add(name)
                    if self._lost.pop(name, None) is not None and self.unproven.get(name) == NEVER:
                        self.unproven[name] = now
                elif name in self._found:
                    self._found.discard(name)
                    self._lost[name] = now
            self._changed.notify()

    def _let_go_all(self) -> None:
        with self._lock:
            everybody = [suspended for line in self._lines.values() for _, _, suspended in line]
            self._lines.clear()
        for suspended in everybody:
            suspended.resume()

    def _run(self) -> None:
        """The life of the thread: as long as anybody waits."""
        trials: dict[str, _Trial] = {}
        try:
            self._let_go_in_turn(trials)
        finally:
            for trial in trials.values():
                trial.stands()

    def _let_go_in_turn(self, trials: dict[str, _Trial]) -> None:
        more: dict[str, int] = {}  # how many go on in this round although there is no room
        while True:
            with self._lock:
                for name in trials.keys() - self._lines.keys():
                    trials.pop(name).stands()
                ready = {name: endpoints for name in self._lines if (endpoints := self.endpoints(name))}
                if not ready:
                    more.clear()
                    if not self._changed.wait(IDLE_SECONDS) and not self._lines:
                        self._thread = None
                        return
                    continue
            for name, endpoints in ready.items():
                if name in self.unproven and not self._can_be_tried(name, endpoints, trials):
                    continue
                more[name] = more.get(name, 0) + 1
                room = IN_FLIGHT * len(endpoints) - sum(endpoint.state.in_flight for endpoint in endpoints)
                for suspended in self._first(name, max(room, more[name])):
                    suspended.resume()
            for name in more.keys() - ready.keys():
                del more[name]
            with self._lock:
                self._changed.wait(ROUND_SECONDS)

    def _first(self, name: str, count: int) -> list[SuspendedResponse]:
        first: list[SuspendedResponse] = []
        with self._lock:
            line = self._lines.get(name, [])
            while line and len(first) < count:
                suspended = heapq.heappop(line)[2]
                if not suspended.resumed:
                    first.append(suspended)
        return first

    def _can_be_tried(self, name: str, endpoints: Sequence[Endpoint], trials: dict[str, _Trial]) -> bool:
        """Whether one of the endpoints accepts connections, as far as a trial that has been begun before tells."""
        trial = trials.get(name)
        if trial is not None and self._clock() < trial.due:
            return False
        trials.pop(name, None)
        if trial is not None and trial.stands():
            self.unproven.pop(name, None)
            return True
        trials[name] = _Trial([endpoint.address for endpoint in endpoints[:8]], self._clock() + TRIAL_SECONDS)
        return False


class _Trial:
    """Connections that are being made, to see whether they stand; nothing is sent on them."""

    def __init__(self, addresses: Sequence[Address], due: float) -> None:
        self.due = due
        self._sockets: list[socket.socket] = []
        for address in addresses:
            with suppress(OSError):
                family, kind, protocol, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
                sock = socket.socket(family, kind, protocol)
                self._sockets.append(sock)
                sock.setblocking(False)
                sock.connect_ex(place)

    def stands(self) -> bool:
        """Whether one was accepted, and not ended since. They are closed with that."""
        found = False
        for sock in self._sockets:
            with sock:
                try:
                    sock.getpeername()
                    found = bool(sock.recv(1)) or found
                except BlockingIOError:
                    found = True
                except OSError:
                    continue
        return found
