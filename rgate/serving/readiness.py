"""State of this process that is independent of its config: whether it is ready, warnings, and the load of its server."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Readiness", "ServerLoad"]


class ServerLoad:
    """The load of this process's server, which writes it in the thread that is in Server.run(). Any thread may read it.

    saturated      False while at most `server.threads` requests can be waiting for backends, so that limits do not have to be
                   checked. Always True under another WSGI server.
    max_in_flight  how many requests may wait for backends in total if that is fewer than configured, because the system refuses
                   to start more threads; otherwise None
    open_counts    returns the current number of open connections, streams, tunnels and threads, by name; nothing under another
                   WSGI server
    """

    def __init__(self) -> None:
        self.saturated = True
        self.max_in_flight: int | None = None
        self.open_counts: Callable[[], dict[str, int]] = dict


class Readiness:
    """Whether this process should receive traffic, and what the operator should know. One object for the life of a process.

    not_ready_reasons  why it should receive no new requests, by the part that says so ("stopping": "SIGTERM 3 s ago"); empty
                       while it is ready
    warnings           what the operator should know although it may be ready, likewise ("config": "config.yml:12: …, so the …")
    server             the load of its server

    Any thread may read and write. Entries are only set and popped, one key at a time, which the interpreter's lock makes atomic.
    """

    def __init__(self) -> None:
        self.not_ready_reasons: dict[str, str] = {}
        self.warnings: dict[str, str] = {}
        self.server = ServerLoad()

    @property
    def ready(self) -> bool:
        """Whether this process should receive new requests."""
        return not self.not_ready_reasons
