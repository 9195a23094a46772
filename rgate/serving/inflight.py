"""The requests that are under way at one moment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["InFlightRequests"]


class InFlightRequests:
    """Those that threads work on now. A tunnel is none: its exchange is over."""

    def __init__(self, connections: Iterable[Connection]) -> None:
        self._left = [(connection, connection.remaining) for connection in list(connections) if connection.busy]

    def is_over(self) -> bool:
        """Whether all of them are."""
        # The next request of a connection has another number, and who is closed has none.
        self._left = [
            (connection, number)
            for connection, number in self._left
            if connection.busy and connection.remaining == number and connection.fileno() >= 0 and not connection.tunnelled
        ]
        return not self._left
