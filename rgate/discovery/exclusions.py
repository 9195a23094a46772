"""Endpoints that are excluded: found, but not for new requests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from .model import Address, Endpoint
from .snapshot import ExcludedEndpoint, Snapshot

__all__ = ["Exclusion", "Exclusions"]


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Why one caller has excluded an endpoint, and how; see EndpointTable.exclude()."""

    reason: str
    last_resort: bool = False
    on_trial: bool = False


_STOPPING = Exclusion("stopping, used only while there is no other", last_resort=True)


class Exclusions:
    """Which callers have excluded which endpoints. Endpoints are identified by id and address, so this holds over all snapshots.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self._by_endpoint: dict[tuple[str, Address], dict[str, Exclusion]] = {}

    def set(self, endpoint: Endpoint, by: str, exclusion: Exclusion | None) -> bool:
        """Set the exclusion of an endpoint by `by`, or remove it (None). Returns whether that changed something."""
        exclusions = self._by_endpoint.setdefault(endpoint.key, {})
        before = exclusions.get(by)
        if exclusion is None:
            exclusions.pop(by, None)
        else:
            exclusions[by] = exclusion
        if not exclusions:
            del self._by_endpoint[endpoint.key]
        return exclusion != before

    def keep(self, ids: Collection[str]) -> None:
        """Remove all exclusions except those of instances with these ids."""
        for key in [key for key in self._by_endpoint if key[0] not in ids]:
            del self._by_endpoint[key]

    def applied(self, snapshot: Snapshot, before: Snapshot) -> Snapshot:
        """`snapshot`, in which nothing is excluded yet, with the exclusions applied. Tuples equal to those in `before` are the
        same objects."""
        if not self._by_endpoint and not any(e.stopping for found in snapshot.found.values() for e in found):
            return snapshot
        excluded: dict[str, tuple[ExcludedEndpoint, ...]] = {}
        endpoints = dict(snapshot.found)
        for backend, found in snapshot.found.items():
            by_key = {e.key: _joined(e, exclusions) for e in found if (exclusions := self._of(e))}
            if by_key:
                excluded[backend] = tuple(by_key.values())
                endpoints[backend] = _reuse_if_equal(_available(found, by_key), before.endpoints.get(backend, ()))
        return replace(snapshot, endpoints=MappingProxyType(endpoints), excluded=MappingProxyType(excluded))

    def _of(self, endpoint: Endpoint) -> Mapping[str, Exclusion]:
        exclusions = self._by_endpoint.get(endpoint.key, {})
        return {**exclusions, "stopping": _STOPPING} if endpoint.stopping else exclusions


def _joined(endpoint: Endpoint, exclusions: Mapping[str, Exclusion]) -> ExcludedEndpoint:
    return ExcludedEndpoint(
        endpoint,
        MappingProxyType({by: exclusion.reason for by, exclusion in exclusions.items()}),
        last_resort=all(exclusion.last_resort for exclusion in exclusions.values()),
        on_trial=all(exclusion.on_trial for exclusion in exclusions.values()),
    )


def _available(found: tuple[Endpoint, ...], excluded: Mapping[tuple[str, Address], ExcludedEndpoint]) -> tuple[Endpoint, ...]:
    if all(e.key in excluded for e in found):
        return tuple(e for e in found if excluded[e.key].last_resort or excluded[e.key].on_trial)
    return tuple(e for e in found if e.key not in excluded or excluded[e.key].on_trial)


def _reuse_if_equal(available: tuple[Endpoint, ...], before: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    same = len(available) == len(before) and all(one is other for one, other in zip(available, before, strict=True))
    return before if same else available
