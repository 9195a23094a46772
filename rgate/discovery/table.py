"""EndpointTable: discovery, running."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..errors import PluginError
from ..model import Backend, Instance
from .loop import STANDARD, SourceLoop, Timing, Wait, described, unexpected
from .snapshot import Change, Matcher, Snapshot, SourceState, changes

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
        self._callbacks: list[Callable[[Sequence[Change]], object]] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._loops: dict[str, SourceLoop] = {}
        for source in sources:
            if source.name in self._loops:
                raise PluginError(f"two discovery sources are named {source.name!r}")
            self._loops[source.name] = SourceLoop(source, self._accept, self._reject, timing, clock, wait)
        nothing: Mapping[str, tuple[()]] = MappingProxyType({name: () for name in self._backends})
        self.snapshot = Snapshot(nothing, nothing, MappingProxyType({name: SourceState(name) for name in self._loops}))

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

    def on_change(self, callback: Callable[[Sequence[Change]], object]) -> None:
        """Have `callback(changes)` called after every swap that changed something for a backend.

        Calls come from discovery threads, one at a time and in order; they must be quick and must not call refresh().
        What one raises is logged. Changes are logged as well, under `rgate.discovery.changes`.
        """
        self._callbacks.append(callback)

    def _accept(self, name: str, instances: tuple[Instance, ...]) -> None:
        with self._publishing:
            before = self.snapshot.sources[name]
            listed = tuple(sorted(instances, key=lambda instance: instance.id))
            self._publish(replace(before, instances=listed, listed=self._clock(), error=None), before)
            if before.error:
                _log.info("%s: answers %s", name, "now" if before.listed is None else "again")

    def _reject(self, name: str, error: Exception) -> None:
        with self._publishing:
            before, now = self.snapshot.sources[name], self._clock()
            self._publish(replace(before, error=described(error), failed=now), before)
            if before.error:
                _log.debug("%s: still cannot be listed: %s", name, described(error))
                return
            age = "no list yet" if before.listed is None else f"keeping the list of {now - before.listed:.0f} s ago"
            _log.warning("%s: %s (%s, trying again)", name, described(error), age, exc_info=unexpected(error))

    def _publish(self, state: SourceState, replaced: SourceState) -> None:
        before = self.snapshot
        sources = MappingProxyType({**before.sources, state.name: state})
        if state.instances == replaced.instances:
            self.snapshot = replace(before, sources=sources)
            return
        self.snapshot = after = self._matcher.join(sources, before)
        found = [change for backend in self._backends for change in changes(backend, before, after)]
        for change in found:
            _changes_log.log(logging.WARNING if change.sign == "!" else logging.INFO, "%s", change)
        for callback in self._callbacks if found else ():
            try:
                callback(found)
            except Exception:
                _log.exception("on_change callback %r failed", callback)
