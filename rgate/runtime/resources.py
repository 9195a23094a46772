"""What outlives a gateway: objects that the next one, made of a changed config, goes on with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["ResourcePool"]

_T = TypeVar("_T")
_log = logging.getLogger("rgate.runtime")


class ResourcePool:
    """Objects by name, each with the key that it was made for. `before` is what the gateway before has kept.

    For one thread at a time: plugins ask for their objects while a gateway is made and started.
    """

    def __init__(self, before: ResourcePool | None = None) -> None:
        self._objects: dict[str, tuple[object, Any]] = {}
        self._before = before

    def get(self, name: str, key: object, make: Callable[[], _T]) -> _T:
        """The object of this name: the one there is, here or before, if it has an equal key; else what `make()` returns.

        Raises ValueError when the name stands for another key already: two that use one name.
        """
        if name not in self._objects:
            before = self._before._objects.get(name) if self._before else None
            self._objects[name] = before if before is not None and before[0] == key else (key, make())
        there, kept = self._objects[name]
        if there != key:
            raise ValueError(f"{name!r} is kept already, for {there!r} and not for {key!r}")
        found: _T = kept
        return found

    def settle(self) -> None:
        """From now on nothing is taken over from before: what has not been asked for is not wanted any more."""
        self._before = None

    def close(self, beside: ResourcePool | None = None) -> None:
        """Call close() of every object that has one, but for those that `beside` holds as well."""
        held = {id(kept) for _, kept in beside._objects.values()} if beside else set()
        for name, (_, kept) in reversed(self._objects.items()):
            close = getattr(kept, "close", None)
            if close is None or id(kept) in held:
                continue
            try:
                close()
            except Exception:
                _log.exception("%r, which no gateway keeps any more, cannot be closed", name)
