"""EndpointTable: discovery, running."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import PluginError
from ..model import Backend, Endpoint, Instance
from .asides import Aside, Asides
from .loop import STANDARD, SourceLoop, Timing, Wait, described, unexpected
from .snapshot import NOTHING, Change, Matcher, Snapshot, SourceState, changes

if TYPE_CHECKING:
    from ..hookspecs import DiscoverySource

__all__ = ["EndpointTable"]

_log = logging.getLogger("rgate.discovery")
_changes_log = logging.getLogger("rgate.discovery.changes")


class EndpointTable:
    """Keeps `snapshot` true while it runs. Making one is cheap and does no I/O; reading `snapshot` needs no lock.

    A source that fails keeps its last good list, for as long as it takes. Every source has a thread of its own, and one
    more when it can watch, so a slow one holds up no other. `clock` and `wait` are there for tests. Raises PluginError
    when two sources have one name.
    """

    def __init__(
        self,
        backends: Iterable[Backend],
        sources: Iterable[DiscoverySource],
        *,
        timing: Timing = STANDARD,
        clock: Callable[[], float] = monotonic,
        wait: Wait = threading.Event.wait,
    ) -> None:
        backends = tuple(backends)
        self._backends = tuple(backend.name for backend in backends)
        self._matcher = Matcher(backends)
        self._timing, self._clock, self._wait = timing, clock, wait
        self._publishing = threading.Lock()
        self._asides = Asides()
        self._callbacks: list[Callable[[Sequence[Change]], object]] = []
        self._swap_callbacks: list[Callable[[Snapshot], object]] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._loops: dict[str, SourceLoop] = {}
        for source in sources:
            if source.name in self._loops:
                raise PluginError(f"two discovery sources are named {source.name!r}")
            self._loops[source.name] = SourceLoop(source, self._accept, self._reject, timing, clock, wait)
        nothing: Mapping[str, tuple[()]] = MappingProxyType({name: () for name in self._backends})
        states = MappingProxyType({name: SourceState(name) for name in self._loops})
        self.snapshot = Snapshot(nothing, nothing, states, nothing, NOTHING)

    def start(self) -> None:
        """Begin discovery; returns when every source has been tried once, at the latest after two seconds.

        Never fails: a source that cannot be reached is logged and tried again for ever.
        """
        self._stop = threading.Event()
        self._threads = [thread for loop in self._loops.values() for thread in loop.threads(self._stop)]
        for thread in self._threads:
            thread.start()
        deadline = self._clock() + self._timing.start_patience
        for loop in self._loops.values():
            self._wait(loop.tried, max(0.0, deadline - self._clock()))

    def stop(self) -> None:
        """End discovery; the last snapshot stays. Threads that are inside their source's own I/O are waited for one second."""
        self._stop.set()
        for loop in self._loops.values():
            loop.changed()
        deadline = monotonic() + 1.0
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))
        self._threads.clear()

    def refresh(self) -> None:
        """List every source now, in the calling thread. One that fails says so in `snapshot.sources`."""
        for loop in self._loops.values():
            loop.list_once()

    def set_aside(self, endpoint: Endpoint, by: str, reason: str, *, last_resort: bool = False, on_trial: bool = False) -> None:
        """Give an endpoint no new requests until `by`, and everybody else who has set it aside, takes it back.

        It leaves `snapshot.endpoints` and stands in `snapshot.set_aside`; requests that it has already go on. `reason` is for
        the operator. With `last_resort` it is used all the same while its backend has no other; with `on_trial` it is used
        as far as its `load.claim` lets requests pass. Each counts only when everybody who has set it aside says so.

        It is known by its id and address, so this holds for all backends that it belongs to, and until it is gone from what
        the sources list. Saying it again changes what was said. From any thread.
        """
        self._say(endpoint, by, Aside(reason, last_resort, on_trial))

    def take_back(self, endpoint: Endpoint, by: str) -> None:
        """Undo what `by` has set aside; nothing happens when it has not. From any thread."""
        self._say(endpoint, by, None)

    def on_change(self, callback: Callable[[Sequence[Change]], object]) -> None:
        """Have `callback(changes)` called after every swap that changed something for a backend.

        Calls come from discovery threads and from those that set endpoints aside, one at a time and in order; they must be
        quick and must not call refresh(), set_aside() or take_back(). What one raises is logged. Changes are logged as well,
        under `rgate.discovery.changes`.
        """
        self._callbacks.append(callback)

    def on_swap(self, callback: Callable[[Snapshot], object]) -> None:
        """Have `callback(snapshot)` called now, and whenever anything but the state of a source is new in the snapshot, or
        reshared() is called: for what is to be decided once and not for every request. Otherwise like on_change()."""
        with self._publishing:
            self._swap_callbacks.append(callback)
            _call((callback,), self.snapshot)

    def reshared(self) -> None:
        """Say that endpoints have another `load.share` than before. From any thread."""
        with self._publishing:
            _call(self._swap_callbacks, self.snapshot)

    def _accept(self, name: str, instances: tuple[Instance, ...]) -> None:
        with self._publishing:
            before = self.snapshot.sources[name]
            listed = tuple(sorted(instances, key=lambda instance: instance.id))
            self._publish(replace(before, instances=listed, listed=self._clock(), error=None), before)
            if before.error:
                _log.info("%s: answers %s", name, "now" if before.listed is None else "again")

    def _reject(self, name: str, error: BaseException) -> None:
        with self._publishing:
            before, now = self.snapshot.sources[name], self._clock()
            self._publish(replace(before, error=described(error), failed=now), before)
            if before.error:
                _log.debug("%s: still cannot be listed: %s", name, described(error))
                return
            age = "no list yet" if before.listed is None else f"keeping the list of {now - before.listed:.0f} s ago"
            _log.warning("%s: %s (%s, trying again)", name, described(error), age, exc_info=unexpected(error))

    def _say(self, endpoint: Endpoint, by: str, aside: Aside | None) -> None:
        with self._publishing:
            if self._asides.say(endpoint, by, aside):
                found = self.snapshot.found
                self._swap(replace(self.snapshot, endpoints=found, set_aside=NOTHING))

    def _publish(self, state: SourceState, replaced: SourceState) -> None:
        before = self.snapshot
        sources = MappingProxyType({**before.sources, state.name: state})
        if state.instances == replaced.instances:
            self.snapshot = replace(before, sources=sources)
            return
        if all(source.listed is not None for source in sources.values()):
            self._asides.keep({instance.id for source in sources.values() for instance in source.instances})
        self._swap(self._matcher.join(sources, before))

    def _swap(self, joined: Snapshot) -> None:
        before = self.snapshot
        self.snapshot = after = self._asides.applied(joined, before)
        found = [change for backend in self._backends for change in changes(backend, before, after)]
        for change in found:
            _changes_log.log(logging.WARNING if change.sign == "!" else logging.INFO, "%s", change)
        _call(self._swap_callbacks, after)
        if found:
            _call(self._callbacks, found)


def _call(callbacks: Iterable[Callable[[Any], object]], what: object) -> None:
    for callback in callbacks:
        try:
            callback(what)
        except Exception:
            _log.exception("callback %r failed", callback)
