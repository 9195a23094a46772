"""Keeps one source listed and watched. Level-triggered: a notice from a source only means "list again", so a lost, repeated or
late notice does no harm."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ..errors import RgateError, is_process_exit
from .snapshot import SourceState

if TYPE_CHECKING:
    from ..plugin.hookspecs import DiscoverySource
    from .model import Instance

__all__ = ["DEFAULT_TIMING", "SourceWatcher", "Timing", "Wait", "described", "unexpected"]

_log = logging.getLogger("rgate.discovery")

Wait: TypeAlias = Callable[[threading.Event, float], bool]


@dataclass(frozen=True, slots=True)
class Timing:
    """When sources are listed and watched. All values are in seconds.

    The first notice after a quiet time causes a list at once. Further notices wait until `coalesce` after the last list, or
    for as long as that list took, so listing takes at most half of a thread's time. Without a notice a source is listed every
    `resync`. A source that fails is tried again after `backoff`, doubled up to `backoff_limit`, less a random part of up to
    half; this counts from the start of the attempt, because an attempt may wait long for an address that is gone.
    `start_timeout` limits how long Discovery.start() waits for the first lists.
    """

    coalesce: float = 0.1
    resync: float = 30.0
    backoff: float = 0.1
    backoff_limit: float = 3.0
    start_timeout: float = 2.0

    def retry_after(self, failures: int, chance: float, took: float = 0.0) -> float:
        """The pause after so many failures in a row, the last of which took `took` seconds. `chance` is random, from 0 to 1."""
        pause = min(self.backoff_limit, self.backoff * 2.0 ** min(failures - 1, 32)) * (1 - chance / 2)
        return max(pause - took, min(pause, self.backoff))


DEFAULT_TIMING = Timing()


class SourceWatcher:
    """Lists one source over and over, and keeps its watch running.

    `on_listed(watcher, instances)` is called with every good list and `on_failed(watcher, error)` with every failure to make
    one, never both at a time. An exception from `on_listed` counts as a failure of the source.

    state            what the source last said; written by Discovery under its lock
    first_list_done  set once the source has been listed, with or without success
    """

    def __init__(
        self,
        source: DiscoverySource,
        on_listed: Callable[[SourceWatcher, tuple[Instance, ...]], None],
        on_failed: Callable[[SourceWatcher, BaseException], None],
        timing: Timing,
        clock: Callable[[], float],
        wait: Wait,
        state: SourceState | None = None,
    ) -> None:
        self.source = source
        self.state = state or SourceState(source.name)
        self.first_list_done = threading.Event()
        self._on_listed, self._on_failed = on_listed, on_failed
        self._timing, self._clock, self._wait = timing, clock, wait
        self._changed = threading.Event()
        self._listing = threading.Lock()
        self._last_list_succeeded = False

    def changed(self) -> None:
        """List again soon. From any thread; never blocks."""
        self._changed.set()

    def threads(self, stop: threading.Event) -> list[threading.Thread]:
        """The threads that keep this source listed until `stop` is set, not yet started. There are two if it can watch."""
        name = f"rgate-discovery-{self.source.name}"
        threads = [threading.Thread(target=self.run_list_loop, args=(stop,), name=name, daemon=True)]
        if callable(getattr(self.source, "watch", None)):
            threads.append(threading.Thread(target=self.run_watch_loop, args=(stop,), name=f"{name}-watch", daemon=True))
        return threads

    def list_once(self, stop: threading.Event | None = None) -> bool:
        """List now and pass the result on. False when that failed. A list that ends after `stop` is set is dropped."""
        with self._listing:  # an older list must not replace a newer one
            self._changed.clear()
            try:
                instances = tuple(self.source.list())
                if stop is None or not stop.is_set():
                    self._on_listed(self, instances)
                self._last_list_succeeded = True
            except BaseException as error:
                if is_process_exit(error):
                    raise
                self._last_list_succeeded = False
                if stop is None or not stop.is_set():
                    self._on_failed(self, error)
            finally:
                self.first_list_done.set()
            return self._last_list_succeeded

    def run_list_loop(self, stop: threading.Event) -> None:
        """List until `stop` is set: on notices, every `resync` seconds, and with back-off after failures."""
        failures = 0
        while not stop.is_set():
            began = self._clock()
            failures = 0 if self.list_once(stop) else failures + 1
            ended = self._clock()
            pause = self._timing.retry_after(failures, random.random(), ended - began) if failures else self._timing.resync
            if self._wait(self._changed, pause):
                quiet_until = ended + max(self._timing.coalesce, ended - began)
                self._wait(stop, max(0.0, quiet_until - self._clock()))

    def run_watch_loop(self, stop: threading.Event) -> None:
        """Watch until `stop` is set. The source is listed when the watch breaks and when it begins again, for what was missed.
        While no watch succeeds, it is listed at every attempt, so changes are still seen within seconds."""
        failures, warned = 0, False
        while not stop.is_set():
            began = self._clock()
            error = self._watch_once(stop)
            if stop.is_set():
                return
            self.changed()
            if self._clock() - began > self._timing.backoff_limit:
                failures, warned = 0, False
            failures += 1
            # Not at the first failure: if listing fails as well, which shows soon, the operator is told about that instead.
            if error and not warned and failures > 3 and self._last_list_succeeded:
                warned = True
                reason, trace = described(error), unexpected(error)
                _log.warning("%s: cannot watch, so listing more often: %s", self.source.name, reason, exc_info=trace)
            self._wait(stop, self._timing.retry_after(failures, random.random(), self._clock() - began))
            self.changed()

    def _watch_once(self, stop: threading.Event) -> BaseException | None:
        try:
            self.source.watch(self.changed, stop)  # type: ignore[attr-defined]  # threads() has checked that it is there
        except BaseException as error:
            if is_process_exit(error):
                raise
            return error
        return None


def unexpected(error: BaseException) -> bool:
    """Whether this is a defect, which needs a traceback, and not a failure outside of the source's control."""
    return not isinstance(error, RgateError | OSError)


def described(error: BaseException) -> str:
    """The words for the operator about an error."""
    text = str(error) or type(error).__name__
    return f"{type(error).__name__}: {text}" if unexpected(error) else text
