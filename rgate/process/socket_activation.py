"""What a gateway is started with by systemd (socket activation, sd_listen_fds(3)) or by the gateway before it.

LISTEN_PID      the process it is meant for
LISTEN_FDS      how many listening sockets there are, from descriptor 3 on
LISTEN_FDNAMES  their names, with colons between; `redirect` is for server.tls.redirect_port, the others for the main port
RGATE_UPGRADE   only from the gateway before: where to say that this one is ready, and whether systemd holds the sockets
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
    """Listening sockets, and how to say that they are served.

    externally_owned  they will be there for the next gateway even when this one has ended: systemd holds them
    takes_over  another gateway serves them until this one is ready
    ready       a descriptor for say_ready(); None when no other gateway waits for it
    """

    main: tuple[socket.socket, ...] = ()
    redirect: tuple[socket.socket, ...] = ()
    externally_owned: bool = False
    takes_over: bool = False
    ready: int | None = None

    def notify_ready(self) -> None:
        """Let the gateway before retire. It may have ended meanwhile, which is as good."""
        if self.ready is not None:
            with contextlib.suppress(OSError):
                os.write(self.ready, READY)
        self.forget()

    def forget(self) -> None:
        """Leave say_ready() to another process, which has the same descriptor."""
        ready, self.ready = self.ready, None
        if ready is not None:
            os.close(ready)


def inherit(environ: MutableMapping[str, str] = os.environ) -> InheritedSockets:
    """Take what this process has been started with out of `environ`, so that its own children do not think it theirs.

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
    """The environment for a gateway that is to inherit sockets of these names and the descriptor of `InheritedSockets.ready`, but for
    LISTEN_PID, which whoever starts it has to set."""
    kept = {name: value for name, value in environ.items() if name != "WATCHDOG_PID"}  # it will be the main process
    values = (str(len(names)), ":".join(names), f"{ready} {'lent' if lent else 'own'}")
    return {**kept, **dict(zip(_VARIABLES[1:], values, strict=True))}


def _listener(descriptor: int) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        listener = socket.socket(fileno=descriptor)
        listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise RgateError(f"LISTEN_FDS: descriptor {descriptor} is no socket: {error.strerror}") from error
    if not listens or listener.family not in (socket.AF_INET, socket.AF_INET6):
        raise RgateError(
            f"LISTEN_FDS: descriptor {descriptor} is no listening TCP socket; write ListenStream=PORT, without Accept=yes"
        )
    return listener
