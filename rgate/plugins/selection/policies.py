"""The policies: each picks one of several candidates that are alike, or, by their weights, of several that are not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from math import log
from random import random
from typing import Final

from rgate import Endpoint, Exchange

__all__ = ["ConsistentHash", "LeastRequests", "PowerOfTwoChoices", "Random", "RoundRobin"]

GOLDEN: Final = 0.6180339887498949  # the steps of this length fill a circle as evenly as any can
MASK: Final = (1 << 64) - 1


class PowerOfTwoChoices:
    """Of two different random candidates the one with fewer requests in flight in this process.

    By weight: each is as likely among the two as its weight says, and requests in flight count by weight too.
    """

    name = "power_of_two_choices"

    def pick(self, candidates: Sequence[Endpoint], exchange: Exchange) -> Endpoint:
        count = len(candidates)
        if count == 1:
            return candidates[0]
        first = int(random() * count)
        second = int(random() * (count - 1))
        if second >= first:  # so that every other one is equally likely
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
    """Any candidate, each as likely as its weight says."""

    name = "random"

    def pick(self, candidates: Sequence[Endpoint], exchange: Exchange) -> Endpoint:
        return candidates[int(random() * len(candidates))]

    def pick_weighted(self, candidates: Sequence[Endpoint], weights: Sequence[float], exchange: Exchange) -> Endpoint:
        return candidates[_at(weights, random())]


class RoundRobin:
    """One candidate after the other; each backend has its own turn, shared by all threads of the process.

    By weight: the turns go around a circle in steps of the golden section, on which every candidate has as much room as its
    weight. So its turns come about evenly, and nothing has to be remembered but how many there have been.
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
            turns = self._turns.setdefault(backend, itertools.count())  # atomic: two threads get the same one
        return next(turns)


class LeastRequests:
    """The candidate with the fewest requests in flight in this process; of several such ones any.

    By weight: requests in flight count by weight, and of several such ones each is as likely as its weight says.
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
    """For one `exchange.affinity_key` always the same candidate (rendezvous hashing): when one comes or goes, only what it gets
    or had moves, in this process and in every other. By weight: each has as large a part of all as its weight says.
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
        # As if each stood in the contest as often as its weight says; with equal weights the outcome is that of pick().
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
    """Which of the weights, laid one after the other, has this place in it: 0 is where they begin, 1 where they end."""
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
    """64 bits of which each depends on every bit of `number` (the end of SplitMix64)."""
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & MASK
    return number ^ number >> 31
