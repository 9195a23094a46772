"""Sockets, in the kernel's own terms: listening, waiting, ending."""

from __future__ import annotations

import select
import socket
import struct
from typing import Final

from .events import EPOLL, GONE
from .threads import is_gone

__all__ = ["has_ended", "listen", "listen_for_workers", "reset_when_closed", "set_timeout"]

BACKLOG: Final = 4_096


def listen(host: str, port: int, shared: bool = False) -> socket.socket:
    """A listening socket; port 0 takes a free one. `shared` lets others of this user listen there too. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def listen_for_workers(host: str, port: int, count: int) -> list[socket.socket]:
    """A listening socket for each of `count` worker processes, all on one port. Raises OSError when it is taken."""
    first = listen(host, port)  # SO_REUSEPORT alone would not notice another gateway on this port
    if count == 1:
        return [first]
    port = first.getsockname()[1]
    first.close()
    listeners: list[socket.socket] = []
    try:
        for _ in range(count):
            listeners.append(listen(host, port, shared=True))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def has_ended(sock: socket.socket) -> bool:
    """Whether the other side has ended its half, or all of it, or the socket is closed."""
    if not EPOLL:
        return is_gone(sock.fileno())
    poll = select.poll()
    try:
        poll.register(sock, GONE)
    except (OSError, ValueError):
        return True
    return bool(poll.poll(0))


def set_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """Let the kernel end every single wait (SO_RCVTIMEO, SO_SNDTIMEO) after so long, with BlockingIOError.

    With Python's own timeouts every call would be a poll() first.
    """
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000)))


def reset_when_closed(sock: socket.socket) -> None:
    """Have close() end the connection with a reset: what has been sent must not look complete."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
