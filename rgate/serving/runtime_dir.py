"""Finds admin sockets: unix sockets in a runtime directory, one for each gateway, named by its port.

A gateway uses the first of these directories that it can. Commands search all of them; inside a systemd unit only the first:

    $RUNTIME_DIRECTORY      of a systemd unit with RuntimeDirectory=
    /run/rgate              writable for root, or for the user it was made for (by an image or tmpfiles.d)
    $XDG_RUNTIME_DIR/rgate  of a logged-in user
    /tmp/rgate-UID          otherwise; only if the user owns it and no other user has access

This module imports few others, because `rgate healthcheck` runs every few seconds; so the listening side, which needs more, is in
unix_socket.py.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

__all__ = ["AdminSocket", "admin_sockets", "directories", "make_directory", "socket_name", "socket_paths"]

SYSTEM: Final = "/run/rgate"
MAX_PATH_BYTES: Final = 96  # of the 107 that an address can have; UnixSocketPath first binds to a longer name
CONNECT_SECONDS: Final = 1.0
_ANY_HOST: Final = ("", "127.0.0.1", "0.0.0.0", "::", "localhost")
_NAME: Final = re.compile(r"(?:(?P<host>.+):)?(?P<port>[0-9]{1,5})\.sock")


class AdminSocket(NamedTuple):
    """The admin socket of a running gateway: its path, the host in its name ("" for loopback or all addresses), the port, and
    whether this user may connect to it."""

    path: str
    host: str
    port: int
    accessible: bool


def directories(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The possible runtime directories of this user, in order of preference. They may not exist."""
    unit = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    user = environ.get("XDG_RUNTIME_DIR", "")
    found = [
        unit,
        SYSTEM,
        f"{user}/rgate" if user else "",
        f"/tmp/rgate-{os.geteuid()}",
    ]  # not TMPDIR: gateway and command may have different ones
    return [directory for directory in dict.fromkeys(found) if directory.startswith("/")]


def socket_name(host: str, port: int) -> str:
    """The file name of the admin socket of a gateway that listens on this address: 8080.sock, or 192.0.2.1:8080.sock."""
    return f"{port}.sock" if host in _ANY_HOST else f"{host}:{port}.sock"


def socket_paths(host: str, port: int) -> list[str]:
    """The possible paths of the admin socket of a gateway that listens on this address, in order of preference."""
    return [f"{directory}/{socket_name(host, port)}" for directory in directories()]


def make_directory(path: str) -> None:
    """Make the directory of a socket. Raises OSError if there can be no socket at this path."""
    directory = os.path.dirname(path)
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, f"the path has more than {MAX_PATH_BYTES} bytes")
    with suppress(FileExistsError):
        os.mkdir(directory, 0o755 if directory == SYSTEM else 0o700)
    if not _is_safe(directory):
        raise OSError(errno.EPERM, "the directory is accessible to other users")


def admin_sockets(environ: Mapping[str, str] = os.environ, port: int | None = None) -> list[AdminSocket]:
    """The admin sockets that a process listens on, for one port or for all, accessible ones first. In a systemd unit with a
    runtime directory only those in it are searched, because another unit may have its own."""
    searched = directories(environ)[: 1 if environ.get("RUNTIME_DIRECTORY", "").startswith("/") else None]
    found = [each for directory in searched for each in _in(directory, port)]
    return sorted(found, key=lambda each: not each.accessible)


def _in(directory: str, port: int | None) -> Iterator[AdminSocket]:
    names: Sequence[str] = ()
    with suppress(OSError):
        names = sorted(os.listdir(directory)) if _is_safe(directory) else ()
    for name in names:
        match = _NAME.fullmatch(name)
        if match is not None and port in (None, int(match["port"])):
            path = f"{directory}/{name}"
            accessible = _can_connect(path)
            if accessible is not None:
                yield AdminSocket(path, match["host"] or "", int(match["port"]), accessible)


def _is_safe(directory: str) -> bool:
    """Any user can make a directory in /tmp, so it must belong to this user there. Elsewhere it was made by the operator."""
    if not directory.startswith("/tmp/"):
        return True
    try:
        found = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _can_connect(path: str) -> bool | None:
    """Whether this user can connect; None if no process listens on the socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(CONNECT_SECONDS)
        try:
            sock.connect(path)
        except (PermissionError, TimeoutError):
            return False
        except OSError:
            return None
    return True
