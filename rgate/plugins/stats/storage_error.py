"""What can be wrong with the database, in words that are the same for every kind of it."""

from __future__ import annotations

from rgate import RgateError

__all__ = ["StorageError"]


class StorageError(RgateError):
    """The database cannot be read or written at present.

    `state` is what `/stats` shows: "locked", "read_only", "full", "corrupt", "newer" (written by a later version of
    rgate) or "unavailable" (missing, unreachable, anything else). The message is for the log.
    """

    def __init__(self, state: str, message: str) -> None:
        super().__init__(message)
        self.state = state
