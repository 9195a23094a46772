"""build(): from a config and its plugins to one app, and the life of a Gateway."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rgate import Exchange, Gateway, Middleware, PluginError, SelectionPolicy, Timeouts, build, hookimpl
from rgate.testing import ScriptedBackend, assert_error, client, make_gateway, respond_with, running_gateway

from ..support.waiting import eventually

CONFIG = """
routes:
  - path_prefix: /api/orders/
    name: orders
    backend: orders
    host: Shop.Example
    methods: [get, post]
    headers: {X-Version: "2"}
    strip_prefix: true
    timeouts: {connect_seconds: 1, read_seconds: 5}
  - path_prefix: /
    backend: legacy
backends:
  - name: orders
    match_labels: [app_name=orders, "note=a=b", empty=]
    policy: round_robin
  - name: legacy
    endpoints: ["http://127.0.0.1:9"]
"""


def test_gateway_has_the_nouns_of_its_config() -> None:
    gateway = make_gateway(CONFIG)
    orders = gateway.backends["orders"]
    assert orders.match_labels == (("app_name", "orders"), ("note", "a=b"), ("empty", ""))
    assert gateway.options("selection", backend=orders).policy == "round_robin"
    assert gateway.backends.keys() == {"orders", "legacy"}
    route, other = gateway.routes
    assert (route.name, route.path_prefix, route.backend) == ("orders", "/api/orders", orders)
    assert (route.hosts, route.methods, route.headers) == (("shop.example",), ("GET", "POST"), {"X-Version": "2"})
    assert (route.strip_prefix, route.timeouts) == (True, Timeouts(1, 5))
    assert (other.name, other.path_prefix, other.timeouts) == ("/", "", Timeouts(4, 30))
    assert gateway.policies.keys() == {"power_of_two_choices", "least_requests", "random", "round_robin", "hash"}


def test_gateway_that_is_made_has_found_nothing_and_answers() -> None:
    gateway = make_gateway(CONFIG)
    assert gateway.table.snapshot.endpoints == {"orders": (), "legacy": ()}
    assert_error(client(gateway).get("/"), 503, "no_endpoint")


class Plugin:
    """A plugin that brings what a test gives it."""

    def __init__(self, **brings: Any) -> None:
        self.brings = brings

    @hookimpl
    def rgate_middlewares(self, gateway: Gateway) -> Any:
        return self.brings.get("middlewares")

    @hookimpl
    def rgate_local_routes(self, gateway: Gateway) -> Any:
        return self.brings.get("local_routes")

    @hookimpl
    def rgate_selection_policies(self, config: object) -> Any:
        return self.brings.get("policies")

    @hookimpl
    def rgate_lifespan(self, gateway: Gateway) -> Any:
        lifespan = self.brings.get("lifespan")
        return lifespan and lifespan(gateway)


def noting(name: str, seen: list[str], **place: Any) -> Middleware:
    """A middleware that notes that a request came by, and in which route's chain."""

    def wrap(app: Callable[..., Iterable[bytes]], options: object) -> Callable[..., Iterable[bytes]]:
        def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            seen.append(name)
            return app(environ, start_response)

        return call

    return Middleware(name, wrap, **place)


ROUTES = {
    "routes": [
        {"path_prefix": "/on", "backend": "orders"},
        {"path_prefix": "/off", "backend": "orders", "plugins": {"inner": False}},
    ]
}


def test_build_chain_is_the_routes_own_inside_of_routing() -> None:
    seen: list[str] = []
    plugins = {
        "inner": Plugin(middlewares=noting("inner", seen)),
        "outer": Plugin(middlewares=noting("outer", seen, before="routing")),
    }
    with running_gateway(ROUTES, {"orders": respond_with(b"ok")}, plugins) as gateway:
        assert client(gateway).get("/on").data == client(gateway).get("/off").data == b"ok"
        assert seen == ["outer", "inner", "outer"]
        on, off = gateway.chains["/on"], gateway.chains["/off"]
        assert on.index("outer") < on.index("routing") < on.index("inner") < on.index("selection")
        assert [name for name in on if name != "inner"] == list(off)


def test_build_wraps_once_a_route_inside_and_twice_outside() -> None:
    wrapped: list[str] = []

    def counting(name: str, **place: Any) -> Plugin:
        def wrap(app: Any, options: object) -> Any:
            wrapped.append(name)
            return app

        return Plugin(middlewares=Middleware(name, wrap, **place))

    make_gateway(ROUTES, {"orders": ()}, {"inner": counting("inner"), "outer": counting("outer", before="routing")})
    assert sorted(wrapped) == ["inner", "outer", "outer"]


def test_build_refused_requests_pass_the_outer_chain_alone() -> None:
    seen: list[str] = []
    plugins = {
        "inner": Plugin(middlewares=noting("inner", seen)),
        "outer": Plugin(middlewares=noting("outer", seen, before="faults")),
    }
    with running_gateway(ROUTES, {"orders": respond_with(b"ok")}, plugins) as gateway:
        assert_error(client(gateway).get("/on/../x", environ_overrides={"RAW_URI": "/on/../x"}), 400, "bad_request")
    assert seen == ["outer"]


def test_build_local_routes_of_plugins_are_answered() -> None:
    with running_gateway({}, {}, {"mine": Plugin(local_routes={"/mine": respond_with(b"local")})}) as gateway:
        assert client(gateway).get("/mine").data == b"local"
        assert_error(client(gateway).get("/mine/x"), 404, "no_route")
        assert "/mine" in gateway.local_routes


def test_build_two_plugins_with_one_local_route_are_refused() -> None:
    plugins = {name: Plugin(local_routes={"/mine": respond_with(b"")}) for name in ("one", "two")}
    with pytest.raises(PluginError, match="two plugins answer the local route '/mine'"):
        make_gateway({}, {}, plugins)


class First:
    name = "first"

    def pick(self, candidates: Any, exchange: Exchange) -> Any:
        return candidates[0]


def test_build_policy_of_a_plugin_can_be_chosen() -> None:
    policy: SelectionPolicy = First()
    config = {"backends": [{"name": "orders", "match_labels": ["testing=orders"], "policy": "first"}]}
    backends = {"orders": [respond_with(b"1"), respond_with(b"2")]}
    with running_gateway(config, backends, {"first": Plugin(policies=policy)}) as gateway:
        assert {client(gateway).get("/orders").data for _ in range(20)} == {b"1"}


def test_build_two_plugins_with_one_policy_are_refused() -> None:
    with pytest.raises(PluginError, match="two plugins have a selection policy named 'first'"):
        make_gateway({}, {}, {name: Plugin(policies=First()) for name in ("one", "two")})


def test_build_forwarder_looks_for_edits_only_where_there_may_be_some(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    class Forwarder:
        def __init__(self, upstreams: object, route: object, edited: bool, via: bool) -> None:
            asked.append(edited)

        def __call__(self, environ: object, start_response: object) -> Iterable[bytes]:
            return []

    monkeypatch.setattr("rgate.runtime.gateway.Forwarder", Forwarder)
    make_gateway({}, {"orders": ()}, {})
    declared = {"routes": [{"path_prefix": "/", "backend": "a"}], "backends": [{"name": "a", "match_labels": ["a=b"]}]}
    asked.clear()
    make_gateway(declared)
    make_gateway(declared, {}, {"x": Plugin(middlewares=noting("x", [], modifies_request=False))})
    make_gateway(declared, {}, {"x": Plugin(middlewares=noting("x", []))})
    make_gateway(declared, {}, {"x": Plugin(middlewares=noting("x", [], before="stats"))})
    assert asked == [False, False, True, True]


def test_running_enters_lifespans_around_discovery_and_leaves_them_in_reverse() -> None:
    happened: list[str] = []

    def lifespan(name: str) -> Callable[[Gateway], Any]:
        @contextmanager
        def span(gateway: Gateway) -> Iterator[None]:
            happened.append(f"{name} enters {sum(map(len, gateway.table.snapshot.endpoints.values()))}")
            yield
            happened.append(f"{name} leaves")

        return span

    plugins = {name: Plugin(lifespan=lifespan(name)) for name in ("a", "b")}
    with running_gateway({}, {"orders": respond_with(b"")}, plugins) as gateway:
        assert happened == ["a enters 0", "b enters 0"]
        assert sum(map(len, gateway.table.snapshot.endpoints.values())) == 1
        happened.clear()
    assert happened == ["b leaves", "a leaves"]


def test_running_that_fails_half_way_leaves_what_it_has_entered() -> None:
    left: list[str] = []

    @contextmanager
    def good(gateway: Gateway) -> Iterator[None]:
        try:
            yield
        finally:
            left.append("good")

    @contextmanager
    def bad(gateway: Gateway) -> Iterator[None]:
        raise OSError("no")
        yield

    with (
        pytest.raises(PluginError, match="plugin 'b': its lifespan cannot start: OSError: no"),
        running_gateway({}, {}, {"a": Plugin(lifespan=good), "b": Plugin(lifespan=bad)}),
    ):
        pass
    assert left == ["good"]
    assert not [thread for thread in threading.enumerate() if thread.name == "rgate-maintenance"]


def test_running_ends_every_lifespan_and_names_the_plugin_whose_end_fails(caplog: pytest.LogCaptureFixture) -> None:
    left: list[str] = []

    @contextmanager
    def good(gateway: Gateway) -> Iterator[None]:
        yield
        left.append("good")

    @contextmanager
    def bad(gateway: Gateway) -> Iterator[None]:
        yield
        raise OSError("no")

    with running_gateway({}, {}, {"a": Plugin(lifespan=good), "b": Plugin(lifespan=bad)}):
        pass
    assert left == ["good"]
    (record,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert record.getMessage() == "plugin 'b' failed while its lifespan stopped: OSError('no')"


def test_running_closes_connections_that_rest_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.runtime.runtime.MAINTENANCE_INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr("rgate.forwarding.upstream.MAX_IDLE_SECONDS", 0.05)
    with ScriptedBackend() as backend:
        config = {
            "backends": [{"name": "orders", "endpoints": [backend.url]}],
            "routes": [{"path_prefix": "/", "backend": "orders"}],
        }
        with running_gateway(config) as gateway:
            assert client(gateway).get("/").data == b"ok"
            eventually(lambda: backend.connections[0].sock.fileno() < 0, "the connection is closed without another request")


def test_options_are_the_routes_own_or_else_the_gateways() -> None:
    gateway = make_gateway(
        {
            "plugins": {"normalize": {"format": "envelope"}},
            "routes": [
                {"path_prefix": "/a", "backend": "orders"},
                {"path_prefix": "/b", "backend": "orders", "plugins": {"normalize": {"max_body_bytes": 1}}},
            ],
        },
        {"orders": ()},
    )
    assert gateway.options("normalize").max_body_bytes == 1_048_576
    assert gateway.options("routing") is None
    assert gateway.options("normalize", gateway.routes[0]).max_body_bytes == 1_048_576
    assert gateway.options("normalize", gateway.routes[1]).max_body_bytes == 1


def test_resource_goes_on_in_the_next_gateway_while_the_key_is_equal() -> None:
    first = make_gateway()
    counts = first.resource("counts", ("a", 1), list)
    assert first.resource("counts", ("a", 1), list) is counts
    assert build(first.config, first.registry, first.runtime).resource("counts", ("a", 1), list) is counts
    assert build(first.config, first.registry, first.runtime).resource("counts", ("a", 2), list) is not counts


def test_resource_is_closed_at_the_end_of_running_after_the_lifespans() -> None:
    happened: list[str] = []

    class Closing:
        def close(self) -> None:
            happened.append("closed")

    @contextmanager
    def lifespan(gateway: Gateway) -> Iterator[None]:
        gateway.resource("it", None, Closing)
        yield
        happened.append("left")

    with running_gateway({}, {}, {"a": Plugin(lifespan=lifespan)}):
        assert not happened
    assert happened == ["left", "closed"]


def test_readiness_is_that_of_the_process() -> None:
    first = make_gateway()
    assert build(first.config, first.registry, first.runtime).readiness is first.readiness
