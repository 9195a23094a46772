"""Socket operations that the standard library lacks: listening, timeouts in the kernel, state of the peer, resets."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
from pathlib import Path
from typing import Final

from .events import EPOLL, FAILED, RDHUP

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
# A BPF program that accepts every TCP packet except a SYN. Its instructions: load the flags; if SYN is set, continue, else skip
# one; accept 0 bytes; accept all bytes.
_NO_SYN: Final = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF_FFFF))
)


def listen(host: str, port: int, shared: bool = False) -> socket.socket:
    """A listening socket; port 0 takes a free one. With `shared`, other sockets of this user can listen on the same port. Raises
    OSError."""
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
    """Host and port of a listening socket; for a unix socket "unix://PATH" and 0."""
    if listener.family == socket.AF_UNIX:
        return f"unix://{listener.getsockname()}", 0
    host, port = listener.getsockname()[:2]
    return host, port


def peer_closed(sock: socket.socket | int) -> bool:
    """Whether the peer has closed its sending side or the whole connection, or the socket itself is closed."""
    if not EPOLL:
        return _is_at_end(sock if isinstance(sock, int) else sock.fileno())
    poll = select.poll()
    try:
        poll.register(sock, RDHUP)
    except (OSError, ValueError):
        return True
    return bool(poll.poll(0))


def _is_at_end(fd: int) -> bool:
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            return copy.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def was_reset(sock: socket.socket) -> bool:
    """Whether the peer has reset the connection, so that nothing can be sent any more, or the socket itself is closed."""
    poll = select.poll()
    try:
        poll.register(sock, 0)
        if EPOLL:
            return any(event & (FAILED | select.POLLNVAL) for _, event in poll.poll(0))
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))  # on other systems POLLHUP may mean a half-close
    except (OSError, ValueError):
        return True


def set_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """Have the kernel end every single wait (`option` is SO_RCVTIMEO or SO_SNDTIMEO) after `seconds`, with BlockingIOError.

    With Python's own timeouts every call would start with a poll().
    """
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000)))


def set_rst_on_close(sock: socket.socket) -> None:
    """Have close() reset the connection, so that a truncated response does not look complete."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def drop_new_syns(listener: socket.socket) -> None:
    """Have the kernel drop new connection attempts, as if their packets were lost, while those already begun can complete.

    Without it a connection could always arrive between the last accept() and close(), which would reset it. Linux only; on other
    systems nothing happens. The filter stays on the socket for good, in every process that has it open.
    """
    program = ctypes.create_string_buffer(_NO_SYN, len(_NO_SYN))
    filter_ = struct.pack("@HP", len(_NO_SYN) // 8, ctypes.addressof(program))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_)


def has_pending_handshakes(port: int, tables: tuple[str, ...] = ("/proc/net/tcp", "/proc/net/tcp6")) -> bool:
    """Whether a connection to this port is in SYN_RECV: SYN-ACK sent, final ACK not yet received.

    Its client may already consider it established. False where the system has no such tables.
    """
    end = f":{port:04X}"
    for table in tables:
        with contextlib.suppress(OSError):
            rows = (line.split(None, 4) for line in Path(table).read_text().splitlines()[1:])
            if any(row[1].endswith(end) and row[3] == SYN_RECV for row in rows):
                return True
    return False
