"""Discovery: the sources of this process. EndpointTable: what they have found, matched to the backends of one gateway."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import PluginError
from ..log import exception_key
from .exclusions import Exclusion, Exclusions
from .model import Endpoint, Instance
from .snapshot import NOTHING, Change, Matcher, Snapshot, SourceState, changes, changes_of_notes
from .source_watcher import DEFAULT_TIMING, SourceWatcher, Timing, Wait, described, unexpected

if TYPE_CHECKING:
    from ..config import Backend
    from ..plugin.hookspecs import DiscoverySource

__all__ = ["Discovery", "EndpointTable"]

OnChange: TypeAlias = Callable[[Sequence[Change]], object]
OnSnapshot: TypeAlias = Callable[[Snapshot], object]

JOIN_SECONDS = 1.0
_log = logging.getLogger("rgate.discovery")
_changes_log = logging.getLogger("rgate.discovery.changes")


class Discovery:
    """Runs discovery sources and keeps the snapshot of the current EndpointTable up to date. One per process.

    Every source has one thread, and a second one if it can watch, so a slow source holds up no other. A source that fails
    keeps its last good list, however long it fails. While a source is equal (==) to a source of the current table, it is the
    same watcher that goes on; a source of the same name that is not equal begins with the last list of the one before it.

    Making one is cheap and does no I/O. `clock` and `wait` are parameters for tests. All methods are thread-safe, except that
    tables are made, started and activated by one thread at a time.

    current  the table whose snapshot is kept up to date, and whose callbacks are called; None before the first activate()
    """

    def __init__(
        self,
        *,
        timing: Timing = DEFAULT_TIMING,
        clock: Callable[[], float] = monotonic,
        wait: Wait = threading.Event.wait,
    ) -> None:
        self.current: EndpointTable | None = None
        self._timing, self._clock, self._wait = timing, clock, wait
        self._lock = threading.Lock()  # of `current`, all snapshots, source states, exclusions and lists of callbacks
        self._exclusions = Exclusions()
        self._on_change: list[OnChange] = []
        self._on_snapshot: list[OnSnapshot] = []
        self._running: dict[SourceWatcher, tuple[threading.Event, list[threading.Thread]]] = {}

    @property
    def is_running(self) -> bool:
        """Whether a source runs."""
        return bool(self._running)

    def on_change(self, callback: OnChange) -> None:
        """Like EndpointTable.on_change(), for the tables of all gateways."""
        self._on_change.append(callback)

    def on_snapshot(self, callback: OnSnapshot) -> None:
        """Like EndpointTable.on_snapshot(), for the tables of all gateways, and called before their own callbacks are."""
        self._on_snapshot.append(callback)

    def watcher(self, source: DiscoverySource) -> SourceWatcher:
        """The watcher of `source`, which may be running."""
        known = self.current.watchers.get(source.name) if self.current is not None else None
        if known is not None and known.source == source:
            return known
        state = known.state if known is not None else None
        return SourceWatcher(source, self._listed, self._failed, self._timing, self._clock, self._wait, state)

    def start(self, table: EndpointTable) -> None:
        """Start the sources of `table` that are not running. Returns when each has been tried once, at the latest after
        `timing.start_timeout`.

        Never fails: a source that cannot be reached is logged and tried again.
        """
        for watcher in table.watchers.values():
            if watcher not in self._running:
                stop = threading.Event()
                self._running[watcher] = stop, watcher.threads(stop)
                for thread in self._running[watcher][1]:
                    thread.start()
        deadline = self._clock() + self._timing.start_timeout
        for watcher in table.watchers.values():
            self._wait(watcher.first_list_done, max(0.0, deadline - self._clock()))

    def activate(self, table: EndpointTable) -> None:
        """Make `table` the current one. Changes since the snapshot of the table before are reported to its callbacks.

        The table before keeps its snapshot, for the requests in flight.
        """
        with self._lock:
            before = self.current.snapshot if self.current is not None else table.snapshot
            self.current = table
            self._swap(table, table.matched(before), before)

    def stop_unused(self) -> None:
        """Stop the sources that the current table does not have. Waits one second at most for threads in a source's I/O."""
        used = self.current.watchers.values() if self.current is not None else ()
        self._stop([watcher for watcher in self._running if watcher not in used])

    def stop(self) -> None:
        """Stop all sources. The last snapshot stays. Waits one second at most for threads in a source's I/O."""
        self._stop(list(self._running))

    def _stop(self, watchers: Collection[SourceWatcher]) -> None:
        stopped = [(watcher, *self._running.pop(watcher)) for watcher in watchers]
        for watcher, stop, _ in stopped:
            stop.set()
            watcher.changed()
        deadline = monotonic() + JOIN_SECONDS
        for _, _, threads in stopped:
            for thread in threads:
                thread.join(max(0.0, deadline - monotonic()))

    def match(self, table: EndpointTable, before: Snapshot) -> Snapshot:
        """The snapshot of `table` by its sources' last lists, with exclusions. Endpoint states are carried over from `before`."""
        with self._lock:
            return self._exclusions.applied(table.matched(before), before)

    def exclude(self, endpoint: Endpoint, by: str, exclusion: Exclusion | None) -> None:
        """Set, or with None remove, what `by` says about an endpoint; see EndpointTable.exclude()."""
        with self._lock:
            if self._exclusions.set(endpoint, by, exclusion) and self.current is not None:
                snapshot = self.current.snapshot
                self._swap(self.current, replace(snapshot, endpoints=snapshot.found, excluded=NOTHING), snapshot)

    def subscribe(self, table: EndpointTable, callback: OnSnapshot) -> None:
        """Add a callback for snapshots of `table`; see EndpointTable.on_snapshot()."""
        with self._lock:
            table.snapshot_callbacks.append(callback)
            if table is self.current:
                _call((callback,), table.snapshot)

    def weights_changed(self) -> None:
        """See EndpointTable.weights_changed()."""
        with self._lock:
            if self.current is not None:
                _call((*self._on_snapshot, *self.current.snapshot_callbacks), self.current.snapshot)

    def _listed(self, watcher: SourceWatcher, instances: tuple[Instance, ...]) -> None:
        listed = tuple(sorted(instances, key=lambda instance: instance.id))
        with self._lock:
            before = watcher.state
            watcher.state = replace(before, instances=listed, listed_at=self._clock(), error=None)
            self._publish(watcher, before)
        if before.error:
            _log.info("%s: answers %s", before.name, "now" if before.listed_at is None else "again")

    def _failed(self, watcher: SourceWatcher, error: BaseException) -> None:
        now = self._clock()
        with self._lock:
            before = watcher.state
            watcher.state = replace(before, error=described(error), failed_at=now)
            self._publish(watcher, before)
        if before.error:
            _log.debug("%s: still cannot be listed: %s", before.name, described(error))
            return
        age = "no list yet" if before.listed_at is None else f"keeping the list of {now - before.listed_at:.0f} s ago"
        _log.warning("%s: %s (%s, trying again)", before.name, described(error), age, exc_info=unexpected(error))

    def _publish(self, watcher: SourceWatcher, before: SourceState) -> None:
        table = self.current
        if table is None or table.watchers.get(before.name) is not watcher:
            return  # of a gateway that is not current yet, or not any more
        sources = table.source_states()
        if watcher.state.instances == before.instances:
            table.snapshot = replace(table.snapshot, sources=sources)
            return
        if all(source.listed_at is not None for source in sources.values()):
            self._exclusions.keep({instance.id for source in sources.values() for instance in source.instances})
        self._swap(table, table.matched(table.snapshot), table.snapshot)

    def _swap(self, table: EndpointTable, matched: Snapshot, before: Snapshot) -> None:
        table.snapshot = after = self._exclusions.applied(matched, before)
        found = [change for backend in table.backends for change in changes(backend, before, after)]
        found += changes_of_notes(before, after)
        for change in found:
            _changes_log.log(logging.WARNING if change.sign in "!?" else logging.INFO, "%s", change)
        _call((*self._on_snapshot, *table.snapshot_callbacks), after)
        if found:
            _call((*self._on_change, *table.change_callbacks), found)


class EndpointTable:
    """The endpoints of one gateway's backends. `snapshot` is what discovery knows now; reading it needs no lock.

    It is kept up to date, and callbacks are called, from the moment the gateway becomes current until another one does; see
    Discovery. Until then the snapshot is what was known when the table was made, and afterwards it stays as it was. Without
    `discovery` the table has one of its own, and is current at once. Raises PluginError when two sources have one name.

    The methods below are for plugins; the other attributes belong to Discovery.
    """

    def __init__(
        self, backends: Iterable[Backend], sources: Iterable[DiscoverySource], discovery: Discovery | None = None
    ) -> None:
        backends = tuple(backends)
        self.backends = tuple(backend.name for backend in backends)
        self.discovery = Discovery() if discovery is None else discovery
        self.watchers: dict[str, SourceWatcher] = {}
        self.change_callbacks: list[OnChange] = []
        self.snapshot_callbacks: list[OnSnapshot] = []
        self._matcher = Matcher(backends)
        for source in sources:
            if source.name in self.watchers:
                raise PluginError(f"two discovery sources are named {source.name!r}")
            self.watchers[source.name] = self.discovery.watcher(source)
        nothing: Mapping[str, tuple[()]] = MappingProxyType(dict.fromkeys(self.backends, ()))
        current = self.discovery.current
        before = current.snapshot if current else Snapshot(nothing, nothing, self.source_states(), nothing, NOTHING)
        self.snapshot: Snapshot = self.discovery.match(self, before)
        if discovery is None:
            self.discovery.activate(self)

    def source_states(self) -> Mapping[str, SourceState]:
        """The state of every source, by name."""
        return MappingProxyType({name: watcher.state for name, watcher in self.watchers.items()})

    def matched(self, before: Snapshot) -> Snapshot:
        """The snapshot by the sources' last lists, with nothing excluded."""
        return self._matcher.match(self.source_states(), before)

    def refresh(self) -> None:
        """List every source now, in the calling thread. A failure is stored in `snapshot.sources`."""
        for watcher in self.watchers.values():
            watcher.list_once()

    def exclude(self, endpoint: Endpoint, by: str, reason: str, *, last_resort: bool = False, on_trial: bool = False) -> None:
        """Give an endpoint no new requests until `by`, and every other caller that has excluded it, readmits it.

        It leaves `snapshot.endpoints` and appears in `snapshot.excluded`; its requests in flight go on. `reason` is for the
        operator. With `last_resort` it is still used while its backend has no other endpoint. With `on_trial` it gets the
        requests that its `state.try_acquire_trial` lets pass. Either has an effect only when all callers that have excluded
        the endpoint set it.

        The endpoint is identified by its id and address, so the exclusion holds for all backends it belongs to, over
        reloads, until the sources no longer list it. Another call replaces what `by` has said. From any thread.
        """
        self.discovery.exclude(endpoint, by, Exclusion(reason, last_resort, on_trial))

    def readmit(self, endpoint: Endpoint, by: str) -> None:
        """Undo the exclusion of an endpoint by `by`, if there is one. From any thread."""
        self.discovery.exclude(endpoint, by, None)

    def on_change(self, callback: OnChange) -> None:
        """Have `callback(changes)` called after every new snapshot that changed something for a backend.

        Calls come from discovery threads and from threads that exclude endpoints, one at a time and in order. They must be
        quick and must not call refresh(), exclude() or readmit(). An exception is logged. Changes are also logged, under
        `rgate.discovery.changes`.
        """
        self.change_callbacks.append(callback)

    def on_snapshot(self, callback: OnSnapshot) -> None:
        """Have `callback(snapshot)` called with every new snapshot in which more than the state of a source is new, and after
        weights_changed(); use it to decide something once instead of for every request.

        The first call comes when the gateway becomes current, or at once if it is. Otherwise like on_change().
        """
        self.discovery.subscribe(self, callback)

    def weights_changed(self) -> None:
        """Have the callbacks for snapshots called, because endpoints have another `state.weight_factor` than before. From any
        thread."""
        self.discovery.weights_changed()


def _call(callbacks: Iterable[Callable[[Any], object]], argument: object) -> None:
    for callback in callbacks:
        try:
            callback(argument)
        except Exception as error:
            _log.exception("callback %r failed", callback, extra={"dedup_key": exception_key(error)})
