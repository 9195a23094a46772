"""How this process is doing, as far as it decides about traffic: one object for all gateways that a process has in its life."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Readiness"]


class Readiness:
    """What stands in the way of new traffic, and what an operator should know.

    unready  by who says so, why this process should get no new requests ("stopping": "SIGTERM 3 s ago"); empty: it is ready
    notices  by who says so, what an operator should know although it is ready ("config": "config.yml:12: …, so the …")

    calm     whether no more requests than `server.threads` can be waiting for backends just now, so that nobody need count
             them; written by the server, and False under any other
    load     what the server has open at present, by kind; empty under any other

    max_in_flight  how many requests may wait for backends in all, when that is fewer than the config says, because the system
                   gives no more threads; written by the server, else None

    All are only ever changed by single assignments and pops of keys, so any thread may write and read them.
    """

    def __init__(self) -> None:
        self.not_ready_reasons: dict[str, str] = {}
        self.notices: dict[str, str] = {}
        self.calm = False
        self.load: Callable[[], dict[str, int]] = dict
        self.max_in_flight: int | None = None

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return not self.not_ready_reasons
