"""One process's statistics: counted in memory, saved off the request path.

    request threads ──> Pending ── every half second, or before a report ──> Store

Saving is done by the writer thread and by whoever asks for a report, which is why a report holds every exchange that
ended before it was asked for. Trouble with the database is never a request's: counts wait in `Aggregator`, and saving is
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

from .aggregator import Aggregator
from .query import Query
from .report import Report
from .storage_error import StorageError

if TYPE_CHECKING:
    from .store import Store

__all__ = ["Recorder"]

_BATCH_COUNTS = 100  # keys saved in one transaction, with some hundred latency buckets each
_RETRY_SECONDS = 1.0  # from one failed attempt to the next
_RETRY_LOCKED_SECONDS = 0.2  # and when another process was writing
_LOCKED_SECONDS = 5.0  # so long a database may be locked without a word: processes that share it wait for each other
_LOCK_SECONDS = 2.0  # how long a report waits while another thread is at the database
_TIDY_STEPS = 20  # between two flushes, each in a transaction of its own
_STOP_SECONDS = 5.0  # for the writer thread to end
_LAST_ATTEMPTS = 6
_log = logging.getLogger("rgate.plugins.stats")


class Recorder:
    """Saves what `pending` has counted, and reports. Every method may be called from any thread.

    While it is entered, a thread saves every `flush_seconds` and tidies the database every minute; otherwise counts wait in
    memory, and the database is open only while it is being asked. `wall` is the time of day, `clock` a monotonic one, both
    in seconds.

    `flush_siblings` is called before every report. Where several processes share the database it is set to have the
    others `flush()`, so that the report holds their exchanges too; what it raises is logged. Default: nothing to do.
    `warnings` has the trouble with the database under "statistics" while there is some.
    """

    def __init__(
        self,
        store: Store,
        pending: Aggregator,
        *,
        flush_seconds: float = 0.5,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pending = pending
        self.flush_siblings: Callable[[], object] = lambda: None
        self.warnings: dict[str, str] = {}
        self._store = store
        self._store_lock = threading.Lock()
        self._flush_seconds = flush_seconds
        self._wall = wall
        self._clock = clock
        self._state = "ok"
        self._since = 0.0  # on the clock, when the state has become that
        self._told = ""  # the trouble that the log has told of and that is not over
        self._retry_at = float("-inf")
        self._tidied_minute = 0
        self._running = False
        self._stopping = threading.Event()

    def __enter__(self) -> Recorder:
        """Save regularly from now on. Enter it in the process that serves, after any fork."""
        self._stopping.clear()
        self._running = True
        self._writer = threading.Thread(target=self._write_regularly, name="rgate-stats", daemon=True)
        self._writer.start()
        return self

    def __exit__(self, *failure: object) -> None:
        """Save once more, and be done."""
        self._stopping.set()
        self._writer.join(_STOP_SECONDS)
        self._running = False
        self._save_finally()

    def flush(self) -> bool:
        """Save everything counted so far. False when some of it has to wait for the database."""
        self.pending.fold()
        with self._at_store() as free:
            return free and self._save()

    def report(self, query: Query) -> dict[str, Any]:
        """What `/stats` answers: what any process has saved, and what this one could not save yet.

        Never raises: while the database cannot be read, the answer is what this process remembers, and says so.
        """
        try:
            self.flush_siblings()
        except Exception as error:
            _log.exception("statistics: the other processes could not be asked to save", extra={"dedup_key": repr(error)})
        self.pending.fold()
        report = Report(query)
        with self._at_store() as free:
            if free:
                try:
                    saved = self._save()
                    report.add_reading(self._store.read(query.by, query.since_minute, self._minute()))
                    if saved:
                        self._recovered()
                except StorageError as trouble:
                    self._troubled(trouble)
            report.state = self._state if free else "busy"
            # With the store still ours: what is saved later is not in the reading, and must not be missing here either.
            report.add_unsaved(self.pending.batch())
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
        """Save what is folded; the store must be ours. True when nothing is left."""
        if self._clock() < self._retry_at:
            return False
        try:
            while batch := self.pending.batch(_BATCH_COUNTS):
                self._store.add(batch)
                self.pending.settle(batch)
                self._recovered()
        except StorageError as trouble:
            self._troubled(trouble)
            return False
        return True

    def _troubled(self, trouble: StorageError) -> None:
        now = self._clock()
        locked = trouble.state == "locked"
        self._retry_at = now + (_RETRY_LOCKED_SECONDS if locked else _RETRY_SECONDS)
        if trouble.state != self._state:
            self._state, self._since = trouble.state, now
        if trouble.state != self._told and (not locked or now - self._since >= _LOCKED_SECONDS):
            self._told = trouble.state
            self.warnings["statistics"] = f"database {trouble.state}: {trouble}"
            _log.warning("statistics: database %s (%s); counts wait in memory", trouble.state, trouble)

    def _recovered(self) -> None:
        self._state = "ok"
        if self._told:
            self._told = ""
            self.warnings.pop("statistics", None)
            _log.warning("statistics: database ok again")

    def _write_regularly(self) -> None:
        # Not in step with other processes that share the database.
        while not self._stopping.wait(self._flush_seconds * uniform(0.8, 1.0)):
            try:
                self.flush()
                self._tidy()
            except Exception as error:
                _log.exception("statistics: writing failed; trying on", extra={"dedup_key": repr(error)})

    def _tidy(self) -> None:
        """Once a minute: add what is over up into hours and days, and drop what is past its age, a little at a time."""
        minute = self._minute()
        if minute == self._tidied_minute:
            return
        for _ in range(_TIDY_STEPS):
            with self._at_store() as free:
                try:
                    if free and self._store.tidy(minute):
                        continue
                    if free and not self.pending.batch(1):
                        self._recovered()
                except StorageError as trouble:  # the first time that is soon after the start, before there is anything to save
                    self._troubled(trouble)
                self._tidied_minute = minute
                return

    def _save_finally(self) -> None:
        for _ in range(_LAST_ATTEMPTS):
            self._retry_at = float("-inf")
            if self.flush():
                break
        left = sum(counted.total() for counted in self.pending.batch())
        if left:
            _log.error("statistics: %d exchanges could not be saved and are lost", left)
