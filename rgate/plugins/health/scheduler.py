"""Jobs at their time, done by a few threads."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

__all__ = ["Scheduler"]

MOST_THREADS: Final = 8
PATIENCE_SECONDS: Final = 1.0

_log = logging.getLogger("rgate.plugins.health")


class Scheduler:
    """Does jobs when they are due. A thread comes when the first job does, and more, up to eight, while jobs wait for one.

    Jobs may block, each for seconds; what one raises is logged. From any thread.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._running = False

    def start(self) -> None:
        """Begin with what is due; without this jobs are only taken down."""
        with self._changed:
            self._running = True
            self._staff()

    def after(self, seconds: float, job: Callable[[], object]) -> None:
        """Have `job()` called in so many seconds."""
        with self._changed:
            heapq.heappush(self._jobs, (monotonic() + seconds, next(self._numbers), job))
            self._staff()
            self._changed.notify()

    def stop(self) -> None:
        """Do no more. A job that is under way is waited for one second."""
        with self._changed:
            self._running = False
            self._jobs.clear()
            threads, self._threads = self._threads, []
            self._changed.notify_all()
        deadline = monotonic() + PATIENCE_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))

    def _staff(self) -> None:
        if self._running and self._jobs and not self._idle and len(self._threads) < MOST_THREADS:
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
                self._staff()
            try:
                job()
            except Exception as error:
                _log.exception("job %r failed", job, extra={"dedup_key": (repr(job), repr(error))})
            with self._changed:
                self._idle += 1
