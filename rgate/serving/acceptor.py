"""The doors of a server: its listening sockets, and what is made of the connections to each."""

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

# So much waits in the kernel for a client that reads slowly. By itself the kernel takes megabytes for each, and a few hundred
# such clients bring the memory of the whole system's TCP to its limit; fast ones are as fast.
UNSENT_BYTES: Final = 131_072
ACCEPT_AT_ONCE: Final = 256  # the listener's next turn comes after all connections that are ready
PAUSE_SECONDS: Final = 0.5  # after the system has no more files to give
_log = logging.getLogger("rgate.serving")

TakeIn = Callable[["type[Connection]", socket.socket, "tuple[str, int]"], object]


class _Poll(Protocol):
    def register(self, fd: int, eventmask: int, /) -> None: ...

    def unregister(self, fd: int, /) -> None: ...


class Acceptor:
    """Listening sockets that are waited for with `poll`, or not.

    `take_in(kind, sock, peer)` is given every new connection; what it makes of an OSError is that the connection is closed.
    `make_room()` is called when the system has no file for another one.
    Each method may be called by any thread. look() must be called now and then. `write_seconds` bounds a send on connections
    that are accepted from now on.
    """

    def __init__(self, poll: _Poll, take_in: TakeIn, write_seconds: float, make_room: Callable[[], object]) -> None:
        self._poll = poll
        self._take_in = take_in
        self.write_seconds = write_seconds
        self._make_room = make_room
        self._doors: dict[int, tuple[socket.socket, type[Connection]]] = {}
        self._inside: set[int] = set()
        self._open_again = 0.0
        self._looked = False

    def add(self, listener: socket.socket, kind: type[Connection]) -> None:
        """One more door; it is not waited for yet."""
        listener.setblocking(False)
        self._doors[listener.fileno()] = (listener, kind)

    def knock(self, fd: int) -> None:
        """Take in whoever waits at the door of this number, if there is one."""
        thread = get_ident()
        self._inside.add(thread)  # first this: afterwards nobody finds a door that is closed meanwhile
        try:
            door = self._doors.get(fd)
            if door is not None:
                self._accept(*door)
        finally:
            self._inside.discard(thread)

    @property
    def taking_in(self) -> bool:
        """Whether a thread may be about to take somebody in. Once False with all closed it stays so."""
        return bool(self._inside)

    def open(self) -> None:
        """Wait for connections from now on."""
        self.shut()
        for fd in self._doors:
            self._poll.register(fd, READABLE | EXCLUSIVE)

    def look(self, now: float) -> None:
        """Open again after a pause."""
        if self._open_again and now >= self._open_again:
            self.open()

    def shut(self) -> None:
        """Wait for no connections; they queue up meanwhile."""
        self._open_again = 0.0
        for fd in self._doors:
            with contextlib.suppress(OSError):  # another thread has done it
                self._poll.unregister(fd)

    def leave(self) -> None:
        """Close the sockets, which others serve on. Who has queued up is taken in: this process may have been the only one to be
        told of them (EPOLLEXCLUSIVE), and the others would wait for the next."""
        self.shut()
        self._empty_queues()
        self.close()

    def close_behind_the_last(self, wait: bool) -> bool:
        """Let nobody else come, take in all who have, and close the sockets. False: call it again, in a moment; only if `wait`.

        Whoever was connected at any time is taken in; whoever is too late can tell, because there was no connection.
        """
        for listener, _ in self._doors.values():
            drop_new_syns(listener)
        coming = wait and any(has_pending_handshakes(sockname(listener)[1]) for listener, _ in self._doors.values())
        self._empty_queues()
        closing = not wait or (self._looked and not coming)  # another CPU may just have been at one that was not to be seen
        self._looked = True
        if closing:
            self.close()
        return closing

    def close(self) -> None:
        """Close the sockets. May be called again."""
        self.shut()
        doors, self._doors = self._doors, {}
        for listener, _ in doors.values():
            listener.close()

    def _empty_queues(self) -> None:
        for door in self._doors.values():
            while self._accept(*door):
                pass

    def _accept(self, listener: socket.socket, kind: type[Connection]) -> bool:
        """Take in who waits at a listener, some at a time; whether there may be more."""
        for _ in range(ACCEPT_AT_ONCE):
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno == errno.EBADF:  # closed by another thread meanwhile
                    return False
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    why = error.strerror
                    _log.error("cannot accept connections at present: %s", why, extra={"dedup_key": why})
                    self.shut()
                    self._make_room()
                    self._open_again = monotonic() + PAUSE_SECONDS
                    return False
                continue
            try:
                sock.setblocking(True)
                if isinstance(peer, tuple):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
                else:
                    peer = ("", 0)  # a unix socket
                set_timeout(sock, socket.SO_SNDTIMEO, self.write_seconds)
                self._take_in(kind, sock, peer)
            except OSError:
                sock.close()
        return True
