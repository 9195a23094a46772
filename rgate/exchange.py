"""Exchange: the state of one request and its response, from the first middleware to after the response.

It travels in the WSGI environ; `Exchange.of(environ)` finds it. Each field has one writer (see the attributes).
One thread at a time works on an exchange; nothing here needs a lock.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from .errors import GatewayError
    from .model import Endpoint, Route

__all__ = ["ENVIRON_KEY", "Exchange", "FinishCallback"]

ENVIRON_KEY = "rgate.exchange"

FinishCallback: TypeAlias = "Callable[[Exchange], None]"

_log = logging.getLogger("rgate.exchange")
_numbers = itertools.count(1)
_prefix = secrets.token_hex(4)


def _renew_prefix() -> None:
    # A forked worker must not repeat its sibling's ids.
    global _prefix
    _prefix = secrets.token_hex(4)


os.register_at_fork(after_in_child=_renew_prefix)


class Exchange:
    """One request and its response.

    started     monotonic seconds, set at creation by ExchangeScope
    route       the route that matched, or None; written by `routing` or an earlier router
    candidates  endpoints still eligible; set by RouteDispatch from the snapshot, only narrowed after that
    endpoint    the endpoint chosen; written by `selection`
    attempts    how often an endpoint was tried; written by the forwarder
    error       the fault this exchange ended in, or None; written by `faults` (and when a body breaks off)
    status      status code on the wire, 0 before the response begins; written by ExchangeScope
    bytes_sent  body bytes handed to the server; written by ExchangeScope
    finished    monotonic seconds, 0.0 while running; written by ExchangeScope
    """

    # Defaults stand on the class: an exchange is made for every request, and most set few of them.
    finished = 0.0
    route: Route | None = None
    candidates: tuple[Endpoint, ...] = ()
    endpoint: Endpoint | None = None
    attempts = 0
    error: GatewayError | None = None
    status = 0
    bytes_sent = 0
    _notes: dict[str, Any] | None = None

    def __init__(self) -> None:
        self.started = monotonic()
        self._number = next(_numbers)
        self._callbacks: list[FinishCallback] = []

    @staticmethod
    def of(environ: WSGIEnvironment) -> Exchange:
        """The exchange of a request. KeyError outside the chain."""
        exchange: Exchange = environ[ENVIRON_KEY]
        return exchange

    @property
    def id(self) -> str:
        """Names this exchange in logs and fault answers; unique per process and start."""
        return f"{_prefix}-{self._number:x}"

    @property
    def notes(self) -> dict[str, Any]:
        """What plugins keep with the exchange, each under its own name."""
        if self._notes is None:
            self._notes = {}
        return self._notes

    @property
    def elapsed_seconds(self) -> float:
        """From start to finish, or to now while it runs."""
        return (self.finished or monotonic()) - self.started

    def on_finish(self, callback: FinishCallback) -> None:
        """Have `callback(exchange)` run once the response is decided, before the client can know that it is over.

        Callbacks run in the thread of the request, in order of registration, each isolated: what one raises is logged
        and stops nothing. They hold up the last bytes of the response, so they must be quick and must not block.
        """
        self._callbacks.append(callback)

    def finish(self) -> None:
        """End the exchange; only the first call counts. ExchangeScope calls it; plugins never do."""
        if self.finished:
            return
        self.finished = monotonic()
        for callback in self._callbacks:
            try:
                callback(self)
            except Exception:
                _log.exception("%s: on_finish callback %r failed", self.id, callback)
