"""Accepts connections on the listening sockets of a server."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from .events import EXCLUSIVE, READABLE
from .sockets import drop_new_syns, has_pending_handshakes, set_timeout, sockname

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["Acceptor"]

# The kernel buffers this much unsent data per connection. By default it takes megabytes, and a few hundred clients that read
# slowly bring the TCP memory of the whole system to its limit. Fast clients are not slowed down.
NOTSENT_LOWAT_BYTES: Final = 131_072
ACCEPT_BATCH: Final = 256  # then connections that are ready are served before more are accepted
PAUSE_SECONDS: Final = 0.5  # after the system has run out of file descriptors or memory
_log = logging.getLogger("rgate.serving")

OnAccept = Callable[["type[Connection]", socket.socket, "tuple[str, int]"], object]


class _Poll(Protocol):
    def register(self, fd: int, eventmask: int, /) -> None: ...

    def unregister(self, fd: int, /) -> None: ...


class Acceptor:
    """Accepts connections on listening sockets, which `poll` waits for unless the acceptor is paused.

    Every accepted connection is passed to `on_accept(connection_class, sock, peer)`. If that raises OSError, the connection is
    closed. `make_room()` is called when the system has no file descriptor for another connection; then the acceptor pauses for
    PAUSE_SECONDS. `write_seconds` bounds each send on connections accepted from now on.

    Every method may be called from any thread. resume_if_due() must be called regularly.
    """

    def __init__(self, poll: _Poll, on_accept: OnAccept, write_seconds: float, make_room: Callable[[], object]) -> None:
        self._poll = poll
        self._on_accept = on_accept
        self.write_seconds = write_seconds
        self._make_room = make_room
        self._listeners: dict[int, tuple[socket.socket, type[Connection]]] = {}
        self._accepting_threads: set[int] = set()
        self._resume_at = 0.0  # 0: no pause that ends by itself
        self._drained_once = False

    def add(self, listener: socket.socket, connection_class: type[Connection]) -> None:
        """Add a listening socket. Its connections are accepted after the next resume()."""
        listener.setblocking(False)
        self._listeners[listener.fileno()] = (listener, connection_class)

    def accept_ready(self, fd: int) -> None:
        """Accept the connections that wait at this listening socket; has no effect if `fd` is not one."""
        thread = get_ident()
        self._accepting_threads.add(thread)  # before the look-up: see `accepting`
        try:
            entry = self._listeners.get(fd)
            if entry is not None:
                self._accept(*entry)
        finally:
            self._accepting_threads.discard(thread)

    @property
    def accepting(self) -> bool:
        """Whether a thread may be about to accept a connection. Once False after close() it stays False: a thread that enters
        accept_ready() later finds no listening socket."""
        return bool(self._accepting_threads)

    def resume(self) -> None:
        """Accept connections from now on."""
        self.pause()
        for fd in self._listeners:
            self._poll.register(fd, READABLE | EXCLUSIVE)

    def resume_if_due(self, now: float) -> None:
        """Resume after a pause for lack of file descriptors."""
        if self._resume_at and now >= self._resume_at:
            self.resume()

    def pause(self) -> None:
        """Accept no connections until resume(); they wait in the kernel's queue."""
        self._resume_at = 0.0
        for fd in self._listeners:
            with contextlib.suppress(OSError):  # another thread has done it
                self._poll.unregister(fd)

    def hand_off(self) -> None:
        """Close the sockets, which other processes continue to serve. First accept the connections in the queues: possibly only
        this process was woken for them (EPOLLEXCLUSIVE), and the others would not wake before the next connection."""
        self.pause()
        self._empty_queues()
        self.close()

    def drain_and_close(self, wait: bool) -> bool:
        """Refuse new connections, accept all that exist, and close the sockets. If this returns False, which it does only with
        `wait`, call it again a moment later.

        Every client whose connection was established is served; a client that is too late can tell, because it never connected.
        """
        for listener, _ in self._listeners.values():
            drop_new_syns(listener)
        pending = wait and any(has_pending_handshakes(sockname(listener)[1]) for listener, _ in self._listeners.values())
        self._empty_queues()
        # Wait for a second call in any case: another CPU may be processing a handshake that is not visible yet.
        done = not wait or (self._drained_once and not pending)
        self._drained_once = True
        if done:
            self.close()
        return done

    def close(self) -> None:
        """Close the sockets. May be called again."""
        self.pause()
        listeners, self._listeners = self._listeners, {}
        for listener, _ in listeners.values():
            listener.close()

    def _empty_queues(self) -> None:
        for entry in self._listeners.values():
            while self._accept(*entry):
                pass

    def _accept(self, listener: socket.socket, connection_class: type[Connection]) -> bool:
        """Accept a batch of connections. Returns whether there may be more."""
        for _ in range(ACCEPT_BATCH):
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno == errno.EBADF:  # closed by another thread
                    return False
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    reason = error.strerror
                    _log.error("cannot accept connections at present: %s", reason, extra={"dedup_key": reason})
                    self.pause()
                    self._make_room()
                    self._resume_at = monotonic() + PAUSE_SECONDS
                    return False
                continue
            try:
                sock.setblocking(True)
                if isinstance(peer, tuple):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)
                else:
                    peer = ("", 0)  # a unix socket
                set_timeout(sock, socket.SO_SNDTIMEO, self.write_seconds)
                self._on_accept(connection_class, sock, peer)
            except OSError:
                sock.close()
        return True
