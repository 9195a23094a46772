"""A place in the file system to listen at: a unix socket, which only those can reach whom its mode lets."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from .sockets import BACKLOG

__all__ = ["UnixSocketPath"]


class UnixSocketPath:
    """The path of a unix socket, and what this process makes of it.

    Whoever takes it last has it: the next worker process, or the next program. Nobody is without meanwhile, since the new
    socket comes in place of the old one in one step, and is of its mode before anybody can connect. What a process has left
    there that was killed is replaced likewise.
    """

    def __init__(self, path: str, mode: int) -> None:
        self._path = path
        self._mode = mode
        self._own: tuple[int, int] | None = None  # device and inode

    def take(self) -> socket.socket:
        """A socket that listens there. Raises OSError, also for what is there and is no socket of this user."""
        with contextlib.suppress(FileNotFoundError):
            there = os.lstat(self._path)
            if not stat.S_ISSOCK(there.st_mode):
                raise OSError(errno.EEXIST, "there is something else than a socket")
            if there.st_uid != os.geteuid():
                raise OSError(errno.EPERM, "there is a socket of another user")
        fresh = f"{self._path}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(fresh)
            os.chmod(fresh, self._mode)
            listener.listen(BACKLOG)
            self._own = _identity(fresh)
            os.rename(fresh, self._path)
        except BaseException:
            listener.close()
            with contextlib.suppress(OSError):
                os.unlink(fresh)
            raise
        return listener

    def is_served(self) -> bool:
        """Whether somebody listens there. Never blocks."""
        if self._is_own():
            return True
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            try:
                sock.connect(self._path)
            except BlockingIOError:  # its queue is full
                return True
            except OSError:
                return False
        return True

    def leave(self) -> None:
        """Remove the socket, unless another has taken the place."""
        if self._is_own():
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _is_own(self) -> bool:
        # The inode of a socket that is still open is nobody else's.
        try:
            return _identity(self._path) == self._own
        except OSError:
            return False


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino
