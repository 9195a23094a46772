"""Recorder: saves the counts of one process outside of the request path, and makes reports.

    request threads ──> Aggregator ── every half second, or before a report ──> Store

The writer thread saves, and so does every thread that makes a report; a report therefore includes each exchange that ended
before it was requested. A database that cannot be used never delays a request: counts wait in the Aggregator, and saving is
tried again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import uniform
from typing import TYPE_CHECKING, Any

from .aggregator import Aggregator, Kind
from .query import Query
from .report import Report, StorageError

if TYPE_CHECKING:
    from .store import Store

__all__ = ["Recorder"]

_BATCH_COUNTS = 100  # keys saved in one transaction, each with some hundred latency buckets
_RETRY_SECONDS = 1.0  # between attempts after an error
_RETRY_LOCKED_SECONDS = 0.2  # between attempts while another process is writing
_LOCKED_SECONDS = 5.0  # a lock held for less than this is not logged: processes that share a database wait for each other
_LOCK_SECONDS = 2.0  # how long a report waits while another thread uses the database
_COMPACT_STEPS = 20  # between two flushes, each in a transaction of its own
_STOP_SECONDS = 5.0  # for the writer thread to end
_LAST_ATTEMPTS = 6
_log = logging.getLogger("rgate.plugins.stats")


class Recorder:
    """Saves what `aggregator` has counted, and reports. Every method may be called from any thread.

    As a context manager it runs a thread that saves every `flush_seconds` and compacts the database every minute. Outside of
    that, counts wait in memory, and the database is open only during a report. `wall` is the time of day, `clock` a monotonic
    one, both in seconds.

    `flush_other_workers` is called before every report; with several worker processes it makes the others `flush()`, so that the
    report includes their exchanges. What it raises is logged. Default: does nothing. `warnings` has an entry "statistics" while
    the database cannot be used.
    """

    def __init__(
        self,
        store: Store,
        aggregator: Aggregator,
        *,
        flush_seconds: float = 0.5,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.aggregator = aggregator
        self.flush_other_workers: Callable[[], object] = lambda: None
        self.warnings: dict[str, str] = {}
        self._store = store
        self._store_lock = threading.Lock()  # one thread at a time uses the store; protects all below as well
        self._flush_seconds = flush_seconds
        self._wall = wall
        self._clock = clock
        self._state = "ok"
        self._since = 0.0  # when the state became that, by the clock
        self._logged_state = ""  # of an error that was logged and is not over
        self._retry_at = float("-inf")
        self._compacted_minute = 0
        self._running = False
        self._stopping = threading.Event()

    def __enter__(self) -> Recorder:
        """Start saving regularly. Enter it in the process that serves, after any fork."""
        self._stopping.clear()
        self._running = True
        self._writer = threading.Thread(target=self._write_regularly, name="rgate-stats", daemon=True)
        self._writer.start()
        return self

    def __exit__(self, *failure: object) -> None:
        """Stop the thread and save once more."""
        self._stopping.set()
        self._writer.join(_STOP_SECONDS)
        self._running = False
        self._save_finally()

    def flush(self) -> bool:
        """Save everything counted so far. False if some of it has to wait for the database."""
        self.aggregator.aggregate()
        with self._at_store() as free:
            return free and self._save()

    def report(self, query: Query) -> dict[str, Any]:
        """The report for a query: what all processes have saved, and what this one could not save yet.

        Never raises: if the database cannot be read, the report has only the counts in this process's memory, and `storage`
        says so.
        """
        try:
            self.flush_other_workers()
        except Exception as error:
            _log.exception("statistics: the other processes could not be told to save", extra={"dedup_key": repr(error)})
        self.aggregator.aggregate()
        report = Report(query)
        with self._at_store() as free:
            if free:
                try:
                    saved = self._save()
                    report.add_saved(self._store.read(query.by, query.since_minute, self._minute()))
                    if saved:
                        self._on_recovered()
                except StorageError as error:
                    self._on_error(error)
            report.state = self._state if free else "busy"
            # Before the lock is released: what is saved later is missing from the result above and must be counted here.
            report.add_unsaved(self.aggregator.batch())
        return report.json()

    @contextmanager
    def _at_store(self) -> Iterator[bool]:
        free = self._store_lock.acquire(timeout=_LOCK_SECONDS)
        try:
            yield free
        finally:
            if free:
                if not self._running:
                    self._store.close()
                self._store_lock.release()

    def _minute(self) -> int:
        return int(self._wall() // 60)

    def _save(self) -> bool:
        """Save all aggregated counts. The caller holds the store lock. True when nothing is left."""
        if self._clock() < self._retry_at:
            return False
        try:
            while batch := self.aggregator.batch(_BATCH_COUNTS):
                self._store.add(batch)
                self.aggregator.commit(batch)
                self._on_recovered()
        except StorageError as error:
            self._on_error(error)
            return False
        return True

    def _on_error(self, error: StorageError) -> None:
        now = self._clock()
        locked = error.state == "locked"
        self._retry_at = now + (_RETRY_LOCKED_SECONDS if locked else _RETRY_SECONDS)
        if error.state != self._state:
            self._state, self._since = error.state, now
        if error.state != self._logged_state and (not locked or now - self._since >= _LOCKED_SECONDS):
            self._logged_state = error.state
            self.warnings["statistics"] = f"database {error.state}: {error}"
            _log.warning("statistics: database %s (%s); counts wait in memory", error.state, error)

    def _on_recovered(self) -> None:
        self._state = "ok"
        if self._logged_state:
            self._logged_state = ""
            self.warnings.pop("statistics", None)
            _log.warning("statistics: database ok again")

    def _write_regularly(self) -> None:
        # The interval varies so that processes that share the database do not write in step.
        while not self._stopping.wait(self._flush_seconds * uniform(0.8, 1.0)):
            try:
                self.flush()
                self._compact()
            except Exception as error:
                _log.exception("statistics: writing failed; trying again", extra={"dedup_key": repr(error)})

    def _compact(self) -> None:
        """Once a minute: roll finished minutes up into hours and days and drop what is past its age, a little at a time."""
        minute = self._minute()
        if minute == self._compacted_minute:
            return
        for _ in range(_COMPACT_STEPS):
            with self._at_store() as free:
                try:
                    if free and self._store.compact(minute):
                        continue
                    if free and not self.aggregator.batch(1):
                        self._on_recovered()
                except StorageError as error:  # the first call comes soon after the start, before there is anything to save
                    self._on_error(error)
                self._compacted_minute = minute
                return

    def _save_finally(self) -> None:
        for _ in range(_LAST_ATTEMPTS):
            self._retry_at = float("-inf")
            if self.flush():
                break
        left = sum(counted.total() for counted in self.aggregator.batch() if counted.key.kind is Kind.REQUEST)
        if left:
            _log.error("statistics: %d exchanges could not be saved and are lost", left)
