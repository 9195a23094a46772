"""ResourcePool: objects of plugins that stay the same over reloads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from .gateway import Gateway

__all__ = ["ResourcePool"]

_T = TypeVar("_T")
_log = logging.getLogger("rgate.runtime")


class ResourcePool:
    """Objects by name and key, each held by the gateways that have asked for it. Thread-safe; one per process.

    `current` returns the gateway whose objects a new gateway may share.
    """

    def __init__(self, current: Callable[[], Gateway | None] = lambda: None) -> None:
        self._current = current
        self._resources: list[_Resource] = []
        self._lock = threading.RLock()  # held while a factory runs, which may ask for another resource

    def get_or_create(self, name: str, key: object, factory: Callable[[], _T], holder: Gateway) -> _T:
        """The object that the current gateway holds under this name with an equal key; otherwise a new one from `factory`.

        `holder` holds it from now on, and gets the same object if it asks again. Raises ValueError if `holder` has the name for
        another key already, as when two plugins use one name.
        """
        with self._lock:
            found = self._find(name, holder)
            if found is not None and found.key != key:
                raise ValueError(f"there is a resource {name!r} already, for {found.key!r} and not for {key!r}")
            current = self._current()
            if found is None and current is not None:
                found = self._find(name, current)
            if found is None or found.key != key:
                found = _Resource(name, key, factory())
                self._resources.append(found)
            found.holders.add(holder)
            value: _T = found.value
            return value

    def _find(self, name: str, holder: Gateway) -> _Resource | None:
        return next((each for each in self._resources if each.name == name and holder in each.holders), None)

    def release(self, holder: Gateway) -> None:
        """End the hold of a gateway on all its objects. The close() method of objects that no gateway holds any more, if they
        have one, is called, the last created first; an exception from it is logged."""
        with self._lock:
            for resource in self._resources:
                resource.holders.discard(holder)
            unused = [resource for resource in self._resources if not resource.holders]
            self._resources = [resource for resource in self._resources if resource.holders]
        for resource in reversed(unused):
            close = getattr(resource.value, "close", None)
            if close is not None:
                try:
                    close()
                except Exception:
                    _log.exception("the resource %r cannot be closed", resource.name)


class _Resource:
    def __init__(self, name: str, key: object, value: Any) -> None:
        self.name = name
        self.key = key
        self.value = value
        self.holders: set[Gateway] = set()
