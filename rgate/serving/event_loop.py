"""A thread with an epoll of its own that serves many sockets, without waiting for any one of them."""

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

__all__ = ["EventLoop"]

MAX_EVENTS: Final = 256  # of one wait
STOP_SECONDS: Final = 2.0  # how long stop() waits for the thread

_T = TypeVar("_T")
_log = logging.getLogger("rgate.serving")


class EventLoop(ABC, Generic[_T]):
    """Base class of Tunnels and Streams. Its items are the tunnels, or the connections whose responses are relayed.

    Thread and epoll are made when the first item is added. add() and stop() may be called from any thread; everything else runs
    in the loop's thread. A lock makes sure that an item is either accepted before stop() or rejected.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._new: deque[_T] = deque()
        self._stopped = False
        self._epoll: select.epoll
        self._wake: int

    def add(self, item: _T) -> None:
        """Serve `item` from now on. It is rejected after stop(), and if no thread can be started."""
        with self._lock:
            if self._thread is None and not self._stopped:
                self._thread = self._start_thread()
            if self._thread is not None and not self._stopped:
                self._new.append(item)
                os.eventfd_write(self._wake, 1)
                return
        self._reject(item)

    def _start_thread(self) -> threading.Thread | None:
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
        """End all items, and reject those added later."""
        with self._lock:
            self._stopped = True
            if self._thread is None:
                return
            os.eventfd_write(self._wake, 1)
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopped:
            events = self._epoll.poll(self._timeout_seconds(), MAX_EVENTS)
            now = monotonic()
            for fd, event in events:
                self._handle_event(fd, event, now)
            if self._new:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
                while self._new:
                    item = self._new[0]
                    self._register(item)  # before it leaves _new, so that len() always counts it
                    self._new.popleft()
                    self._begin(item, now)
                    del item  # otherwise this frame would keep it in memory until the next one
            self._after_wait(now)
        self._end_all()
        self._epoll.close()
        os.close(self._wake)

    @abstractmethod
    def _reject(self, item: _T) -> None:
        """End an item that cannot be served. Called in the thread that added it."""

    @abstractmethod
    def _register(self, item: _T) -> None:
        """Count an item among those being served."""

    @abstractmethod
    def _begin(self, item: _T, now: float) -> None:
        """Relay the bytes that are available immediately."""

    @abstractmethod
    def _handle_event(self, fd: int, event: int, now: float) -> None:
        """Relay after an event. `fd` may belong to an item that has ended since."""

    @abstractmethod
    def _timeout_seconds(self) -> float:
        """How long to wait for events at most; -1 is for ever."""

    @abstractmethod
    def _after_wait(self, now: float) -> None:
        """Called after every wait: end items past their deadlines."""

    @abstractmethod
    def _end_all(self) -> None:
        """End all items, including those in `_new`."""
