"""Snapshot: the endpoints of every backend at one moment, why other instances are not endpoints, and what has changed since
another snapshot. Pure functions, without I/O or threads."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from .model import DRAIN_LABEL, WEIGHT_LABEL, Address, Endpoint, EndpointState, Instance

if TYPE_CHECKING:
    from ..config import Backend

__all__ = [
    "Change",
    "ExcludedEndpoint",
    "Matcher",
    "NearMiss",
    "Snapshot",
    "SourceState",
    "changes",
    "changes_of_notes",
    "mismatch_reasons",
    "remarks",
]

NAMES_SHOWN = 3
NEAR_MISSES_REPORTED = 3
MAX_WEIGHT = 1_000
NOTHING: Mapping[str, tuple[Any, ...]] = MappingProxyType({})
_TRUE = frozenset(["true", "yes", "on", "1"])
_FALSE = frozenset(["false", "no", "off", "0", ""])  # empty is what `rgate.drain=${DRAIN}` leaves when DRAIN is not set


@dataclass(frozen=True, slots=True)
class SourceState:
    """The outcome of the last lists of one source.

    instances  the last good list, including instances without an address, sorted by id
    listed_at  when that list was made (monotonic seconds); None before the first one
    error      why listing fails now; None while it succeeds
    failed_at  when listing last failed (monotonic seconds); None if it never has
    """

    name: str
    instances: tuple[Instance, ...] = ()
    listed_at: float | None = None
    error: str | None = None
    failed_at: float | None = None


@dataclass(frozen=True, slots=True)
class ExcludedEndpoint:
    """An endpoint that gets no new requests, with the reasons by caller: {"drain": "draining", "ejection": "ejected: …"}.

    last_resort  it still gets requests while its backend has no other endpoint
    on_trial     it still gets the requests that its `state.try_acquire_trial` lets pass
    """

    endpoint: Endpoint
    reasons: Mapping[str, str]
    last_resort: bool = False
    on_trial: bool = False

    def __str__(self) -> str:
        return "; ".join(self.reasons.values())


@dataclass(frozen=True, slots=True)
class NearMiss:
    """An instance that has some of a backend's labels but not all, and belongs to no backend.

    `detail` says which: "app_name=orders, but env=Prod instead of env=production". `reachable` says whether it has had an address
    since it became a near miss, so that an instance that stops and starts is reported once.
    """

    instance: Instance
    detail: str
    reachable: bool = True


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Discovery at one moment, over all sources. A tuple of endpoints that has not changed is the same object as before.

    endpoints    per backend, the endpoints that new requests choose from, sorted by id
    unusable     per backend, the instances that belong to it but have no address, sorted by id, each with its reason
    sources      by name
    found        per backend, every endpoint that has an address, including excluded ones
    excluded     per backend, the endpoints of `found` that are excluded; backends without any are left out
    near_misses  per backend, the instances that nearly belong to it, sorted by name; backends without any are left out
    noted        the instances that belong to a backend and have notes, by id
    """

    endpoints: Mapping[str, tuple[Endpoint, ...]]
    unusable: Mapping[str, tuple[Instance, ...]]
    sources: Mapping[str, SourceState]
    found: Mapping[str, tuple[Endpoint, ...]]
    excluded: Mapping[str, tuple[ExcludedEndpoint, ...]]
    near_misses: Mapping[str, tuple[NearMiss, ...]] = field(default_factory=lambda: NOTHING)
    noted: Mapping[str, Instance] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Change:
    """One line for the operator: an endpoint was added ("+") or removed ("-"), or instances cannot be used ("!"), have notes
    ("?", without a backend), or nearly belong to the backend ("~").

    Instances with the same detail share a line, so that a hundred stopped containers are one line.
    """

    sign: Literal["+", "-", "!", "?", "~"]
    backend: str
    names: tuple[str, ...]
    detail: str

    @property
    def fields(self) -> dict[str, object]:
        """The fields of the JSON log line."""
        return {"change": self.sign, "backend": self.backend, "endpoints": self.names, "detail": self.detail}

    def __str__(self) -> str:
        shown, rest, one = ", ".join(self.names[:NAMES_SHOWN]), len(self.names) - NAMES_SHOWN, len(self.names) == 1
        who = f"{shown} and {rest} more" if rest > 0 else shown
        match self.sign:
            case "!":
                return f"backend {self.backend}: {who} {'is' if one else 'are'} not usable: {self.detail}"
            case "?":
                return f"{who}: {self.detail}"
            case "~":
                return f"backend {self.backend}: {who} {'has' if one else 'have'} {self.detail}"
        return f"backend {self.backend}: {self.sign} {who} {self.detail}".rstrip()


def mismatch_reasons(instance: Instance, backend: Backend) -> tuple[str, ...]:
    """All reasons why `instance` is not an endpoint of `backend`; empty if it is."""
    reasons = () if instance.address else (_reason(instance),)
    if instance.backend == backend.name:
        return reasons
    if not backend.match_labels:
        return (f"backend {backend.name} has no match_labels", *reasons)
    missing = (
        f"missing label {name}={value}" + (f" (has {name}={instance.labels[name]})" if name in instance.labels else "")
        for name, value in backend.match_labels
        if instance.labels.get(name) != value
    )
    return (*missing, *reasons)


class Matcher:
    """Finds the backends that an instance belongs to: by all of their labels, or by name.

    Backends are indexed by their first label, so that thousands of instances and dozens of backends are matched without
    comparing each with each.
    """

    def __init__(self, backends: Iterable[Backend]) -> None:
        self._names: list[str] = []
        self._by_label: dict[tuple[str, str], list[Backend]] = {}
        self._by_any_label: dict[tuple[str, str], list[Backend]] = {}
        for backend in backends:
            self._names.append(backend.name)
            if backend.match_labels:
                self._by_label.setdefault(backend.match_labels[0], []).append(backend)
            for label in backend.match_labels:
                self._by_any_label.setdefault(label, []).append(backend)

    def match(self, sources: Mapping[str, SourceState], before: Snapshot) -> Snapshot:
        """The snapshot of what `sources` have listed, with nothing excluded. Endpoint states are carried over from `before` while
        the id and address of an instance stay."""
        states = {old.key: old.state for group in before.found.values() for old in group}
        endpoints: dict[str, list[Endpoint]] = {name: [] for name in self._names}
        unusable: dict[str, list[Instance]] = {name: [] for name in self._names}
        near: dict[str, list[NearMiss]] = {}
        noted: dict[str, Instance] = {}
        reached = {(miss.instance.id, miss.detail) for group in before.near_misses.values() for miss in group if miss.reachable}
        for instance in (instance for source in sources.values() for instance in source.instances):
            names, weight, address = self._backends(instance), 1, instance.address
            if not names:
                if nearest := self._nearest(instance):
                    detail = _near_miss(instance, nearest)
                    reachable = instance.address is not None or (instance.id, detail) in reached
                    near.setdefault(nearest.name, []).append(NearMiss(instance, detail, reachable))
                continue
            if instance.notes:
                noted[instance.id] = instance
            if address and (draining := _draining(instance.labels.get(DRAIN_LABEL, ""))):
                instance, address = replace(instance, address=None, reason=draining), None
            elif address and WEIGHT_LABEL in instance.labels:
                try:
                    weight = _weight(instance.labels[WEIGHT_LABEL].strip())
                except ValueError as error:
                    instance, address = replace(instance, address=None, reason=str(error)), None
            for name in names:
                if address is None:
                    unusable[name].append(instance)
                    continue
                state = states.setdefault((instance.id, address), EndpointState())
                endpoint = Endpoint(instance.id, instance.name, name, address, instance.labels, state, weight, instance.stopping)
                endpoints[name].append(endpoint)
        found = MappingProxyType({name: _reuse_if_equal(group, before.found.get(name, ())) for name, group in endpoints.items()})
        without_address = {name: tuple(sorted(group, key=lambda i: i.id)) for name, group in unusable.items()}
        near_misses = {name: tuple(sorted(group, key=lambda miss: miss.instance.name)) for name, group in near.items()}
        return Snapshot(
            found,
            MappingProxyType(without_address),
            sources,
            found,
            NOTHING,
            MappingProxyType(near_misses),
            MappingProxyType(noted),
        )

    def _backends(self, instance: Instance) -> set[str]:
        found = {
            backend.name
            for label in instance.labels.items()
            for backend in self._by_label.get(label, ())
            if all(instance.labels.get(name) == value for name, value in backend.match_labels)
        }
        if instance.backend in self._names:
            found.add(instance.backend)
        return found

    def _nearest(self, instance: Instance) -> Backend | None:
        """The backend with the most labels in common with an instance that belongs to no backend.

        An instance that is equally near to several backends is probably not meant for any of them (all may have
        `env=production`), unless one of its labels looks like a misspelt label of one of them.
        """
        carried = Counter(backend for label in instance.labels.items() for backend in self._by_any_label.get(label, ()))
        most = max(carried.values(), default=0)
        nearest = [backend for backend, count in carried.items() if count == most]
        if len(nearest) > 1:
            nearest = [backend for backend in nearest if any(_is_misspelt(instance, label) for label in backend.match_labels)]
        return nearest[0] if len(nearest) == 1 else None


def _is_misspelt(instance: Instance, label: tuple[str, str]) -> bool:
    name, wanted = label
    value = instance.labels.get(name, wanted)
    return value != wanted and bool(difflib.get_close_matches(value.lower(), [wanted.lower()]))


def _near_miss(instance: Instance, backend: Backend) -> str:
    fits, misses = [], []
    for name, value in backend.match_labels:
        if name not in instance.labels:
            misses.append(f"no {name}={value}")
        elif instance.labels[name] != value:
            misses.append(f"{name}={_shown(instance.labels[name])} instead of {name}={value}")
        else:
            fits.append(f"{name}={value}")
    return f"{', '.join(fits)}, but {', '.join(misses)}"


def _shown(value: str) -> str:
    """A label's value for a message: not too long, and without characters that could end the line."""
    value = value if len(value) <= 60 else f"{value[:50]}…"
    return value if value.isprintable() else ascii(value)[1:-1]


def _draining(text: str) -> str:
    """Why a container with this value of the label `rgate.drain` gets no requests; "" if it gets requests.

    A value that is neither yes nor no drains, because an operator who sets the label wants no requests.
    """
    value = text.strip().lower()
    if value in _FALSE:
        return ""
    if value in _TRUE:
        return f"draining, its label {DRAIN_LABEL} says"
    return f"draining, because its label {DRAIN_LABEL}='{_shown(text)}' is neither true nor false"


def _weight(text: str) -> int:
    if not text:  # an empty label is what `rgate.weight=${WEIGHT}` leaves when WEIGHT is not set
        return 1
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) > MAX_WEIGHT:
        raise ValueError(f"label {WEIGHT_LABEL}={text!r} is not a whole number from 0 to {MAX_WEIGHT}")
    return int(text)


def _reuse_if_equal(found: Sequence[Endpoint], before: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    by_address: dict[Address, Endpoint] = {}
    for endpoint in sorted(found, key=lambda endpoint: endpoint.id):
        by_address.setdefault(endpoint.address, endpoint)  # two sources may know the same address
    after = tuple(by_address.values())
    same = after == before and all(new.labels == old.labels for new, old in zip(after, before, strict=True))
    return before if same else after


def changes(backend: str, before: Snapshot, after: Snapshot) -> Iterable[Change]:
    """The changes of `backend`, in a stable order: removed, added, not usable. A change of name alone is not reported."""
    old_excluded = {each.endpoint.key for each in before.excluded.get(backend, ())}
    excluded = {each.endpoint.key: str(each) for each in after.excluded.get(backend, ())}
    old = {endpoint.key: endpoint for endpoint in before.found.get(backend, ())}
    new = {endpoint.key: endpoint for endpoint in after.found[backend]}
    reasons = {instance.id: _reason(instance) for instance in after.unusable[backend]}
    for key, endpoint in old.items():
        if key not in old_excluded and (key not in new or key in excluded):
            yield Change("-", backend, (endpoint.name,), _where(endpoint, excluded.get(key) or reasons.get(endpoint.id)))
    by_reason: dict[str, list[str]] = {}
    for key, endpoint in new.items():
        if key in excluded:
            if key not in old:
                by_reason.setdefault(excluded[key], []).append(endpoint.name)
        elif key not in old or key in old_excluded:
            yield Change("+", backend, (endpoint.name,), _where(endpoint))
    reported = {id for id, _ in old} | {i.id for i in before.unusable.get(backend, ()) if _reason(i) == reasons.get(i.id)}
    for instance in after.unusable[backend]:
        if instance.id not in reported:
            by_reason.setdefault(reasons[instance.id], []).append(instance.name)
    for reason, names in by_reason.items():
        yield Change("!", backend, tuple(sorted(names)), reason)
    yield from _new_near_misses(backend, before, after)


def _new_near_misses(backend: str, before: Snapshot, after: Snapshot) -> Iterable[Change]:
    """The first few instances that are not endpoints because of their labels only; /-/backends shows more of them."""
    reported = {(miss.instance.id, miss.detail) for miss in before.near_misses.get(backend, ()) if miss.reachable}
    by_detail: dict[str, list[str]] = {}
    for miss in after.near_misses.get(backend, ()):
        if miss.reachable and (miss.instance.id, miss.detail) not in reported:
            by_detail.setdefault(miss.detail, []).append(miss.instance.name)
    for detail, names in list(by_detail.items())[:NEAR_MISSES_REPORTED]:
        yield Change("~", backend, tuple(names), detail)


def changes_of_notes(before: Snapshot, after: Snapshot) -> Iterable[Change]:
    """New notes of instances that belong to a backend, each once, however many backends the instance belongs to."""
    by_note: dict[str, list[str]] = {}
    for id, instance in after.noted.items():
        reported = before.noted[id].notes if id in before.noted else ()
        for note in instance.notes:
            if note not in reported:
                by_note.setdefault(note, []).append(instance.name)
    for note, names in by_note.items():
        yield Change("?", "", tuple(sorted(names)), note)


def remarks(snapshot: Snapshot) -> Iterable[Change]:
    """Every note and near miss of a snapshot, as if all were new."""
    nothing = Snapshot(NOTHING, NOTHING, MappingProxyType({}), NOTHING, NOTHING)
    yield from changes_of_notes(nothing, snapshot)
    for backend in snapshot.near_misses:
        yield from _new_near_misses(backend, nothing, snapshot)


def _where(endpoint: Endpoint, why: str | None = None) -> str:
    address = str(endpoint.address)
    return " ".join([address] * (address != endpoint.name) + [f"({why})"] * bool(why))


def _reason(instance: Instance) -> str:
    return instance.reason or "no address"
