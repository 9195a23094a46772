"""selection: chooses one endpoint for a request, by the policy of its backend.

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

    power_of_two_choices  of two random candidates the one with fewer requests in flight. This is within a small constant of
                          "always the least busy", without comparing all candidates, and without all gateways choosing the same
                          one (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001)
    least_requests        the one with the fewest requests in flight
    random                any candidate, busy or not
    round_robin           one after the other, in the order of their ids
    hash                  always the same one for the same client, header or cookie

Endpoints may have weights. Whether those of a backend differ is found out when discovery or health has news, not per request;
while they do not, there is nothing to weigh. An endpoint of weight 0 gets what sticks to it and nothing else. One that is
fresh or on trial has less than its weight for a while (see the plugin `health`).

The middleware stands innermost, so that a retry outside of it chooses anew among the candidates that are left.
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
    gateway.table.on_snapshot(selection.look_at)
    return Middleware("selection", selection.wrap, modifies_request=False, essential=True)


class Selection:
    """How endpoints are chosen, for all routes of a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        options: dict[str, SelectionOptions] = {
            backend.name: gateway.options("selection", backend=backend) or SelectionOptions()
            for backend in gateway.backends.values()
        }
        policies = {backend: gateway.policies[own.policy] for backend, own in options.items()}
        self._picks = {name: policy.pick for name, policy in policies.items()}
        self._weighing = {name: getattr(policy, "pick_weighted", None) for name, policy in policies.items()}
        self._uneven: set[str] = set()
        self._keys: dict[str, Callable[[WSGIEnvironment], str]] = {}
        self._cookies: dict[str, StickyCookie] = {}
        for backend, own in options.items():
            if own.policy == ConsistentHash.name:
                self._keys[backend] = key_of(own.hash_key)
            if (sticky := own.sticky) is not None:
                make = partial(StickyCookie, backend, sticky.cookie, sticky.secret, sticky.max_age_seconds)
                self._cookies[backend] = gateway.resource(f"selection {backend}", sticky, make)

    def look_at(self, snapshot: Snapshot) -> None:
        """Find the backends whose endpoints are not alike, so that requests need not."""
        for backend, endpoints in snapshot.endpoints.items():
            weight = endpoints[0].weight if endpoints else 1
            if weight and all(
                e.weight == weight and e.state.weight_factor == 1 and e.state.try_acquire_trial is None for e in endpoints
            ):
                self._uneven.discard(backend)
            else:
                self._uneven.add(backend)

    def wrap(self, app: WSGIApplication, options: Any) -> WSGIApplication:
        """`app` with exchange.endpoint set."""
        picks, uneven, exchange_of = self._picks, self._uneven, Exchange.of

        def select(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            exchange = exchange_of(environ)
            candidates = exchange.candidates
            if not candidates:
                raise NoEndpoint("no candidate is left")
            first = candidates[0]
            if uneven and first.backend in uneven:
                exchange.endpoint = self._weighed(candidates, exchange, environ)
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
            endpoint = sticky.kept(environ, candidates)
            if endpoint is not None and (endpoint.state.try_acquire_trial is None or endpoint.state.try_acquire_trial(environ)):
                exchange.endpoint = endpoint
                return app(environ, start_response)
            endpoint = exchange.endpoint = self._chosen(candidates, exchange, environ)
            return app(environ, sticky.setting(endpoint, environ, start_response))

        return select_for_client

    def _chosen(self, candidates: Sequence[Endpoint], exchange: Exchange, environ: WSGIEnvironment) -> Endpoint:
        backend = candidates[0].backend
        if backend in self._uneven:
            return self._weighed(candidates, exchange, environ)
        return candidates[0] if len(candidates) == 1 else self._picks[backend](candidates, exchange)

    def _weighed(self, candidates: Sequence[Endpoint], exchange: Exchange, environ: WSGIEnvironment) -> Endpoint:
        """One of endpoints that are not alike: the one whose trial this request is, or one by weight."""
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
        pick = self._weighing[backend]
        if len(some) == 1:
            return some[0]
        return self._picks[backend](some, exchange) if pick is None else pick(some, weights, exchange)
