"""Listening sockets inherited from systemd (socket activation, sd_listen_fds(3)) or, in an upgrade, from the process before.

LISTEN_PID      the process that the sockets are for
LISTEN_FDS      the number of listening sockets, from descriptor 3 on
LISTEN_FDNAMES  their names, separated by colons; `redirect` is for server.tls.redirect_port, the others for the main port
RGATE_UPGRADE   from the process before only: the descriptor to report readiness on, and whether systemd holds the sockets
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Final

from ..errors import RgateError

__all__ = ["FIRST_DESCRIPTOR", "READY", "REDIRECT", "InheritedSockets", "child_environ", "inherit"]

FIRST_DESCRIPTOR: Final = 3
REDIRECT: Final = "redirect"
READY: Final = b"ready"
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "RGATE_UPGRADE")


@dataclass(slots=True)
class InheritedSockets:
    """Listening sockets, and how to report that they are served.

    externally_owned  they stay open for the next process even when this one has ended: systemd holds them
    is_upgrade  another process serves them until this one is ready
    ready       the descriptor for notify_ready(); None when no other process waits for it
    """

    main: tuple[socket.socket, ...] = ()
    redirect: tuple[socket.socket, ...] = ()
    externally_owned: bool = False
    is_upgrade: bool = False
    ready: int | None = None

    def notify_ready(self) -> None:
        """Let the process before retire. It does not matter if it has ended."""
        if self.ready is not None:
            with contextlib.suppress(OSError):
                os.write(self.ready, READY)
        self.close_ready_fd()

    def close_ready_fd(self) -> None:
        """Leave notify_ready() to another process, which has the same descriptor."""
        ready, self.ready = self.ready, None
        if ready is not None:
            os.close(ready)


def inherit(environ: MutableMapping[str, str] = os.environ) -> InheritedSockets:
    """The sockets that this process was started with. Removes their variables from `environ`, so that children do not use them.

    Raises RgateError for sockets that rgate cannot serve.
    """
    pid, count, names, upgrade = (environ.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        return InheritedSockets()
    sockets: dict[bool, list[socket.socket]] = {False: [], True: []}
    named = names.split(":")
    for at in range(int(count)):
        sockets[named[at : at + 1] == [REDIRECT]].append(_listener(FIRST_DESCRIPTOR + at))
    ready, _, holder = upgrade.partition(" ")
    if ready:
        os.set_inheritable(int(ready), False)
    main, redirect = tuple(sockets[False]), tuple(sockets[True])
    return InheritedSockets(main, redirect, not upgrade or holder == "lent", bool(upgrade), int(ready) if ready else None)


def child_environ(names: list[str], ready: int, lent: bool, environ: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for a process that inherits sockets of these names and the descriptor `InheritedSockets.ready`. LISTEN_PID
    is missing; the process that executes it must set it."""
    kept = {name: value for name, value in environ.items() if name != "WATCHDOG_PID"}  # the child will be the main process
    values = (str(len(names)), ":".join(names), f"{ready} {'lent' if lent else 'own'}")
    return {**kept, **dict(zip(_VARIABLES[1:], values, strict=True))}


def _listener(descriptor: int) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        listener = socket.socket(fileno=descriptor)
        listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise RgateError(f"LISTEN_FDS: descriptor {descriptor} is not a socket: {error.strerror}") from error
    if not listens or listener.family not in (socket.AF_INET, socket.AF_INET6):
        raise RgateError(
            f"LISTEN_FDS: descriptor {descriptor} is not a listening TCP socket; write ListenStream=PORT, without Accept=yes"
        )
    return listener
