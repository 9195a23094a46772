"""Endpoints that are set aside: found, but not for new requests while somebody says so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from .model import Address, Endpoint
from .snapshot import ExcludedEndpoint, Snapshot

__all__ = ["Exclusion", "Exclusions"]


@dataclass(frozen=True, slots=True)
class Exclusion:
    """What one of those who have set an endpoint aside says about it."""

    reason: str
    last_resort: bool = False
    on_trial: bool = False


_STOPPING = Exclusion("stopping, used only while there is no other", last_resort=True)


class Exclusions:
    """Who has set which endpoints aside. They are known by id and address, so it holds over all snapshots.

    Not for several threads at once.
    """

    def __init__(self) -> None:
        self._said: dict[tuple[str, Address], dict[str, Exclusion]] = {}

    def say(self, endpoint: Endpoint, by: str, aside: Exclusion | None) -> bool:
        """Let `by` say this of an endpoint, or nothing any more (None); whether that is new."""
        said = self._said.setdefault(endpoint.key, {})
        before = said.get(by)
        if aside is None:
            said.pop(by, None)
        else:
            said[by] = aside
        if not said:
            del self._said[endpoint.key]
        return aside != before

    def keep(self, ids: Collection[str]) -> None:
        """Forget what is no longer there: all but the instances of these ids."""
        for key in [key for key in self._said if key[0] not in ids]:
            del self._said[key]

    def applied(self, snapshot: Snapshot, before: Snapshot) -> Snapshot:
        """A snapshot in which nothing is set aside, with what is taken out of its `endpoints`. Tuples that are as in
        `before` are the same objects."""
        if not self._said and not any(e.stopping for found in snapshot.found.values() for e in found):
            return snapshot
        excluded: dict[str, tuple[ExcludedEndpoint, ...]] = {}
        endpoints = dict(snapshot.found)
        for backend, found in snapshot.found.items():
            asides = {e.key: _joined(e, said) for e in found if (said := self._said_of(e))}
            if asides:
                excluded[backend] = tuple(asides.values())
                endpoints[backend] = _settled(_chosen(found, asides), before.endpoints[backend])
        return replace(snapshot, endpoints=MappingProxyType(endpoints), excluded=MappingProxyType(excluded))

    def _said_of(self, endpoint: Endpoint) -> Mapping[str, Exclusion]:
        said = self._said.get(endpoint.key, {})
        return {**said, "stopping": _STOPPING} if endpoint.stopping else said


def _joined(endpoint: Endpoint, said: Mapping[str, Exclusion]) -> ExcludedEndpoint:
    return ExcludedEndpoint(
        endpoint,
        MappingProxyType({by: aside.reason for by, aside in said.items()}),
        last_resort=all(aside.last_resort for aside in said.values()),
        on_trial=all(aside.on_trial for aside in said.values()),
    )


def _chosen(found: tuple[Endpoint, ...], asides: Mapping[tuple[str, Address], ExcludedEndpoint]) -> tuple[Endpoint, ...]:
    if all(e.key in asides for e in found):
        return tuple(e for e in found if asides[e.key].last_resort or asides[e.key].on_trial)
    return tuple(e for e in found if e.key not in asides or asides[e.key].on_trial)


def _settled(chosen: tuple[Endpoint, ...], before: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    same = len(chosen) == len(before) and all(one is other for one, other in zip(chosen, before, strict=True))
    return before if same else chosen
