"""selection: chooses the endpoint of a request, by the policy of its backend.

    backends:
      - name: orders
        match_labels: [app_name=orders]
        policy: round_robin        # default: power_of_two_choices
      - name: sessions
        match_labels: [app_name=sessions]
        policy: hash
        hash_key: "cookie:session"  # default: client, its address; or header:NAME
      - name: shop
        match_labels: [app_name=shop]
        sticky: {cookie: shop_endpoint}

    power_of_two_choices  of two random candidates, the one with fewer requests in flight. Its maximum load is within a small
                          constant of that of least_requests, without comparing all candidates, and several gateways do not
                          all choose the same endpoint (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing",
                          2001)
    least_requests        the candidate with the fewest requests in flight
    random                any candidate, busy or not
    round_robin           one after the other, in the order of their ids
    hash                  always the same candidate for the same client, header or cookie

Endpoints may have weights. Whether the weights of a backend's endpoints differ is determined when discovery or health changes,
not per request; as long as they do not, weights cost nothing. An endpoint of weight 0 gets only requests with its sticky cookie.
An endpoint in slow start, or half-open, has less than its weight for a while (see the plugin `health`).

The middleware is inside of `retry`, so that each attempt chooses again among the remaining candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rgate import (
    Config,
    ConfigProblem,
    ConfigSection,
    Endpoint,
    Exchange,
    Gateway,
    Middleware,
    NoEndpoint,
    SelectionPolicy,
    Snapshot,
    did_you_mean,
    hookimpl,
)

from .affinity import StickyCookie, key_of
from .options import SelectionOptions
from .policies import ConsistentHash, LeastRequests, PowerOfTwoChoices, Random, RoundRobin

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["ConsistentHash", "LeastRequests", "PowerOfTwoChoices", "Random", "RoundRobin", "Selection"]


@hookimpl
def rgate_selection_policies(config: Config) -> Iterable[SelectionPolicy]:
    return (PowerOfTwoChoices(), LeastRequests(), Random(), RoundRobin(), ConsistentHash())


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("selection", SelectionOptions, per_backend="inline")


@hookimpl
def rgate_check_config(config: Config, policies: Mapping[str, SelectionPolicy]) -> Iterable[ConfigProblem]:
    """Policies that do not exist, options of a backend that have no effect, and cookies that would overwrite each other."""
    for path, options in _sections(config):
        if options.policy not in policies:
            hint = did_you_mean(options.policy, policies) or f"; the policies are {', '.join(sorted(policies))}"
            yield ConfigProblem((*path, "policy"), f"no selection policy is named {options.policy!r}{hint}")
        if "hash_key" in options.model_fields_set and options.policy != ConsistentHash.name:
            yield ConfigProblem((*path, "hash_key"), f"has no effect with policy {options.policy}; set policy: hash")
    cookies: dict[str, str] = {}
    for index, backend in enumerate(config.backends):
        options = config.options("selection", backend=backend)
        if options.sticky is not None:
            name = options.sticky.cookie
            if (other := cookies.setdefault(name, backend.name)) != backend.name:
                path = ("backends", index, "sticky", "cookie")
                yield ConfigProblem(path, f"backend {other!r} has a cookie {name!r} already, and one would overwrite the other")


def _sections(config: Config) -> Iterator[tuple[tuple[str | int, ...], SelectionOptions]]:
    """The options and where they stand: in backends that have some, and globally if one has none."""
    for index, backend in enumerate(config.backends):
        if "selection" in backend.options:
            yield ("backends", index), backend.options["selection"]
    yield ("plugins", "selection"), config.options("selection") or SelectionOptions()


@hookimpl
def rgate_middlewares(gateway: Gateway) -> Middleware:
    selection = Selection(gateway)
    gateway.table.on_snapshot(selection.on_snapshot)
    return Middleware("selection", selection.wrap, modifies_request=False, essential=True)


class Selection:
    """Chooses endpoints for all routes of a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        options: dict[str, SelectionOptions] = {
            backend.name: gateway.options("selection", backend=backend) or SelectionOptions()
            for backend in gateway.backends.values()
        }
        policies = {backend: gateway.policies[own.policy] for backend, own in options.items()}
        self._picks = {name: policy.pick for name, policy in policies.items()}
        self._weighted_picks = {name: getattr(policy, "pick_weighted", None) for name, policy in policies.items()}
        self._weighted_backends: set[str] = set()
        self._keys: dict[str, Callable[[WSGIEnvironment], str]] = {}
        self._cookies: dict[str, StickyCookie] = {}
        for backend, own in options.items():
            if own.policy == ConsistentHash.name:
                self._keys[backend] = key_of(own.hash_key)
            if (sticky := own.sticky) is not None:
                make = partial(StickyCookie, backend, sticky.cookie, sticky.secret, sticky.max_age_seconds)
                self._cookies[backend] = gateway.resource(f"selection {backend}", sticky, make)

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """Find the backends whose endpoints differ in weight or have one on trial. Called under the table's lock."""
        for backend, endpoints in snapshot.endpoints.items():
            weight = endpoints[0].weight if endpoints else 1
            if weight and all(
                e.weight == weight and e.state.weight_factor == 1 and e.state.try_acquire_trial is None for e in endpoints
            ):
                self._weighted_backends.discard(backend)
            else:
                self._weighted_backends.add(backend)

    def wrap(self, app: WSGIApplication, options: Any) -> WSGIApplication:
        """A WSGI app that sets exchange.endpoint and calls `app`."""
        picks, weighted, exchange_of = self._picks, self._weighted_backends, Exchange.of

        def select(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            exchange = exchange_of(environ)
            candidates = exchange.candidates
            if not candidates:
                raise NoEndpoint("no candidate is left")
            first = candidates[0]
            if weighted and first.backend in weighted:
                exchange.endpoint = self._pick_weighted(candidates, exchange, environ)
            else:
                exchange.endpoint = first if len(candidates) == 1 else picks[first.backend](candidates, exchange)
            return app(environ, start_response)

        if not self._keys and not self._cookies:
            return select
        keys, cookies = self._keys, self._cookies

        def select_for_client(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            exchange = exchange_of(environ)
            candidates = exchange.candidates
            backend = candidates[0].backend if candidates else ""
            if backend in keys:
                exchange.affinity_key = keys[backend](environ)
            sticky = cookies.get(backend)
            if sticky is None:
                return select(environ, start_response)
            endpoint = sticky.lookup(environ, candidates)
            if endpoint is not None and (endpoint.state.try_acquire_trial is None or endpoint.state.try_acquire_trial(environ)):
                exchange.endpoint = endpoint
                return app(environ, start_response)
            endpoint = exchange.endpoint = self._pick(candidates, exchange, environ)
            return app(environ, sticky.with_cookie(endpoint, environ, start_response))

        return select_for_client

    def _pick(self, candidates: Sequence[Endpoint], exchange: Exchange, environ: WSGIEnvironment) -> Endpoint:
        backend = candidates[0].backend
        if backend in self._weighted_backends:
            return self._pick_weighted(candidates, exchange, environ)
        return candidates[0] if len(candidates) == 1 else self._picks[backend](candidates, exchange)

    def _pick_weighted(self, candidates: Sequence[Endpoint], exchange: Exchange, environ: WSGIEnvironment) -> Endpoint:
        """Pick one of candidates that differ: the half-open one whose trial this request may be, or one by weight."""
        some: list[Endpoint] = []
        weights: list[float] = []
        for endpoint in candidates:
            claim = endpoint.state.try_acquire_trial
            if claim is not None and claim(environ):
                return endpoint
            weight = endpoint.weight * endpoint.state.weight_factor
            if weight > 0:
                some.append(endpoint)
                weights.append(weight)
        if not some:
            raise NoEndpoint("every endpoint has weight 0 or is on trial")
        backend = some[0].backend
        pick = self._weighted_picks[backend]
        if len(some) == 1:
            return some[0]
        return self._picks[backend](some, exchange) if pick is None else pick(some, weights, exchange)
