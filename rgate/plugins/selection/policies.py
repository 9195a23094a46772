"""The balancing policies. `pick` chooses one of several candidates of equal weight, `pick_weighted` one of unequal ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from math import log
from random import random
from typing import Final

from rgate import Endpoint, Exchange

__all__ = ["ConsistentHash", "LeastRequests", "PowerOfTwoChoices", "Random", "RoundRobin"]

GOLDEN: Final = 0.6180339887498949  # steps of this length fill a circle as evenly as possible
MASK: Final = (1 << 64) - 1


class PowerOfTwoChoices:
    """Of two different random candidates, the one with fewer requests in flight in this process.

    Weighted: candidates are drawn in proportion to their weights, and requests in flight are divided by the weight.
    """

    name = "power_of_two_choices"

    def pick(self, candidates: Sequence[Endpoint], exchange: Exchange) -> Endpoint:
        count = len(candidates)
        if count == 1:
            return candidates[0]
        first = int(random() * count)
        second = int(random() * (count - 1))
        if second >= first:  # so that all other candidates are equally likely
            second += 1
        one, other = candidates[first], candidates[second]
        return one if len(one.state.active_exchanges) <= len(other.state.active_exchanges) else other

    def pick_weighted(self, candidates: Sequence[Endpoint], weights: Sequence[float], exchange: Exchange) -> Endpoint:
        first = _at(weights, random())
        second = _at([0.0 if place == first else weight for place, weight in enumerate(weights)], random())
        one, other = candidates[first], candidates[second]
        return (
            one
            if len(one.state.active_exchanges) / weights[first] <= len(other.state.active_exchanges) / weights[second]
            else other
        )


class Random:
    """A random candidate, drawn in proportion to its weight."""

    name = "random"

    def pick(self, candidates: Sequence[Endpoint], exchange: Exchange) -> Endpoint:
        return candidates[int(random() * len(candidates))]

    def pick_weighted(self, candidates: Sequence[Endpoint], weights: Sequence[float], exchange: Exchange) -> Endpoint:
        return candidates[_at(weights, random())]


class RoundRobin:
    """One candidate after the other; each backend has a counter, shared by all threads of the process.

    Weighted: each turn advances on a circle by the golden ratio; every candidate has a section of the circle in proportion to its
    weight. So its turns are spread evenly, and nothing but the number of turns has to be stored.
    """

    name = "round_robin"

    def __init__(self) -> None:
        self._turns: dict[str, Iterator[int]] = {}

    def pick(self, candidates: Sequence[Endpoint], exchange: Exchange) -> Endpoint:
        return candidates[self._turn(candidates[0].backend) % len(candidates)]

    def pick_weighted(self, candidates: Sequence[Endpoint], weights: Sequence[float], exchange: Exchange) -> Endpoint:
        return candidates[_at(weights, self._turn(candidates[0].backend) * GOLDEN % 1.0)]

    def _turn(self, backend: str) -> int:
        turns = self._turns.get(backend)
        if turns is None:
            turns = self._turns.setdefault(
                backend, itertools.count()
            )  # setdefault is atomic under the interpreter's lock: two threads get the same counter
        return next(turns)


class LeastRequests:
    """The candidate with the fewest requests in flight in this process; if there are several, a random one of them.

    Weighted: requests in flight are divided by the weight, and of several candidates one is drawn in proportion to its weight.
    """

    name = "least_requests"

    def pick(self, candidates: Sequence[Endpoint], exchange: Exchange) -> Endpoint:
        loads = [len(endpoint.state.active_exchanges) for endpoint in candidates]
        least = min(loads)
        best = [endpoint for endpoint, load in zip(candidates, loads, strict=True) if load == least]
        return best[int(random() * len(best))]

    def pick_weighted(self, candidates: Sequence[Endpoint], weights: Sequence[float], exchange: Exchange) -> Endpoint:
        loads = [len(endpoint.state.active_exchanges) / weight for endpoint, weight in zip(candidates, weights, strict=True)]
        least = min(loads)
        return candidates[_at([w if load == least else 0.0 for w, load in zip(weights, loads, strict=True)], random())]


class ConsistentHash:
    """Always the same candidate for the same `exchange.affinity_key` (rendezvous hashing), in this process and in every other.

    When a candidate is added or removed, only the keys that it gets or had move. Weighted: each candidate has a share of all keys
    in proportion to its weight.
    """

    name = "hash"
    MAX_REMEMBERED: Final = 10_000

    def __init__(self) -> None:
        self._seeds: dict[str, int] = {}

    def pick(self, candidates: Sequence[Endpoint], exchange: Exchange) -> Endpoint:
        key = _hashed(exchange.affinity_key)
        scores = [_mixed(key ^ self._seed(endpoint.id)) for endpoint in candidates]
        return candidates[scores.index(max(scores))]

    def pick_weighted(self, candidates: Sequence[Endpoint], weights: Sequence[float], exchange: Exchange) -> Endpoint:
        key = _hashed(exchange.affinity_key)
        # As if each candidate took part as often as its weight says; with equal weights the result is that of pick().
        scores = [
            -log((_mixed(key ^ self._seed(endpoint.id)) + 1) / (MASK + 2)) / weight
            for endpoint, weight in zip(candidates, weights, strict=True)
        ]
        return candidates[scores.index(min(scores))]

    def _seed(self, id: str) -> int:
        seed = self._seeds.get(id)
        if seed is None:
            if len(self._seeds) >= self.MAX_REMEMBERED:
                self._seeds.clear()
            seed = self._seeds[id] = _hashed(id)
        return seed


def _at(weights: Sequence[float], place: float) -> int:
    """The index of the weight that contains `place`, if all weights are laid out in sequence from 0 to 1."""
    left = sum(weights) * place
    last = 0
    for index, weight in enumerate(weights):
        if weight:
            last = index
            left -= weight
            if left < 0:
                break
    return last


def _hashed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest())


def _mixed(number: int) -> int:
    """64 bits, each of which depends on every bit of `number` (the finalizer of SplitMix64)."""
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & MASK
    return number ^ number >> 31
