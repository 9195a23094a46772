"""A thread with an epoll of its own, which serves many sockets without waiting for any."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from abc import ABC, abstractmethod
from collections import deque
from time import monotonic
from typing import Final, Generic, TypeVar

__all__ = ["SocketLoop"]

EVENTS: Final = 256  # of one wait
STOP_SECONDS: Final = 2.0

_T = TypeVar("_T")
_log = logging.getLogger("rgate.serving")


class SocketLoop(ABC, Generic[_T]):
    """Begins with the first item that is added; before, there is neither thread nor epoll. `add` and `stop` may be called by
    any thread, all else is the loop's own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._new: deque[_T] = deque()
        self._over = False
        self._epoll: select.epoll
        self._wake: int

    def add(self, item: _T) -> None:
        """Serve `item` from now on. After stop(), and when there is no thread to be had, it is only refused."""
        with self._lock:
            if self._thread is None and not self._over:
                self._thread = self._started()
            if self._thread is not None and not self._over:
                self._new.append(item)
                os.eventfd_write(self._wake, 1)
                return
        self._refuse(item)

    def _started(self) -> threading.Thread | None:
        """The thread, with what it needs; None when there is no thread to be had."""
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            _log.error("cannot start the thread %s: %s", self._name, error, extra={"dedup_key": str(error)})
            self._epoll.close()
            os.close(self._wake)
            return None
        return thread

    def stop(self) -> None:
        """End all items now, and those that are yet to come."""
        with self._lock:
            self._over = True
            if self._thread is None:
                return
            os.eventfd_write(self._wake, 1)
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._over:
            events = self._epoll.poll(self._wait_seconds(), EVENTS)
            now = monotonic()
            for fd, event in events:
                self._act(fd, event, now)
            if self._new:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
                while self._new:
                    item = self._new[0]
                    self._enter(item)
                    self._new.popleft()
                    self._begin(item, now)
                    del item  # this frame would keep it until the next one comes
            self._check(now)
        self._end_all()
        self._epoll.close()
        os.close(self._wake)

    @abstractmethod
    def _refuse(self, item: _T) -> None:
        """End an item that cannot be served. Called in whatever thread has added it."""

    @abstractmethod
    def _enter(self, item: _T) -> None:
        """Count an item among those that are served."""

    @abstractmethod
    def _begin(self, item: _T, now: float) -> None:
        """Move what can be moved at once."""

    @abstractmethod
    def _act(self, fd: int, event: int, now: float) -> None:
        """Move what can be moved after an event; `fd` may be one that nobody knows any more."""

    @abstractmethod
    def _wait_seconds(self) -> float:
        """How long to wait for an event at most; -1: for ever."""

    @abstractmethod
    def _check(self, now: float) -> None:
        """Called after every wait: end what is overdue."""

    @abstractmethod
    def _end_all(self) -> None:
        """End all items, those in `_new` too."""
