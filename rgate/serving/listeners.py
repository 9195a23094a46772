"""Where a gateway accepts connections."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import RgateError
from .sockets import listen

if TYPE_CHECKING:
    from ..config.models import ServerConfig
    from ..process.socket_activation import InheritedSockets

__all__ = ["BindError", "Listeners", "is_here"]


class BindError(RgateError):
    """The address cannot be listened at; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Listening sockets.

    main      of the gateway's address: one for each worker process, or what others have made for it
    redirect  of plain HTTP, server.tls.redirect_port
    lent      whoever gave them (systemd) holds them too, and they will be there for the next gateway
    """

    main: tuple[socket.socket, ...]
    redirect: tuple[socket.socket, ...] = ()
    lent: bool = False

    @classmethod
    def open(cls, config: ServerConfig, processes: int = 1, inherited: InheritedSockets | None = None) -> Listeners:
        """Those that `config` wants; inherited ones where there are some, whatever their address. Raises BindError."""
        main = inherited.main if inherited else ()
        redirect = inherited.redirect if inherited else ()
        main = main or _bind(config.host, config.port, processes)
        wanted = config.tls.redirect_port if config.tls is not None else None
        if wanted is None:
            for listener in redirect:
                listener.close()
            return cls(main, (), bool(inherited and inherited.lent))
        try:
            return cls(main, redirect or _bind(config.host, wanted), bool(inherited and inherited.lent))
        except RgateError:
            cls(main).close()
            raise

    def duplicate(self) -> Listeners:
        """The same sockets once more, to be closed on their own."""
        return Listeners(tuple(it.dup() for it in self.main), tuple(it.dup() for it in self.redirect), self.lent)

    def share(self, index: int, processes: int) -> Listeners:
        """Those of one of so many processes: every main socket is somebody's, and everybody has one; the others are common."""
        count = len(self.main)
        own = self.main[index::processes] if index < count else (self.main[index % count],)
        return Listeners(own, self.redirect, self.lent)

    def close(self) -> None:
        """Close them, in this process."""
        for listener in (*self.main, *self.redirect):
            listener.close()


def is_here(host: str) -> bool:
    """Whether a gateway on this machine could listen at `host`; nothing listens afterwards."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind((host, 0))
    except OSError:
        return False
    return True


def _bind(host: str, port: int, count: int = 1) -> tuple[socket.socket, ...]:
    """So many sockets on one port. Raises BindError when it is taken."""
    listeners: list[socket.socket] = []
    try:
        listeners.append(listen(host, port))  # SO_REUSEPORT alone would not notice another gateway on this port
        if count > 1:
            port = listeners[0].getsockname()[1]
            listeners.pop().close()
            for _ in range(count):
                listeners.append(listen(host, port, shared=True))
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise BindError(_why_not(error, host, port)) from error
    return tuple(listeners)


def _why_not(error: OSError, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror):
        return f"cannot listen on {host!r}: no such host; give an address of this machine with --host"
    way_out = {
        errno.EADDRINUSE: "the port is taken; choose another with --port (0 takes a free one)",
        errno.EACCES: "no permission; choose a port from 1024 on with --port, or have systemd listen there (deploy/rgate.socket),"
        " or give rgate the capability CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "this is no address of this machine; choose another with --host",
    }.get(error.errno or 0, error.strerror or str(error))
    return f"cannot listen on {host} port {port}: {way_out}"
