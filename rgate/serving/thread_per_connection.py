"""Serving without epoll (macOS, BSD): one thread per connection.

It exists so that rgate can be developed and tried on such systems; in production use Linux. `ThreadPerConnection` replaces both
the epoll and the thread pool. The thread that waits for a connection also serves it, so no event is handled twice although poll()
is level-triggered. The price is a thread for every connection, idle ones included.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

from .events import RDHUP, READABLE, WRITABLE
from .sockets import peer_closed

__all__ = ["ThreadPerConnection"]

POLL_SECONDS: Final = 0.05  # within this time a changed mask takes effect
DISCONNECT_CHECK_SECONDS: Final = 1.0


class ThreadPerConnection:
    """Calls `handle_event(fd, event)` in the thread of a registered descriptor whenever that is ready.

    register(), modify(), unregister() and close() are those of an epoll; len(), start(), resize() and shutdown() those of a
    ThreadPool. Writability is reported once for every modify() that asks for it. While a thread is in `handle_event`, resize()
    reports once a second if the client has disconnected, as epoll would.
    """

    def __init__(self, handle_event: Callable[[int, int], object]) -> None:
        self._handle_event = handle_event
        self._masks: dict[int, int] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._handling: set[int] = set()
        self._running = False
        self._stopped = False
        self._checked_at = 0.0
        self.saturated = True
        self.ceiling: int | None = None

    def __len__(self) -> int:
        return len(self._threads)

    def register(self, fd: int, mask: int) -> None:
        """Start to wait for a descriptor."""
        self._masks[fd] = mask
        if self._running:
            self._start_thread(fd)

    def modify(self, fd: int, mask: int) -> None:
        """Wait for other events. Raises OSError if the descriptor is not registered."""
        if fd not in self._masks:
            raise FileNotFoundError(fd)
        self._masks[fd] = mask

    def unregister(self, fd: int) -> None:
        """Stop waiting for a descriptor. Raises OSError if it is not registered."""
        if self._masks.pop(fd, None) is None:
            raise FileNotFoundError(fd)

    def close(self) -> None:
        """Stop waiting for all descriptors."""
        self._masks.clear()

    def start(self) -> None:
        """Start handling events."""
        self._running = True
        for fd in list(self._masks):
            self._start_thread(fd)

    def resize(self, now: float) -> bool:
        """Report clients that disconnected while their requests are being served. Returns True if no thread handles an event."""
        if now - self._checked_at >= DISCONNECT_CHECK_SECONDS:
            self._checked_at = now
            for fd in list(self._handling):
                if peer_closed(fd):
                    self._handle_event(fd, RDHUP)
        return not self._handling

    def shutdown(self, timeout_seconds: float) -> bool:
        """End every thread once it has handled its event. True if all have ended within `timeout_seconds` in total."""
        self._stopped = True
        until = monotonic() + timeout_seconds
        for thread in list(self._threads.values()):
            thread.join(max(0.0, until - monotonic()))
        return not self._threads

    def _start_thread(self, fd: int) -> None:
        thread = threading.Thread(target=self._work, args=(fd,), name="rgate-connection", daemon=True)
        self._threads[fd] = thread
        thread.start()

    def _work(self, fd: int) -> None:
        """Run in each thread, as long as its descriptor is registered."""
        this_thread = threading.current_thread()
        poll = select.poll()
        while not self._stopped and self._threads.get(fd) is this_thread and (mask := self._masks.get(fd)) is not None:
            poll.register(fd, mask & (READABLE | WRITABLE))
            for _, event in poll.poll(POLL_SECONDS * 1000):
                if event & select.POLLNVAL:
                    self._masks.pop(fd, None)
                    break
                if event & WRITABLE:
                    self._masks[fd] = mask & ~WRITABLE
                self._handling.add(fd)
                try:
                    self._handle_event(fd, event)
                finally:
                    self._handling.discard(fd)
        if self._threads.get(fd) is this_thread:
            del self._threads[fd]
