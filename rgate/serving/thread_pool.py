"""The worker threads of a server. They wait on one epoll; threads are added while all are blocked and the CPU is not busy."""

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
GROW_PAUSE_SECONDS: Final = 1.0  # after the system refused to start a thread
BUSY_SHARE: Final = 0.85  # of one CPU; above it more threads would not get more done

# The address space of each thread, independent of `ulimit -s`. The deepest stack that Python code can reach before RecursionError
# (sorted() with a key that calls sorted(), and so on) is 3 MiB with 3.11 and 5 MiB with 3.13, where json.loads() of unclosed
# brackets needs 2 MiB. With a smaller stack the process would crash.
STACK_BYTES: Final = (4 if sys.version_info < (3, 12) else 8) * 1024 * 1024

# A thread that has received data waits this long for the interpreter's lock while others compute; five times per proxied request.
# With Python's default of 5 ms, clients that keep a few threads busy delay all others by tens of milliseconds. Measured with 32
# connections, and with four that reconnect without a pause: 0.5 ms costs no more CPU per request.
SWITCH_SECONDS: Final = 0.0005
_log = logging.getLogger("rgate.serving")


class _PoolThread(threading.Thread):
    """One thread. It alone writes `waiting` (for an event) and `events_handled`; it ends when surplus only if `temporary`."""

    def __init__(self, work: Callable[[_PoolThread], None], temporary: bool) -> None:
        super().__init__(name="rgate-worker", daemon=True)
        self._work = work
        self.temporary = temporary
        self.events_handled = 0
        self.waiting = False

    def run(self) -> None:
        self._work(self)


class ThreadPool:
    """Calls `handle_event(fd, event)` in one of its threads for every event of `epoll`.

    There are `min_threads` threads, and up to `max_threads` while all are taken although the CPU is not busy, which means that
    they wait for backends. Once there are `max_threads`, `blocked_on_clients(None)` returns how many more are allowed, because
    that many threads wait for clients instead. While the system refuses to start threads, `blocked_on_clients(limit)` is called
    with the number of threads that may wait for clients, of those that exist.

    resize() must be called regularly, about 100 times a second under load, by one thread; it starts threads and lets some end.
    `max_threads` may be changed at any time. `saturated` is False while there are only `min_threads` threads; it becomes True
    one call of resize() before the first temporary thread starts. `ceiling` is the number of threads when the system last
    refused to start another one, or None if the last start succeeded.
    """

    def __init__(
        self,
        epoll: select.epoll,
        handle_event: Callable[[int, int], object],
        min_threads: int,
        max_threads: int,
        blocked_on_clients: Callable[[int | None], int],
    ) -> None:
        self._epoll = epoll
        self._handle_event = handle_event
        self._min_threads = min_threads
        self.max_threads = max_threads
        self._blocked_on_clients = blocked_on_clients
        self._next_grow_at = 0.0
        self.saturated = False
        self.ceiling: int | None = None
        self._threads: set[_PoolThread] = set()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopped = False
        self._surplus = 0
        self._events_handled = 0
        self._all_taken_ticks = 0
        self._resized_at = monotonic()
        self._cpu_seconds = process_time()

    def __len__(self) -> int:
        return len(self._threads)

    def start(self) -> None:
        """Start handling events."""
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
        self._epoll.register(self._wake, select.EPOLLIN)
        for _ in range(self._min_threads):
            self._add(temporary=False)

    def resize(self, now: float) -> bool:
        """Add threads if all are taken and the CPU is not busy; let some end if many wait. Returns True if the pool has been idle
        since the last call."""
        used = process_time()
        cpu_is_busy = used - self._cpu_seconds > BUSY_SHARE * (now - self._resized_at)
        self._resized_at, self._cpu_seconds = now, used
        waiting = events_handled = 0
        for thread in list(self._threads):  # a copy made in one step; threads remove themselves at any time
            waiting += thread.waiting
            events_handled += thread.events_handled
        count = len(self._threads)
        self._all_taken_ticks = self._all_taken_ticks + 1 if not waiting and not cpu_is_busy else 0
        self.saturated = count > self._min_threads or self._all_taken_ticks > 0
        if self._all_taken_ticks >= 2:
            if now >= self._next_grow_at:
                limit = self.max_threads + (self._blocked_on_clients(None) if count >= self.max_threads else 0)
                for _ in range(min(max(count // 2, 2), limit - count)):
                    if not self._add(temporary=True):
                        self._next_grow_at = now + GROW_PAUSE_SECONDS
                        break
            else:
                self._blocked_on_clients(max(count - self.max_threads, count // 2))
        self._surplus = min(count - self._min_threads, waiting - max(2, count // 4)) if waiting else 0
        idle = events_handled == self._events_handled and waiting > 0
        self._events_handled = events_handled
        return idle

    def shutdown(self, timeout_seconds: float) -> bool:
        """End every thread once it has handled its event. True if all have ended within `timeout_seconds` in total."""
        self._stopped = True
        os.eventfd_write(self._wake, 1)  # stays readable, so it wakes every thread
        until = monotonic() + timeout_seconds
        for thread in list(self._threads):
            thread.join(max(0.0, until - monotonic()))
        if self._threads:
            return False
        os.close(self._wake)
        return True

    def _add(self, temporary: bool) -> bool:
        thread = _PoolThread(self._work, temporary)
        self._threads.add(thread)
        stack_bytes = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        except RuntimeError as error:  # the system refuses
            self._threads.discard(thread)
            self.ceiling = len(self._threads)
            message = "cannot start another thread: %s; with only %d, the slowest clients are disconnected sooner"
            _log.error(message, error, len(self._threads), extra={"dedup_key": str(error)})
            return False
        finally:
            threading.stack_size(stack_bytes)
        self.ceiling = None
        return True

    def _work(self, thread: _PoolThread) -> None:
        """Run in each thread: handle events until the pool is shut down or the thread is surplus."""
        poll, handle_event = self._epoll.poll, self._handle_event
        timeout_seconds = SURPLUS_WAIT_SECONDS if thread.temporary else -1
        while not self._stopped:
            thread.waiting = True
            events = poll(timeout_seconds, 1)
            thread.waiting = False
            thread.events_handled += 1
            for fd, event in events:
                handle_event(fd, event)
            if thread.temporary and self._surplus > 0:
                self._surplus -= 1  # threads may race here and one too many end; resize() corrects that
                break
        self._threads.discard(thread)
