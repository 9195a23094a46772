"""selection: the policies, and the middleware that uses them."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from rgate import Endpoint, Exchange, NoEndpoint, hookimpl
from rgate.plugins import selection
from rgate.plugins.selection import ConsistentHash, LeastRequests, PowerOfTwoChoices, Random, RoundRobin
from rgate.testing import client, make_endpoint, make_environ, make_exchange, make_gateway, respond_with, running_gateway

THREE = tuple(make_endpoint(f"orders-{number}") for number in (1, 2, 3))


def picks(policy: object, candidates: tuple[Endpoint, ...], count: int) -> Counter[str]:
    exchange = make_exchange(candidates=candidates)
    return Counter(policy.pick(candidates, exchange).name for _ in range(count))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "policy", [PowerOfTwoChoices(), LeastRequests(), Random(), RoundRobin(), ConsistentHash()], ids=lambda p: p.name
)
def test_pick_one_candidate_is_picked(policy: object) -> None:
    assert picks(policy, THREE[:1], 5) == {"orders-1": 5}


@pytest.mark.parametrize("policy", [PowerOfTwoChoices(), LeastRequests(), Random(), RoundRobin()], ids=lambda p: p.name)
def test_pick_idle_candidates_share_evenly(policy: object) -> None:
    counts = picks(policy, THREE, 3_000)
    # 1,000 ± 26 each: ± 200 is more than seven standard deviations.
    assert all(800 < counts[endpoint.name] < 1_200 for endpoint in THREE), counts


def test_random_of_two_the_busiest_of_all_is_never_picked() -> None:
    candidates = (make_endpoint("a", in_flight=1), make_endpoint("b", in_flight=5), make_endpoint("c", in_flight=2))
    counts = picks(PowerOfTwoChoices(), candidates, 1_000)
    assert counts["b"] == 0
    assert counts["a"] > counts["c"] > 0, f"a wins against both, c against b alone: {counts}"


def test_random_of_two_the_busier_of_two_is_never_picked() -> None:
    assert picks(PowerOfTwoChoices(), (make_endpoint("a", in_flight=1), make_endpoint("b")), 200) == {"b": 200}


def test_least_in_flight_is_picked_and_ties_are_broken_by_chance() -> None:
    candidates = (make_endpoint("a", in_flight=1), make_endpoint("b", in_flight=2), make_endpoint("c", in_flight=1))
    counts = picks(LeastRequests(), candidates, 1_000)
    assert counts["b"] == 0
    assert 350 < counts["a"] < 650


def test_round_robin_takes_turns_in_order() -> None:
    policy, exchange = RoundRobin(), make_exchange()
    assert [policy.pick(THREE, exchange).name[-1] for _ in range(7)] == list("1231231")


def test_round_robin_backends_have_turns_of_their_own() -> None:
    policy, exchange = RoundRobin(), make_exchange()
    others = tuple(make_endpoint(f"payment-{number}", backend="payment") for number in (1, 2))
    assert [policy.pick(candidates, exchange).name for candidates in (THREE, others, THREE, others)] == [
        "orders-1",
        "payment-1",
        "orders-2",
        "payment-2",
    ]


def test_round_robin_many_threads_share_exactly() -> None:
    policy, start = RoundRobin(), threading.Barrier(8)

    def pick(_: int) -> Counter[str]:
        start.wait(10)
        return picks(policy, THREE, 300)

    with ThreadPoolExecutor(8) as pool:
        total = sum(pool.map(pick, range(8)), Counter[str]())
    assert total == {endpoint.name: 800 for endpoint in THREE}


def test_middleware_without_candidates_raises_no_endpoint() -> None:
    app = selection.rgate_middlewares(make_gateway()).wrap(respond_with(b"never"), None)
    with pytest.raises(NoEndpoint):
        app(make_environ(exchange=make_exchange(candidates=())), lambda *_: lambda _: None)


def test_middleware_one_candidate_asks_no_policy() -> None:
    class Unasked:
        name = "unasked"

        def pick(self, candidates: object, exchange: Exchange) -> Endpoint:
            raise AssertionError("asked for one candidate")

        @hookimpl
        def rgate_selection_policies(self, config: object) -> object:
            return self

    backends = [{"name": "orders", "match_labels": ["a=b"], "policy": "unasked"}]
    gateway = make_gateway({"backends": backends}, plugins={"unasked": Unasked()})
    exchange = make_exchange(candidates=THREE[:1])
    client(selection.rgate_middlewares(gateway).wrap(respond_with(), None), exchange).get("/")
    assert exchange.endpoint is THREE[0]


def test_middleware_every_backend_by_its_own_policy() -> None:
    backends = [
        {"name": "orders", "match_labels": ["a=b"], "policy": "round_robin"},
        {"name": "payment", "match_labels": ["a=c"]},
    ]
    apps = {name: [respond_with(f"{name}-{number}".encode()) for number in (1, 2)] for name in ("orders", "payment")}
    routes = [{"path_prefix": f"/{name}", "backend": name} for name in apps]
    with running_gateway({"backends": backends, "routes": routes}, apps) as gateway:
        asked = client(gateway)
        assert [asked.get("/orders").text for _ in range(4)] == ["orders-1", "orders-2"] * 2
        assert {asked.get("/payment").text for _ in range(40)} == {"payment-1", "payment-2"}
        endpoint = gateway.table.snapshot.endpoints["payment"][0]
        endpoint.state.active_exchanges.add(make_exchange())
        assert {asked.get("/payment").text for _ in range(20)} == {"payment-2"}
