"""Binds unix sockets, which can be reached only by the users that the mode of the file admits."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from .sockets import BACKLOG

__all__ = ["UnixSocketPath"]


class UnixSocketPath:
    """The path of a unix socket that several processes bind in turn.

    The process that binds it last owns it: the next worker process, or the next program after an upgrade. There is always a
    socket meanwhile, because a new one replaces the old one in one step, after its mode has been set. The socket that a killed
    process left behind is replaced in the same way.
    """

    def __init__(self, path: str, mode: int) -> None:
        self._path = path
        self._mode = mode
        self._own: tuple[int, int] | None = None  # device and inode

    def bind(self) -> socket.socket:
        """A socket that listens on the path. Raises OSError, also if the path exists and is not a socket of this user."""
        with contextlib.suppress(FileNotFoundError):
            existing = os.lstat(self._path)
            if not stat.S_ISSOCK(existing.st_mode):
                raise OSError(errno.EEXIST, "the path exists and is not a socket")
            if existing.st_uid != os.geteuid():
                raise OSError(errno.EPERM, "the path is a socket of another user")
        temporary = f"{self._path}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(temporary)
            os.chmod(temporary, self._mode)
            listener.listen(BACKLOG)
            self._own = _identity(temporary)
            os.rename(temporary, self._path)
        except BaseException:
            listener.close()
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        return listener

    def is_listening(self) -> bool:
        """Whether any process listens on the path. Never blocks."""
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

    def unlink(self) -> None:
        """Remove the socket, unless another process has replaced it."""
        if self._is_own():
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _is_own(self) -> bool:
        # The inode of an open socket is not reused.
        try:
            return _identity(self._path) == self._own
        except OSError:
            return False


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino
