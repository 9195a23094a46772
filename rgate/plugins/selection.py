"""selection: chooses one endpoint for a request, by the policy of its backend.

    backends:
      - name: orders
        match_labels: [app_name=orders]
        policy: round_robin        # default: random_of_two

    random_of_two   two random candidates, of these the one with fewer requests in flight. Within a small constant of
                    "always the least busy", without looking at all of them and without every gateway running to the
                    same one (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001)
    random          any candidate, busy or not
    round_robin     one after the other, in the order of their ids

The middleware stands innermost, so that a retry outside of it chooses anew among the candidates that are left.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from random import random
from typing import TYPE_CHECKING, Any

from rgate import Config, Endpoint, Exchange, Gateway, Middleware, NoEndpoint, SelectionPolicy, hookimpl

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["Random", "RandomOfTwo", "RoundRobin"]


class RandomOfTwo:
    """Of two different random candidates the one with fewer requests in flight in this process."""

    name = "random_of_two"

    def pick(self, candidates: Sequence[Endpoint], exchange: Exchange) -> Endpoint:
        count = len(candidates)
        if count == 1:
            return candidates[0]
        first = int(random() * count)
        second = int(random() * (count - 1))
        if second >= first:  # so that every other one is equally likely
            second += 1
        one, other = candidates[first], candidates[second]
        return one if len(one.load.running) <= len(other.load.running) else other


class Random:
    """Any candidate, each equally likely."""

    name = "random"

    def pick(self, candidates: Sequence[Endpoint], exchange: Exchange) -> Endpoint:
        return candidates[int(random() * len(candidates))]


class RoundRobin:
    """One candidate after the other; each backend has its own turn, shared by all threads of the process."""

    name = "round_robin"

    def __init__(self) -> None:
        self._turns: dict[str, Iterator[int]] = {}

    def pick(self, candidates: Sequence[Endpoint], exchange: Exchange) -> Endpoint:
        backend = candidates[0].backend
        turns = self._turns.get(backend)
        if turns is None:
            turns = self._turns.setdefault(backend, itertools.count())  # atomic: two threads get the same one
        return candidates[next(turns) % len(candidates)]


@hookimpl
def rgate_selection_policies(config: Config) -> Iterable[SelectionPolicy]:
    return (RandomOfTwo(), Random(), RoundRobin())


@hookimpl
def rgate_middlewares(gateway: Gateway) -> Middleware:
    def wrap(app: WSGIApplication, options: Any) -> WSGIApplication:
        picks = {backend.name: gateway.policies[backend.policy].pick for backend in gateway.backends.values()}
        exchange_of = Exchange.of

        def select(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            exchange = exchange_of(environ)
            candidates = exchange.candidates
            if not candidates:
                raise NoEndpoint("no candidate is left")
            first = candidates[0]
            exchange.endpoint = first if len(candidates) == 1 else picks[first.backend](candidates, exchange)
            return app(environ, start_response)

        return select

    return Middleware("selection", wrap, edits_environ=False)
