"""selection: weights, the hash policy, and endpoints in slow start or half-open."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest

from rgate import Endpoint, Exchange, Gateway, Middleware, hookimpl
from rgate.plugins.selection import ConsistentHash, LeastRequests, PowerOfTwoChoices, Random, RoundRobin
from rgate.testing import assert_error, client, make_endpoint, make_exchange, respond_with, running_gateway

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

WEIGHING = [PowerOfTwoChoices(), LeastRequests(), Random(), RoundRobin(), ConsistentHash()]


def by_weight(policy: object, weights: dict[str, float], count: int, *, busy: str = "") -> Counter[str]:
    candidates = [make_endpoint(name, in_flight=9 if name == busy else 0) for name in weights]
    exchange, found = make_exchange(), Counter[str]()
    for number in range(count):
        exchange.affinity_key = str(number)
        found[policy.pick_weighted(candidates, [*weights.values()], exchange).name] += 1  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("policy", [Random(), LeastRequests(), RoundRobin(), ConsistentHash()], ids=lambda policy: policy.name)
@pytest.mark.parametrize("weights", [{"a": 1, "b": 3}, {"a": 5, "b": 0.5, "c": 2.5}])
def test_idle_candidates_share_by_weight(policy: object, weights: dict[str, float]) -> None:
    counts = by_weight(policy, weights, 4_000)
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(counts[name] - 4_000 * share) < 7 * math.sqrt(4_000 * share * (1 - share)), counts


def test_random_of_two_prefers_the_heavier_and_spares_the_busy() -> None:
    counts = by_weight(PowerOfTwoChoices(), {"a": 1, "b": 3, "c": 1}, 2_000)
    assert counts["b"] > counts["a"] + counts["c"]
    assert by_weight(PowerOfTwoChoices(), {"a": 1, "b": 3}, 100, busy="b") == {"a": 100}


def test_least_in_flight_counts_by_weight() -> None:
    candidates = [make_endpoint("small", in_flight=1), make_endpoint("large", in_flight=2)]
    policy, exchange = LeastRequests(), make_exchange()
    assert policy.pick_weighted(candidates, [1, 3], exchange).name == "large", "2 of 3 are less than 1 of 1"
    assert policy.pick_weighted(candidates, [1, 1.5], exchange).name == "small"


def test_round_robin_by_weight_is_smooth() -> None:
    policy, exchange = RoundRobin(), make_exchange()
    candidates = [make_endpoint("a"), make_endpoint("b")]
    turns = "".join(policy.pick_weighted(candidates, [3, 1], exchange).name for _ in range(400))
    assert abs(turns.count("b") - 100) <= 2
    assert "bb" not in turns and "aaaaaa" not in turns, turns


EXPECTED = "cbaacaacaaaa"  # of what hash has always chosen


class TestHash:
    def owners(self, names: Sequence[str], weights: Sequence[float] | None = None) -> dict[str, str]:
        policy, exchange, owners = ConsistentHash(), make_exchange(), {}
        candidates = [make_endpoint(name) for name in names]
        for number in range(2_000):
            exchange.affinity_key = f"192.0.2.{number}"
            picked = policy.pick_weighted(candidates, weights, exchange) if weights else policy.pick(candidates, exchange)
            owners[exchange.affinity_key] = picked.name
        return owners

    def test_clients_are_spread_evenly(self) -> None:
        counts = Counter(self.owners("abcde").values())
        assert all(300 < count < 500 for count in counts.values()), counts

    def test_leaving_endpoint_moves_only_its_own_clients(self) -> None:
        before, after = self.owners("abcde"), self.owners("abde")
        moved = {key for key in before if before[key] != after[key]}
        assert moved == {key for key, owner in before.items() if owner == "c"}
        assert len({after[key] for key in moved}) == 4, "they are spread over all that are left"

    def test_choice_is_the_same_in_every_process_and_order(self) -> None:
        assert self.owners("abc") == self.owners("cab")
        assert "".join([*self.owners("abc").values()][:12]) == EXPECTED, "another choice would move all clients at an upgrade"

    def test_equal_weights_choose_as_none_do(self) -> None:
        assert self.owners("abc", [2, 2, 2]) == self.owners("abc")

    def test_weight_that_grows_moves_clients_only_to_it(self) -> None:
        before, after = self.owners("abc", [1, 1, 1]), self.owners("abc", [1, 1, 2])
        assert {after[key] for key in before if before[key] != after[key]} == {"c"}


def spread(gateway: Gateway, count: int, path: str = "/x", **request: object) -> Counter[str]:
    asked = client(gateway)
    return Counter(asked.get(path, **request).text for _ in range(count))


def weighted(policy: str, *weights: int) -> dict[str, object]:
    urls = [{"url": f"http://in-process.invalid:{n}", "weight": w} for n, w in enumerate(weights, 1)]
    return {"backends": [{"name": "x", "endpoints": urls, "policy": policy}], "routes": [{"path_prefix": "/", "backend": "x"}]}


class Named:
    """Replaces the forwarder: answers with the name of the endpoint."""

    @hookimpl
    def rgate_middlewares(self, gateway: Gateway) -> Middleware:
        def answer(environ: WSGIEnvironment, start_response: Callable[..., object]) -> list[bytes]:
            endpoint = Exchange.of(environ).endpoint
            start_response("200 OK", [])
            return [str(endpoint and endpoint.address.port).encode()]

        return Middleware("named", lambda app, options: answer, after="selection")


@pytest.mark.parametrize("policy", ["random", "power_of_two_choices", "round_robin", "least_requests", "hash"])
def test_gateway_gives_endpoints_of_weight_0_nothing(policy: str) -> None:
    with running_gateway(weighted(policy, 0, 1, 0), plugins={"named": Named()}) as gateway:
        assert spread(gateway, 20) == {"2": 20}


def test_gateway_with_weight_0_everywhere_has_no_endpoint() -> None:
    with running_gateway(weighted("random", 0), plugins={"named": Named()}) as gateway:
        assert_error(client(gateway).get("/"), 503, "no_endpoint")


def test_gateway_honours_weights_and_shares() -> None:
    with running_gateway(weighted("round_robin", 1, 3), plugins={"named": Named()}) as gateway:
        assert spread(gateway, 100)["2"] in range(73, 78)
        heavy = gateway.table.snapshot.endpoints["x"][1]
        heavy.state.weight_factor = 1 / 3
        gateway.table.weights_changed()
        assert spread(gateway, 100)["2"] in range(48, 53)


def test_gateway_policy_that_cannot_weigh_is_asked_without_what_has_weight_0() -> None:
    class First:
        name = "first"

        def pick(self, candidates: Sequence[Endpoint], exchange: Exchange) -> Endpoint:
            return candidates[0]

        @hookimpl
        def rgate_selection_policies(self, config: object) -> object:
            return self

    with running_gateway(weighted("first", 0, 1, 5), plugins={"named": Named(), "first": First()}) as gateway:
        assert spread(gateway, 5) == {"2": 5}


def test_gateway_claim_takes_the_requests_that_it_claims() -> None:
    with running_gateway({}, {"x": [respond_with(b"x-1"), respond_with(b"x-2")]}) as gateway:
        trial = gateway.table.snapshot.endpoints["x"][0]
        asked: list[str] = []

        def claim(environ: WSGIEnvironment) -> bool:
            asked.append(environ["PATH_INFO"])
            return len(asked) == 3

        trial.state.weight_factor, trial.state.try_acquire_trial = 0.0, claim
        gateway.table.weights_changed()
        assert [client(gateway).get("/x").text for _ in range(5)] == ["x-2", "x-2", "x-1", "x-2", "x-2"]
        trial.state.weight_factor, trial.state.try_acquire_trial = 1.0, None
        gateway.table.weights_changed()
        assert spread(gateway, 60).keys() == {"x-1", "x-2"}
        assert len(asked) == 5


def test_gateway_only_endpoint_on_trial_lets_one_request_through() -> None:
    with running_gateway({}, {"x": respond_with(b"x-1")}) as gateway:
        trial = gateway.table.snapshot.endpoints["x"][0]
        answers = iter([True, False])
        trial.state.weight_factor, trial.state.try_acquire_trial = 0.0, lambda environ: next(answers)
        gateway.table.weights_changed()
        assert client(gateway).get("/x").status_code == 200
        assert_error(client(gateway).get("/x"), 503, "no_endpoint")
