"""EndpointTable: discovery, running."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import PluginError
from ..log import exception_key
from .exclusions import Exclusion, Exclusions
from .model import Endpoint, Instance
from .snapshot import NOTHING, Change, Matcher, Snapshot, SourceState, changes, changes_of_notes
from .source_watcher import STANDARD, SourceWatcher, Timing, Wait, described, unexpected

if TYPE_CHECKING:
    from ..config import Backend
    from ..plugin.hookspecs import DiscoverySource

__all__ = ["EndpointTable"]

_log = logging.getLogger("rgate.discovery")
_changes_log = logging.getLogger("rgate.discovery.changes")


class EndpointTable:
    """Keeps `snapshot` true while it runs. Making one is cheap and does no I/O; reading `snapshot` needs no lock.

    A source that fails keeps its last good list, for as long as it takes. Every source has a thread of its own, and one
    more when it can watch, so a slow one holds up no other. `clock` and `wait` are there for tests. Raises PluginError
    when two sources have one name.

    `before` is the table whose place it is to take, by take_over(): it begins with the lists of the sources of the same name,
    and with what is set aside. A source that equals (==) its forerunner is not begun anew; that one goes on.
    """

    def __init__(
        self,
        backends: Iterable[Backend],
        sources: Iterable[DiscoverySource],
        *,
        timing: Timing = STANDARD,
        clock: Callable[[], float] = monotonic,
        wait: Wait = threading.Event.wait,
        before: EndpointTable | None = None,
    ) -> None:
        backends = tuple(backends)
        self._backends = tuple(backend.name for backend in backends)
        self._matcher = Matcher(backends)
        self._timing, self._clock, self._wait = timing, clock, wait
        self._publishing: threading.Lock = before._publishing if before else threading.Lock()
        self._asides: Exclusions = before._asides if before else Exclusions()
        self._callbacks: list[Callable[[Sequence[Change]], object]] = []
        self._swap_callbacks: list[Callable[[Snapshot], object]] = []
        self._before = before
        self._replaced = False
        self._line: list[EndpointTable] = before._line if before else [self]  # shared; so nobody holds those between
        self._threads: dict[str, tuple[threading.Event, list[threading.Thread]]] = {}
        self._loops: dict[str, SourceWatcher] = {}
        self._shared: set[str] = set()
        for source in sources:
            if source.name in self._loops:
                raise PluginError(f"two discovery sources are named {source.name!r}")
            forerunner = before._loops.get(source.name) if before else None
            if forerunner is not None and forerunner.source == source:
                self._shared.add(source.name)
                self._loops[source.name] = forerunner
            else:
                self._loops[source.name] = SourceWatcher(source, self._accept, self._reject, timing, clock, wait)
        nothing: Mapping[str, tuple[()]] = MappingProxyType({name: () for name in self._backends})
        self.snapshot = Snapshot(nothing, nothing, MappingProxyType({}), nothing, NOTHING)
        with self._publishing:
            self.snapshot = self._joined_with(before.snapshot if before else self.snapshot, self._loops.keys())

    def start(self) -> None:
        """Begin discovery; returns when every source has been tried once, at the latest after two seconds.

        Never fails: a source that cannot be reached is logged and tried again for ever.
        """
        for name, loop in self._loops.items():
            if self._before is None or name not in self._shared:
                self._begin(name, loop)
        deadline = self._clock() + self._timing.start_patience
        for loop in self._loops.values():
            self._wait(loop.tried, max(0.0, deadline - self._clock()))

    def _begin(self, name: str, loop: SourceWatcher) -> None:
        stop = threading.Event()
        threads = loop.threads(stop)
        self._threads[name] = (stop, threads)
        for thread in threads:
            thread.start()

    def stop(self) -> None:
        """End discovery; the last snapshot stays. Threads that are inside their source's own I/O are waited for one second."""
        for name, (stop, _) in self._threads.items():
            stop.set()
            self._loops[name].changed()
        deadline = monotonic() + 1.0
        for _, threads in self._threads.values():
            for thread in threads:
                thread.join(max(0.0, deadline - monotonic()))
        self._threads.clear()

    @property
    def in_force(self) -> bool:
        """Whether requests are led by this table: not before take_over(), when there was one before, and not after another's."""
        return self._before is None and not self._replaced

    def take_over(self, before: EndpointTable) -> None:
        """Be the table in force: what goes on of `before` tells this one from now on. `before` keeps its snapshot.

        Until then this one tells nobody of changes; now it tells of what is another way than in `before`.
        """
        with self._publishing:
            before._replaced, self._before, self._line[0] = True, None, self
            for name in self._shared:
                self._loops[name].tell(self._accept, self._reject)
                if name in before._threads:
                    self._threads[name] = before._threads.pop(name)
            self._swap(self._joined_with(before.snapshot, self._shared), self._as_here(before.snapshot))

    def _joined_with(self, before: Snapshot, sources: Collection[str]) -> Snapshot:
        """The snapshot with the lists of `sources` as they are in `before`, and the loads that it has."""
        states = {
            name: before.sources.get(name) or SourceState(name) if name in sources else self.snapshot.sources[name]
            for name in self._loops
        }
        before = self._as_here(before)
        both = {name: (*self.snapshot.found.get(name, ()), *endpoints) for name, endpoints in before.found.items()}
        joined = self._matcher.join(MappingProxyType(states), replace(self.snapshot, found=both))
        return self._asides.applied(joined, self.snapshot)

    def _as_here(self, before: Snapshot) -> Snapshot:
        """A snapshot of another table, with nothing where it has not all the backends of this one."""
        nothing: Mapping[str, tuple[()]] = dict.fromkeys(self._backends, ())
        return replace(
            before,
            endpoints={**nothing, **before.endpoints},
            unusable={**nothing, **before.unusable},
            found={**nothing, **before.found},
        )

    def refresh(self) -> None:
        """List every source now, in the calling thread. One that fails says so in `snapshot.sources`."""
        for loop in self._loops.values():
            loop.list_once()

    def exclude(self, endpoint: Endpoint, by: str, reason: str, *, last_resort: bool = False, on_trial: bool = False) -> None:
        """Give an endpoint no new requests until `by`, and everybody else who has set it aside, takes it back.

        It leaves `snapshot.endpoints` and stands in `snapshot.excluded`; requests that it has already go on. `reason` is for
        the operator. With `last_resort` it is used all the same while its backend has no other; with `on_trial` it is used
        as far as its `state.try_acquire_trial` lets requests pass. Each counts only when everybody who has set it aside says so.

        It is known by its id and address, so this holds for all backends that it belongs to, and until it is gone from what
        the sources list. Saying it again changes what was said. From any thread.
        """
        self._say(endpoint, by, Exclusion(reason, last_resort, on_trial))

    def readmit(self, endpoint: Endpoint, by: str) -> None:
        """Undo what `by` has set aside; nothing happens when it has not. From any thread."""
        self._say(endpoint, by, None)

    def on_change(self, callback: Callable[[Sequence[Change]], object]) -> None:
        """Have `callback(changes)` called after every swap that changed something for a backend.

        Calls come from discovery threads and from those that set endpoints aside, one at a time and in order; they must be
        quick and must not call refresh(), exclude() or take_back(). What one raises is logged. Changes are logged as well,
        under `rgate.discovery.changes`.
        """
        self._callbacks.append(callback)

    def on_snapshot(self, callback: Callable[[Snapshot], object]) -> None:
        """Have `callback(snapshot)` called now, and whenever anything but the state of a source is new in the snapshot, or
        reshared() is called: for what is to be decided once and not for every request. Otherwise like on_change()."""
        with self._publishing:
            self._swap_callbacks.append(callback)
            _call((callback,), self.snapshot)

    def weights_changed(self) -> None:
        """Say that endpoints have another `state.weight_factor` than before. From any thread."""
        with self._publishing:
            _call(self._swap_callbacks, self.snapshot)

    def _accept(self, name: str, instances: tuple[Instance, ...]) -> None:
        with self._publishing:
            self._in_charge_of(name)._listed(name, instances)

    def _reject(self, name: str, error: BaseException) -> None:
        with self._publishing:
            self._in_charge_of(name)._not_listed(name, error)

    def _in_charge_of(self, name: str) -> EndpointTable:
        """The table in force, if this one's source goes on there: a list may have been under way while this one was replaced."""
        newest = self._line[0]
        return newest if self._replaced and newest._loops.get(name) is self._loops[name] else self

    def _listed(self, name: str, instances: tuple[Instance, ...]) -> None:
        before = self.snapshot.sources[name]
        listed = tuple(sorted(instances, key=lambda instance: instance.id))
        self._publish(replace(before, instances=listed, listed=self._clock(), error=None), before)
        if before.error:
            _log.info("%s: answers %s", name, "now" if before.listed is None else "again")

    def _not_listed(self, name: str, error: BaseException) -> None:
        before, now = self.snapshot.sources[name], self._clock()
        self._publish(replace(before, error=described(error), failed=now), before)
        if before.error:
            _log.debug("%s: still cannot be listed: %s", name, described(error))
            return
        age = "no list yet" if before.listed is None else f"keeping the list of {now - before.listed:.0f} s ago"
        _log.warning("%s: %s (%s, trying again)", name, described(error), age, exc_info=unexpected(error))

    def _say(self, endpoint: Endpoint, by: str, aside: Exclusion | None) -> None:
        with self._publishing:
            if not self._asides.say(endpoint, by, aside):
                return
            # Who speaks of requests in flight may still know this one only.
            table = self._line[0] if self._replaced else self
            table._swap(replace(table.snapshot, endpoints=table.snapshot.found, excluded=NOTHING))

    def _publish(self, state: SourceState, replaced: SourceState) -> None:
        before = self.snapshot
        sources = MappingProxyType({**before.sources, state.name: state})
        if state.instances == replaced.instances:
            self.snapshot = replace(before, sources=sources)
            return
        if all(source.listed is not None for source in sources.values()):
            self._asides.keep({instance.id for source in sources.values() for instance in source.instances})
        self._swap(self._matcher.join(sources, before))

    def _swap(self, joined: Snapshot, before: Snapshot | None = None) -> None:
        before = before or self.snapshot
        self.snapshot = after = self._asides.applied(joined, before)
        told = self._backends if self._before is None else ()  # else it is not in force
        found = [change for backend in told for change in changes(backend, before, after)]
        found += changes_of_notes(before, after) if told else ()
        for change in found:
            _changes_log.log(logging.WARNING if change.sign in "!?" else logging.INFO, "%s", change)
        _call(self._swap_callbacks, after)
        if found:
            _call(self._callbacks, found)


def _call(callbacks: Iterable[Callable[[Any], object]], what: object) -> None:
    for callback in callbacks:
        try:
            callback(what)
        except Exception as error:
            _log.exception("callback %r failed", callback, extra={"dedup_key": exception_key(error)})
