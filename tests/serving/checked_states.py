"""Checks every change of a connection's state, in every test that serves real sockets.

`Connection.state` is a plain slot. install() puts a descriptor in its place that raises for a transition that is not in
TRANSITIONS, and for one made without the connection's lock. The thread that made it fails, and `illegal` remembers it.
"""

from __future__ import annotations

from rgate.serving.connection import Connection
from rgate.serving.connection_state import TRANSITIONS, State

__all__ = ["illegal", "install", "seen"]

illegal: list[str] = []
seen: set[tuple[State, State]] = set()
_slot = Connection.__dict__["state"]


class CheckedState:
    def __get__(self, connection: Connection | None, kind: type[Connection]) -> object:
        return self if connection is None else _slot.__get__(connection, kind)

    def __set__(self, connection: Connection, state: State) -> None:
        try:
            before = _slot.__get__(connection, type(connection))
        except AttributeError:  # it is being made
            self._check(state is connection.first_state, f"begins as {state}")
        else:
            self._check(state in TRANSITIONS[before], f"{before} -> {state}")
            self._check(connection.lock.locked(), f"{before} -> {state} without the lock")
            seen.add((before, state))
        _slot.__set__(connection, state)

    @staticmethod
    def _check(is_legal: bool, what: str) -> None:
        if not is_legal:
            illegal.append(what)
            raise AssertionError(what)


def install() -> None:
    Connection.state = CheckedState()  # type: ignore[assignment]
