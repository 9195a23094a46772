"""Sockets, in the kernel's own terms: listening, waiting, ending."""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import struct
from pathlib import Path
from typing import Final

from .events import EPOLL, FAILED, GONE
from .threads import is_gone

__all__ = [
    "drop_new_syns",
    "has_pending_handshakes",
    "listen",
    "peer_closed",
    "set_rst_on_close",
    "set_timeout",
    "sockname",
    "was_reset",
]

BACKLOG: Final = 4_096
SO_ATTACH_FILTER: Final = 26  # Linux; the socket module has no name for it
SYN_RECV: Final = "03"  # in /proc/net/tcp
# Every TCP packet but a SYN. One instruction each: load the flags; is SYN among them?; then nothing of it; else all of it.
_NO_SYN: Final = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF_FFFF))
)


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


def sockname(listener: socket.socket) -> tuple[str, int]:
    """Host and port of a listening socket; of a unix socket "unix://PATH" and 0."""
    if listener.family == socket.AF_UNIX:
        return f"unix://{listener.getsockname()}", 0
    host, port = listener.getsockname()[:2]
    return host, port


def peer_closed(sock: socket.socket) -> bool:
    """Whether the other side has ended its half, or all of it, or the socket is closed."""
    if not EPOLL:
        return is_gone(sock.fileno())
    poll = select.poll()
    try:
        poll.register(sock, GONE)
    except (OSError, ValueError):
        return True
    return bool(poll.poll(0))


def was_reset(sock: socket.socket) -> bool:
    """Whether the other side has reset the connection, so that nothing can be sent any more, or the socket is closed."""
    poll = select.poll()
    try:
        poll.register(sock, 0)
        if EPOLL:
            return any(event & (FAILED | select.POLLNVAL) for _, event in poll.poll(0))
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))  # elsewhere a hang-up may be an end of one half
    except (OSError, ValueError):
        return True


def set_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """Let the kernel end every single wait (SO_RCVTIMEO, SO_SNDTIMEO) after so long, with BlockingIOError.

    With Python's own timeouts every call would be a poll() first.
    """
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000)))


def set_rst_on_close(sock: socket.socket) -> None:
    """Have close() end the connection with a reset: what has been sent must not look complete."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def drop_new_syns(listener: socket.socket) -> None:
    """Have the kernel drop every further attempt to connect, as if it were lost on the way, and go on with those that have begun.

    Without it there is always one more connection between the last accept() and close(), which would reset it. Linux only;
    elsewhere nothing happens. It is the socket's for good, in whatever process that is open.
    """
    program = ctypes.create_string_buffer(_NO_SYN, len(_NO_SYN))
    filter_ = struct.pack("@HP", len(_NO_SYN) // 8, ctypes.addressof(program))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_)


def has_pending_handshakes(port: int, tables: tuple[str, ...] = ("/proc/net/tcp", "/proc/net/tcp6")) -> bool:
    """Whether a client that wants to connect to this port has been answered, but its last word has not come.

    It may think that it is connected. False where the system does not tell.
    """
    end = f":{port:04X}"
    for table in tables:
        with contextlib.suppress(OSError):
            rows = (line.split(None, 4) for line in Path(table).read_text().splitlines()[1:])
            if any(row[1].endswith(end) and row[3] == SYN_RECV for row in rows):
                return True
    return False
