"""The loop around one source. Level-triggered: whatever a source notices only means "list again", so that a lost,
doubled or late notice does no harm."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ..errors import RgateError, is_process_exit

if TYPE_CHECKING:
    from ..plugin.hookspecs import DiscoverySource
    from .model import Instance

__all__ = ["STANDARD", "SourceWatcher", "Timing", "Wait", "described", "unexpected"]

_log = logging.getLogger("rgate.discovery")

Wait: TypeAlias = Callable[[threading.Event, float], bool]


@dataclass(frozen=True, slots=True)
class Timing:
    """How discovery paces itself; everything in seconds.

    The first notice after quiet is acted on at once; further ones wait until `coalesce` after the last list, or as long
    as that list took, so that listing never takes more than half of a thread. Without a notice a source is listed every
    `resync`. One that fails is tried again after `backoff`, doubled up to `backoff_limit`, less up to half of it at
    random; that counts from the beginning of the attempt, as one may have waited long for an address that has gone.
    `start_patience` bounds how long EndpointTable.start() waits for the first lists.
    """

    coalesce: float = 0.1
    resync: float = 30.0
    backoff: float = 0.1
    backoff_limit: float = 3.0
    start_patience: float = 2.0

    def retry_after(self, failures: int, chance: float, took: float = 0.0) -> float:
        """The pause after so many failures in a row, the last of which took so long; `chance` is a random number from 0 to 1."""
        pause = min(self.backoff_limit, self.backoff * 2.0 ** min(failures - 1, 32)) * (1 - chance / 2)
        return max(pause - took, min(pause, self.backoff))


STANDARD = Timing()


class SourceWatcher:
    """Lists one source over and over, and keeps its watch alive.

    `accept` is given every good list, `reject` every failure to make one, never both at a time. What `accept` raises
    counts as a failure of the source. `tried` is set once the source has been listed, well or not.
    """

    def __init__(
        self,
        source: DiscoverySource,
        accept: Callable[[str, tuple[Instance, ...]], None],
        reject: Callable[[str, BaseException], None],
        timing: Timing,
        clock: Callable[[], float],
        wait: Wait,
    ) -> None:
        self.source = source
        self.tried = threading.Event()
        self._accept, self._reject = accept, reject
        self._timing, self._clock, self._wait = timing, clock, wait
        self._changed = threading.Event()
        self._listing = threading.Lock()
        self._lists_well = False

    def tell(self, accept: Callable[[str, tuple[Instance, ...]], None], reject: Callable[[str, BaseException], None]) -> None:
        """Give lists and failures to these from now on."""
        self._accept, self._reject = accept, reject

    def changed(self) -> None:
        """There may be something new. From any thread; never blocks."""
        self._changed.set()

    def threads(self, stop: threading.Event) -> list[threading.Thread]:
        """The threads that keep this source listed until `stop`, not yet started: a second one if the source can watch."""
        name = f"rgate-discovery-{self.source.name}"
        threads = [threading.Thread(target=self.keep_listed, args=(stop,), name=name, daemon=True)]
        if callable(getattr(self.source, "watch", None)):
            threads.append(threading.Thread(target=self.keep_watched, args=(stop,), name=f"{name}-watch", daemon=True))
        return threads

    def list_once(self, stop: threading.Event | None = None) -> bool:
        """List now and hand the result over; False when that failed. A list that ends after `stop` is dropped."""
        with self._listing:  # an older list must not replace a newer one
            self._changed.clear()
            try:
                instances = tuple(self.source.list())
                if stop is None or not stop.is_set():
                    self._accept(self.source.name, instances)
                self._lists_well = True
            except BaseException as error:
                if is_process_exit(error):
                    raise
                self._lists_well = False
                if stop is None or not stop.is_set():
                    self._reject(self.source.name, error)
            finally:
                self.tried.set()
            return self._lists_well

    def keep_listed(self, stop: threading.Event) -> None:
        """List until `stop`: at notices, every `resync` seconds, and with back-off after failures."""
        failures = 0
        while not stop.is_set():
            began = self._clock()
            failures = 0 if self.list_once(stop) else failures + 1
            ended = self._clock()
            pause = self._timing.retry_after(failures, random.random(), ended - began) if failures else self._timing.resync
            if self._wait(self._changed, pause):
                quiet_until = ended + max(self._timing.coalesce, ended - began)
                self._wait(stop, max(0.0, quiet_until - self._clock()))

    def keep_watched(self, stop: threading.Event) -> None:
        """Watch until `stop`. When the watch breaks and when it is begun again the source is listed, for what was missed;
        while no watch succeeds that happens at every attempt, so changes are still seen within seconds."""
        failures, told = 0, False
        while not stop.is_set():
            began = self._clock()
            error = self._watch_once(stop)
            if stop.is_set():
                return
            self.changed()
            if self._clock() - began > self._timing.backoff_limit:
                failures, told = 0, False
            failures += 1
            # Not at once: if listing fails as well, which will be known soon, that is what the operator is told.
            if error and not told and failures > 3 and self._lists_well:
                told = True
                reason, trace = described(error), unexpected(error)
                _log.warning("%s: cannot watch, so listing more often: %s", self.source.name, reason, exc_info=trace)
            self._wait(stop, self._timing.retry_after(failures, random.random(), self._clock() - began))
            self.changed()

    def _watch_once(self, stop: threading.Event) -> BaseException | None:
        try:
            self.source.watch(self.changed, stop)  # type: ignore[attr-defined]  # asked for in threads()
        except BaseException as error:
            if is_process_exit(error):
                raise
            return error
        return None


def unexpected(error: BaseException) -> bool:
    """Whether this is a defect, of which a traceback is wanted, and no failure that a source can do nothing about."""
    return not isinstance(error, RgateError | OSError)


def described(error: BaseException) -> str:
    """What to tell the operator about an error."""
    text = str(error) or type(error).__name__
    return f"{type(error).__name__}: {text}" if unexpected(error) else text
