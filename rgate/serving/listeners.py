"""The listening sockets of a gateway."""

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

__all__ = ["BindError", "Listeners", "can_bind"]


class BindError(RgateError):
    """The gateway cannot listen on an address; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Listening sockets.

    main              for the gateway's address: one for each worker process, or the inherited ones
    redirect          for plain HTTP, at server.tls.redirect_port
    externally_owned  systemd holds them too, so they remain open for the next gateway
    """

    main: tuple[socket.socket, ...]
    redirect: tuple[socket.socket, ...] = ()
    externally_owned: bool = False

    @classmethod
    def open(cls, config: ServerConfig, processes: int = 1, inherited: InheritedSockets | None = None) -> Listeners:
        """Make the sockets that `config` asks for. Inherited ones are used instead, whatever their address. Raises BindError."""
        main = inherited.main if inherited else ()
        redirect = inherited.redirect if inherited else ()
        main = main or _bind(config.host, config.port, processes)
        redirect_port = config.tls.redirect_port if config.tls is not None else None
        if redirect_port is None:
            for listener in redirect:
                listener.close()
            return cls(main, (), bool(inherited and inherited.externally_owned))
        try:
            return cls(main, redirect or _bind(config.host, redirect_port), bool(inherited and inherited.externally_owned))
        except RgateError:
            cls(main).close()
            raise

    def duplicate(self) -> Listeners:
        """Duplicates of the sockets, which must be closed separately."""
        return Listeners(tuple(it.dup() for it in self.main), tuple(it.dup() for it in self.redirect), self.externally_owned)

    def for_worker(self, index: int, processes: int) -> Listeners:
        """The sockets for one of `processes` worker processes. Each process has a main socket, and each main socket a process;
        the redirect sockets are shared."""
        count = len(self.main)
        own = self.main[index::processes] if index < count else (self.main[index % count],)
        return Listeners(own, self.redirect, self.externally_owned)

    def close(self) -> None:
        """Close the sockets in this process."""
        for listener in (*self.main, *self.redirect):
            listener.close()


def can_bind(host: str) -> bool:
    """Whether `host` is an address of this machine, found by binding a socket for a moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind((host, 0))
    except OSError:
        return False
    return True


def _bind(host: str, port: int, count: int = 1) -> tuple[socket.socket, ...]:
    """`count` sockets on one port. Raises BindError."""
    listeners: list[socket.socket] = []
    try:
        listeners.append(listen(host, port))  # with SO_REUSEPORT another gateway on this port would not be detected
        if count > 1:
            port = listeners[0].getsockname()[1]
            listeners.pop().close()
            for _ in range(count):
                listeners.append(listen(host, port, shared=True))
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise BindError(_bind_error_message(error, host, port)) from error
    return tuple(listeners)


def _bind_error_message(error: OSError, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror):
        return f"cannot listen on {host!r}: no such host; choose an address of this machine with --host"
    reason = {
        errno.EADDRINUSE: "the port is taken; choose another with --port (0 takes a free one)",
        errno.EACCES: "no permission; choose a port from 1024 on with --port, or have systemd listen there (deploy/rgate.socket),"
        " or give rgate the capability CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "this is not an address of this machine; choose another with --host",
    }.get(error.errno or 0, error.strerror or str(error))
    return f"cannot listen on {host} port {port}: {reason}"
