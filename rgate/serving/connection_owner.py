"""The server as its connections see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .connection import Connection
    from .connection_limits import ConnectionLimits
    from .head_encoder import HeadEncoder
    from .settings import ServerSettings
    from .spool import Spool
    from .stream_relay import Streams

__all__ = ["ConnectionOwner", "SharedServices"]


@dataclass(frozen=True, eq=False, slots=True)
class SharedServices:
    """The services that all connections of a server share, for the life of the server.

    base_environ   the part of the WSGI environ that is the same for every request
    streams        relays responses without a thread; None where there is no epoll
    uploads        connections whose thread waits for more of a request body
    port           the server's main port
    redirect_port  the port that redirects plain HTTP to HTTPS, or None
    """

    base_environ: dict[str, Any]
    head_encoder: HeadEncoder
    limits: ConnectionLimits
    spool: Spool
    streams: Streams | None
    uploads: set[Connection]
    port: int
    redirect_port: int | None


class ConnectionOwner(Protocol):
    """The server that a connection belongs to.

    settings    for requests that begin now; swapped as a whole by a reload
    now         monotonic seconds, renewed with every tick
    draining    the server is stopping, so that each response is the last one of its connection
    is_crowded  there are more connections than allowed
    """

    settings: ServerSettings
    now: float
    draining: bool

    @property
    def shared(self) -> SharedServices: ...

    @property
    def is_crowded(self) -> bool: ...

    def watch_writable(self, connection: Connection) -> None:
        """Have on_ready() called when the socket takes more bytes; at once if it does already. Raises OSError, ValueError."""

    def check_client_soon(self, connection: Connection) -> None:
        """Have check_client() called in a moment."""

    def hand_over(self, connection: Connection) -> None:
        """Pass the connection, with its lock held, to what relays it, or close it, as its state says."""
