"""Where the system has no epoll (macOS, BSD): a thread for every connection, behind the same face.

`ThreadPerConnection` stands in for the epoll and for the crew that waits at it. The thread that waits for a connection is
the one that serves it, so nothing is told twice although poll() is level-triggered. It costs a thread for every
connection, idle ones included, which is why it is only used where there is nothing better.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

from .events import GONE, READABLE, WRITABLE

__all__ = ["ThreadPerConnection", "is_gone"]

LOOK_SECONDS: Final = 0.05  # how long a change of what is waited for may go unseen
GONE_CHECK_SECONDS: Final = 1.0


class ThreadPerConnection:
    """Calls `take(fd, event)` in the thread of a registered descriptor whenever it is ready.

    register, modify, unregister and close are epoll's; len(), start(), look() and end() the crew's. Writability is told
    once for every modify() that asks for it. While a thread is in `take`, look() tells once a second when the other side is
    gone, as epoll would.
    """

    def __init__(self, take: Callable[[int, int], object]) -> None:
        self._take = take
        self._masks: dict[int, int] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._taking: set[int] = set()
        self._running = False
        self._over = False
        self._checked = 0.0
        self.calm = False
        self.ceiling: int | None = None

    def __len__(self) -> int:
        return len(self._threads)

    def register(self, fd: int, mask: int) -> None:
        """Begin to wait for a descriptor."""
        self._masks[fd] = mask
        if self._running:
            self._begin(fd)

    def modify(self, fd: int, mask: int) -> None:
        """Wait for something else. Raises OSError when the descriptor is not registered."""
        if fd not in self._masks:
            raise FileNotFoundError(fd)
        self._masks[fd] = mask

    def unregister(self, fd: int) -> None:
        """Wait no more. Raises OSError when the descriptor is not registered."""
        if self._masks.pop(fd, None) is None:
            raise FileNotFoundError(fd)

    def close(self) -> None:
        """Wait for nothing any more."""
        self._masks.clear()

    def start(self) -> None:
        """Begin to take events."""
        self._running = True
        for fd in list(self._masks):
            self._begin(fd)

    def look(self, now: float) -> bool:
        """Tell of clients that have left while a thread works for them. True: no thread does."""
        if now - self._checked >= GONE_CHECK_SECONDS:
            self._checked = now
            for fd in list(self._taking):
                if is_gone(fd):
                    self._take(fd, GONE)
        return not self._taking

    def end(self, patience_seconds: float) -> bool:
        """Have every thread end after what it is doing; true when all have."""
        self._over = True
        until = monotonic() + patience_seconds
        for thread in list(self._threads.values()):
            thread.join(max(0.0, until - monotonic()))
        return not self._threads

    def _begin(self, fd: int) -> None:
        thread = threading.Thread(target=self._wait, args=(fd,), name="rgate-connection", daemon=True)
        self._threads[fd] = thread
        thread.start()

    def _wait(self, fd: int) -> None:
        """A thread's life: as long as its descriptor is registered."""
        me = threading.current_thread()
        poll = select.poll()
        while not self._over and self._threads.get(fd) is me and (mask := self._masks.get(fd)) is not None:
            poll.register(fd, mask & (READABLE | WRITABLE))
            for _, event in poll.poll(LOOK_SECONDS * 1000):
                if event & select.POLLNVAL:
                    self._masks.pop(fd, None)
                    break
                if event & WRITABLE:
                    self._masks[fd] = mask & ~WRITABLE
                self._taking.add(fd)
                try:
                    self._take(fd, event)
                finally:
                    self._taking.discard(fd)
        if self._threads.get(fd) is me:
            del self._threads[fd]


def is_gone(fd: int) -> bool:
    """Whether the other side of a connection has ended: it is readable, and there is nothing to read."""
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            return copy.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
