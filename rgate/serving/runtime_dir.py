"""Where the admin sockets of gateways are: unix sockets, one for each gateway, called by its port in a runtime directory.

The gateway takes the first directory of these that it can use, and the commands look into all of them (in a unit into the first):

    $RUNTIME_DIRECTORY      of a systemd unit with RuntimeDirectory=
    /run/rgate              where root, or whoever has made it (an image, tmpfiles.d), may write
    $XDG_RUNTIME_DIR/rgate  of a user who has logged in
    /tmp/rgate-UID          anywhere else; only if it is this user's and nobody else's

This module imports next to nothing, because `rgate healthcheck` runs every few seconds.
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

__all__ = ["AdminSocket", "admin_sockets", "directories", "prepare", "socket_name", "socket_paths"]

SYSTEM: Final = "/run/rgate"
MAX_PATH_BYTES: Final = 96  # of 107 that an address has room for; a socket is made under a longer name first
CONNECT_SECONDS: Final = 1.0
_ANY_HOST: Final = ("", "127.0.0.1", "0.0.0.0", "::", "localhost")
_NAME: Final = re.compile(r"(?:(?P<host>.+):)?(?P<port>[0-9]{1,5})\.sock")


class AdminSocket(NamedTuple):
    """The admin socket of a gateway that runs: its path, the host in its name ("" for loopback or all addresses), the port, and
    whether this user may connect to it."""

    path: str
    host: str
    port: int
    accessible: bool


def directories(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The runtime directories of this user, the best first; they need not be there."""
    own = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    user = environ.get("XDG_RUNTIME_DIR", "")
    found = [own, SYSTEM, f"{user}/rgate" if user else "", f"/tmp/rgate-{os.geteuid()}"]  # never TMPDIR: not all have the same
    return [directory for directory in dict.fromkeys(found) if directory.startswith("/")]


def socket_name(host: str, port: int) -> str:
    """The file name of the admin socket of the gateway that listens there: 8080.sock, or 192.0.2.1:8080.sock."""
    return f"{port}.sock" if host in _ANY_HOST else f"{host}:{port}.sock"


def socket_paths(host: str, port: int) -> list[str]:
    """Where the admin socket of the gateway that listens there may be, the best first."""
    return [f"{directory}/{socket_name(host, port)}" for directory in directories()]


def prepare(path: str) -> None:
    """Make the directory for a socket. Raises OSError when there can be no socket at this path."""
    directory = os.path.dirname(path)
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, f"the path has more than {MAX_PATH_BYTES} bytes")
    with suppress(FileExistsError):
        os.mkdir(directory, 0o755 if directory == SYSTEM else 0o700)
    if not _is_safe(directory):
        raise OSError(errno.EPERM, "the directory is not this user's alone")


def admin_sockets(environ: Mapping[str, str] = os.environ, port: int | None = None) -> list[AdminSocket]:
    """The admin sockets that somebody listens at, of one port or of all, those that are usable first. In a unit with a runtime
    directory only those in it: another unit may have another one."""
    looked_into = directories(environ)[: 1 if environ.get("RUNTIME_DIRECTORY", "").startswith("/") else None]
    found = [each for directory in looked_into for each in _in(directory, port)]
    return sorted(found, key=lambda each: not each.accessible)


def _in(directory: str, port: int | None) -> Iterator[AdminSocket]:
    names: Sequence[str] = ()
    with suppress(OSError):
        names = sorted(os.listdir(directory)) if _is_safe(directory) else ()
    for name in names:
        match = _NAME.fullmatch(name)
        if match is not None and port in (None, int(match["port"])):
            path = f"{directory}/{name}"
            accessible = _usable(path)
            if accessible is not None:
                yield AdminSocket(path, match["host"] or "", int(match["port"]), accessible)


def _is_safe(directory: str) -> bool:
    """Anybody may make a directory in /tmp, so there it must be this user's own. Elsewhere the operator has made it."""
    if not directory.startswith("/tmp/"):
        return True
    try:
        found = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _usable(path: str) -> bool | None:
    """Whether this user can connect; None when nobody listens there."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(CONNECT_SECONDS)
        try:
            sock.connect(path)
        except (PermissionError, TimeoutError):
            return False
        except OSError:
            return None
    return True
