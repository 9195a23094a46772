"""Scheduler: runs jobs at given times, in a few threads."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

__all__ = ["Scheduler"]

MAX_THREADS: Final = 8
STOP_SECONDS: Final = 1.0

_log = logging.getLogger("rgate.plugins.health")


class Scheduler:
    """Runs jobs when they are due. The first job starts a thread; more are started, eight at most, while jobs wait for one.

    Jobs may block for seconds; exceptions that they raise are logged. Every method may be called from any thread. The condition
    `_changed` protects all other fields.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._running = False

    def start(self) -> None:
        """Start running jobs; before this, they are only queued."""
        with self._changed:
            self._running = True
            self._ensure_thread()

    def call_later(self, seconds: float, job: Callable[[], object]) -> None:
        """Call `job()` in so many seconds."""
        with self._changed:
            heapq.heappush(self._jobs, (monotonic() + seconds, next(self._numbers), job))
            self._ensure_thread()
            self._changed.notify()

    def stop(self) -> None:
        """Drop all jobs, and wait up to one second for those that are running."""
        with self._changed:
            self._running = False
            self._jobs.clear()
            threads, self._threads = self._threads, []
            self._changed.notify_all()
        deadline = monotonic() + STOP_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))

    def _ensure_thread(self) -> None:
        if self._running and self._jobs and not self._idle and len(self._threads) < MAX_THREADS:
            name = f"rgate-health-{len(self._threads) + 1}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._threads.append(thread)
            self._idle += 1
            thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._running and (not self._jobs or self._jobs[0][0] > monotonic()):
                    self._changed.wait(self._jobs[0][0] - monotonic() if self._jobs else None)
                if not self._running:
                    self._idle -= 1
                    return
                _, _, job = heapq.heappop(self._jobs)
                self._idle -= 1
                self._ensure_thread()
            try:
                job()
            except Exception as error:
                _log.exception("job %r failed", job, extra={"dedup_key": (repr(job), repr(error))})
            with self._changed:
                self._idle += 1
