"""The threads of a server: a few that take turns at one epoll, more while all of them are held up."""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
from collections.abc import Callable
from time import monotonic, process_time
from typing import Final

__all__ = ["ThreadPool"]

SURPLUS_WAIT_SECONDS: Final = 1.0
GROW_PAUSE_SECONDS: Final = 1.0  # after there was no thread to be had
BUSY_SHARE: Final = 0.85  # of one CPU: more threads would not get more done

# Each thread takes so much address space, whatever `ulimit -s` says. The most that code in Python can need before it meets
# RecursionError (sorted() with a key that calls sorted(), and so on) is 3 MiB with 3.11 and 5 MiB with 3.13, where json.loads()
# of brackets without an end needs 2; with less than that the process would crash.
STACK_BYTES: Final = (4 if sys.version_info < (3, 12) else 8) * 1024 * 1024

# A thread that has read something waits so long for the interpreter while others compute; five times, for a proxied request.
# With Python's own 5 ms, clients that keep some threads busy make all others wait for tens of milliseconds. Measured with 32
# connections, and with four that open new ones without a pause: half a millisecond costs no more CPU for a request.
SWITCH_SECONDS: Final = 0.0005
_log = logging.getLogger("rgate.serving")


class _Worker(threading.Thread):
    """One thread. `turn` changes with every event it takes; `waiting` is true while it waits for one."""

    def __init__(self, work: Callable[[_Worker], None], extra: bool) -> None:
        super().__init__(name="rgate-worker", daemon=True)
        self._work = work
        self.extra = extra
        self.turn = 0
        self.waiting = False

    def run(self) -> None:
        self._work(self)


class ThreadPool:
    """Calls `take(fd, event)` in one of its threads for everything that `epoll` tells.

    There are `base` threads, and up to `most` while all are taken although the CPU is not: then they wait for backends.
    When there are as many, `held_up(None)` says how many more may come, because so many wait for something else. When the
    system gives no more threads, it is told how many may be held up at most, of those that there are.
    look() must be called regularly (some 100 times a second while there is traffic); it adds threads and lets them go. While
    there are no more than `base`, it is `calm`; it ceases to be so one look before the first one comes. `most` may be
    changed at any time. `ceiling` is how many threads there were when the system gave no other the last time; None: it does.
    """

    def __init__(
        self,
        epoll: select.epoll,
        take: Callable[[int, int], object],
        base: int,
        most: int,
        held_up: Callable[[int | None], int],
    ) -> None:
        self._epoll = epoll
        self._take = take
        self._base = base
        self.most = most
        self._held_up = held_up
        self._grows_again = 0.0
        self.calm = True
        self.ceiling: int | None = None
        self._workers: set[_Worker] = set()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._over = False
        self._surplus = 0
        self._turns = 0
        self._all_taken = 0
        self._looked = monotonic()
        self._cpu_seconds = process_time()

    def __len__(self) -> int:
        return len(self._workers)

    def start(self) -> None:
        """Begin to take events."""
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
        self._epoll.register(self._wake, select.EPOLLIN)
        for _ in range(self._base):
            self._add(extra=False)

    def look(self, now: float) -> bool:
        """Add threads when all are taken and the CPU is not, let some go when many wait. True: nothing has happened since."""
        used = process_time()
        cpu_is_busy = used - self._cpu_seconds > BUSY_SHARE * (now - self._looked)
        self._looked, self._cpu_seconds = now, used
        waiting = turns = 0
        for worker in list(self._workers):
            waiting += worker.waiting
            turns += worker.turn
        present = len(self._workers)
        self._all_taken = self._all_taken + 1 if not waiting and not cpu_is_busy else 0
        self.calm = present <= self._base and not self._all_taken
        if self._all_taken >= 2:
            if now >= self._grows_again:
                most = self.most + (self._held_up(None) if present >= self.most else 0)
                for _ in range(min(max(present // 2, 2), most - present)):
                    if not self._add(extra=True):
                        self._grows_again = now + GROW_PAUSE_SECONDS
                        break
            else:
                self._held_up(max(present - self.most, present // 2))
        self._surplus = min(present - self._base, waiting - max(2, present // 4)) if waiting else 0
        quiet = turns == self._turns and waiting > 0
        self._turns = turns
        return quiet

    def end(self, patience_seconds: float) -> bool:
        """Have every thread end after what it is doing; true when all have, within `patience_seconds` together."""
        self._over = True
        os.eventfd_write(self._wake, 1)  # stays readable, so every worker sees it
        until = monotonic() + patience_seconds
        for worker in list(self._workers):
            worker.join(max(0.0, until - monotonic()))
        if self._workers:
            return False
        os.close(self._wake)
        return True

    def _add(self, extra: bool) -> bool:
        worker = _Worker(self._work, extra)
        self._workers.add(worker)
        before = threading.stack_size(STACK_BYTES)
        try:
            worker.start()
        except RuntimeError as error:  # no more threads to be had
            self._workers.discard(worker)
            self.ceiling = len(self._workers)
            words = "cannot start another thread: %s; with %d there are, the slowest clients are cut sooner"
            _log.error(words, error, len(self._workers), extra={"dedup_key": str(error)})
            return False
        finally:
            threading.stack_size(before)
        self.ceiling = None
        return True

    def _work(self, worker: _Worker) -> None:
        """A worker's life."""
        poll, take = self._epoll.poll, self._take
        wait_seconds = SURPLUS_WAIT_SECONDS if worker.extra else -1
        while not self._over:
            worker.waiting = True
            events = poll(wait_seconds, 1)
            worker.waiting = False
            worker.turn += 1
            for fd, event in events:
                take(fd, event)
            if worker.extra and self._surplus > 0:
                self._surplus -= 1
                break
        self._workers.discard(worker)
