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
    from .endpoint_table import Discovery
    from .model import Address, Endpoint
    from .snapshot import Snapshot

__all__ = ["EndpointQueue"]

ROUND_SECONDS: Final = 0.01
IN_FLIGHT: Final = 32  # requests in flight per endpoint, up to which those that wait are resumed at once
TRIAL_SECONDS: Final = 0.1  # for which a connection must stay open: a published port accepts before the container does
IDLE_SECONDS: Final = 1.0
SLACK: Final = 64
NEVER: Final = float("-inf")
_log = logging.getLogger("rgate.discovery")


class EndpointQueue:
    """Requests that wait for an endpoint of their backend, in the order in which they started. One per process; thread-safe.

    A request waits when its backend has lost its last endpoint, or when its endpoints refuse connections. It waits only if
    that has been so for less than the backend's `queue_seconds`, and until that many seconds after its own start at most.
    There is no waiting for a backend that has had no endpoint, or has not answered, since the process started, so that a
    wrong config shows at once.

    At most `max_queued` requests wait in all, and 80 % of them for one of several backends.

    When an endpoint appears, as many requests as have room in it (IN_FLIGHT) are resumed at once. The others follow a hundred
    times per second, one more each time. Requests that arrive meanwhile wait behind them. Before requests are resumed for
    endpoints that have refused connections, a connection to one of them must have stayed open for TRIAL_SECONDS. The thread
    `rgate-queue` does all this; it exists while requests wait.

    waiting    how many requests wait, by backend name
    unproven   backends that have not answered since they refused, or at all; proven() must be called for these
    """

    def __init__(self, discovery: Discovery | None = None, clock: Callable[[], float] = monotonic) -> None:
        self.waiting: dict[str, int] = {}
        self.unproven: dict[str, float] = {}  # since when; NEVER: it has never answered
        self.max_queued = 0
        self._discovery = discovery
        self._clock = clock
        self._lock = threading.Lock()  # of all below, and of `waiting`; `unproven` is only changed by single operations
        self._changed = threading.Condition(self._lock)
        self._queues: dict[str, list[tuple[float, int, SuspendedResponse]]] = {}
        self._numbers = itertools.count()
        self._lost: dict[str, float] = {}
        self._found: set[str] = set()
        self._shares: dict[str, int] = {}
        self._thread: threading.Thread | None = None
        if discovery is not None:
            discovery.on_snapshot(self._on_snapshot)

    def configure(self, backends: Iterable[Backend], max_queued: int) -> None:
        """Set the backends that requests may wait for, and how many requests may wait."""
        names = [backend.name for backend in backends]
        with self._lock:
            self.max_queued = max_queued
            self._found.intersection_update(names)
            share = max_queued if len(names) == 1 else max(1, max_queued * 4 // 5) if max_queued else 0
            self._shares = dict.fromkeys(names, share)
            for gone in self.unproven.keys() - set(names):
                del self.unproven[gone]
            for name in names:
                if name not in self._found and name not in self._lost:
                    self.unproven.setdefault(name, NEVER)

    def endpoints(self, backend: str) -> tuple[Endpoint, ...]:
        """The endpoints that new requests for a backend choose from now."""
        table = self._discovery.current if self._discovery is not None else None
        return table.snapshot.endpoints.get(backend, ()) if table is not None else ()

    def park(
        self, environ: WSGIEnvironment, backend: Backend, go_on: Callable[[bool], Iterable[bytes]], fault: GatewayError
    ) -> SuspendedResponse:
        """Suspend a request until there is an endpoint; `go_on` as in SuspendedResponse. Raises `fault` if it may not wait."""
        suspended = self.suspended(environ, backend, go_on, has_failed=True)
        if suspended is None:
            raise fault
        return suspended

    def suspended(
        self, environ: WSGIEnvironment, backend: Backend, go_on: Callable[[bool], Iterable[bytes]], has_failed: bool = False
    ) -> SuspendedResponse | None:
        """The same, but returns None if it may not wait. `has_failed` is false when the request has not been refused, but others
        wait already."""
        queue_seconds, name = backend.queue_seconds, backend.name
        if not queue_seconds or not SuspendedResponse.can_wait(environ):
            return None
        exchange: Exchange = environ["rgate.exchange"]
        now = self._clock()
        left_seconds = exchange.started + queue_seconds - now
        with self._lock:
            if left_seconds <= 0 or now - self._since(name, now, has_failed) >= queue_seconds:
                return None
            if self.waiting.get(name, 0) >= self._shares.get(name, 0) or sum(self.waiting.values()) >= self.max_queued:
                words = "backend %s: %d requests wait for an endpoint; more are answered 503 (server.max_queued: %d)"
                _log.warning(words, name, self.waiting.get(name, 0), self.max_queued, extra={"dedup_key": name})
                return None
            self.waiting[name] = self.waiting.get(name, 0) + 1
            suspended = SuspendedResponse(environ, left_seconds, go_on, on_close=lambda: self._left(name))
            queue = self._queues.setdefault(name, [])
            if len(queue) > 2 * self.waiting[name] + SLACK:  # it still holds requests that no longer wait
                queue[:] = [each for each in queue if not each[2].resumed]
                heapq.heapify(queue)
            heapq.heappush(queue, (exchange.started, next(self._numbers), suspended))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rgate-queue", daemon=True)
                self._thread.start()
            self._changed.notify()
        return suspended

    def proven(self, backend: str) -> None:
        """Note that this backend has answered."""
        self.unproven.pop(backend, None)

    def _since(self, name: str, now: float, has_failed: bool) -> float:
        """The time since which nothing answers; NEVER if nothing ever has."""
        if not self.endpoints(name):
            # The snapshot shows that the last endpoint is gone a moment before _on_snapshot() is called.
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
                self._queues.pop(name, None)

    def _on_snapshot(self, snapshot: Snapshot) -> None:
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

    def resume_all(self) -> None:
        """Resume all requests that wait, because the config has changed; RouteDispatch gives them to the current gateway."""
        with self._lock:
            resumed = [suspended for queue in self._queues.values() for _, _, suspended in queue]
            self._queues.clear()
        for suspended in resumed:
            suspended.resume()

    def _run(self) -> None:
        trials: dict[str, _Trial] = {}
        try:
            self._resume_in_turn(trials)
        finally:
            for trial in trials.values():
                trial.succeeded()

    def _resume_in_turn(self, trials: dict[str, _Trial]) -> None:
        more: dict[str, int] = {}  # how many are resumed in this round although there is no room
        while True:
            with self._lock:
                for name in trials.keys() - self._queues.keys():
                    trials.pop(name).succeeded()
                ready = {name: endpoints for name in self._queues if (endpoints := self.endpoints(name))}
                if not ready:
                    more.clear()
                    if not self._changed.wait(IDLE_SECONDS) and not self._queues:
                        self._thread = None
                        return
                    continue
            for name, endpoints in ready.items():
                if name in self.unproven and not self._is_proven_by_trial(name, endpoints, trials):
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
            queue = self._queues.get(name, [])
            while queue and len(first) < count:
                suspended = heapq.heappop(queue)[2]
                if not suspended.resumed:
                    first.append(suspended)
        return first

    def _is_proven_by_trial(self, name: str, endpoints: Sequence[Endpoint], trials: dict[str, _Trial]) -> bool:
        """Whether a trial that was started earlier shows that one of the endpoints accepts connections. Starts one otherwise."""
        trial = trials.get(name)
        if trial is not None and self._clock() < trial.due:
            return False
        trials.pop(name, None)
        if trial is not None and trial.succeeded():
            self.unproven.pop(name, None)
            return True
        trials[name] = _Trial([endpoint.address for endpoint in endpoints[:8]], self._clock() + TRIAL_SECONDS)
        return False


class _Trial:
    """Connections that are being made, to see whether they stay open. Nothing is sent on them."""

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

    def succeeded(self) -> bool:
        """Whether one was accepted and has not been closed since. Closes them all."""
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
