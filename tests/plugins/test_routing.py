"""routing: which route a request takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgate import Backend, Exchange, NoRoute, Route, hookimpl
from rgate.plugins import routing
from rgate.plugins.routing import RouteTable
from rgate.testing import answering, assert_fault, client, make_environ, make_exchange, make_gateway, running_gateway
from rgate.wire.target import read_target


def route(name: str, path_prefix: str = "", **asks: Any) -> Route:
    return Route(name, path_prefix, Backend("orders"), **asks)


def find(routes: list[Route], path: str, method: str = "GET", **environ: str) -> str | None:
    found = RouteTable(routes).find(path, {"REQUEST_METHOD": method, **environ})
    return found and found.name


PREFIXES = [route("root"), route("api", "/api"), route("orders", "/api/orders"), route("deep", "/a/b/c/d")]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "root"),
        ("/x", "root"),
        ("/api", "api"),
        ("/api/", "api"),
        ("/api/x", "api"),
        ("/apix", "root"),
        ("/ap", "root"),
        ("/api;v=1", "root"),
        ("/api%2Forders", "root"),
        ("/API", "root"),
        ("/api/orders", "orders"),
        ("/api/orders/", "orders"),
        ("/api/orders/17/lines", "orders"),
        ("/api/ordersx", "api"),
        ("/a/b/c", "root"),
        ("/a/b/c/d", "deep"),
        ("/a/b/c/d/e/f/g/h", "deep"),
        ("/" + "x/" * 10_000, "root"),
        ("/" + "x" * 10_000, "root"),
        ("/api/" + "x" * 10_000, "api"),
    ],
)
def test_route_longest_prefix_wins_on_segments(path: str, name: str) -> None:
    assert find(PREFIXES, path) == name


def test_route_none_matches() -> None:
    assert find([route("api", "/api")], "/other") is None
    assert find([route("api", "/api")], "/apix") is None
    assert find([route("api", "/api")], "/") is None
    assert find([], "/") is None


def test_route_methods_restrict() -> None:
    routes = [route("read", "/api", methods=("GET", "HEAD")), route("any")]
    assert find(routes, "/api/x") == "read"
    assert find(routes, "/api/x", "POST") == "any"
    assert find(routes[:1], "/api", "POST") is None


@pytest.mark.parametrize("host", ["a.example", "A.EXAMPLE", "a.example:8080", "a.example.", "a.example.:80"])
def test_route_host_matches_without_port_case_and_root_dot(host: str) -> None:
    assert find([route("a", hosts=("a.example", "b.example"))], "/", HTTP_HOST=host) == "a"


@pytest.mark.parametrize("host", ["", "b.example", "xa.example", "a.example.evil", "a.example:80:80"])
def test_route_host_is_another_one(host: str) -> None:
    assert find([route("a", hosts=("a.example",))], "/", HTTP_HOST=host) is None


@pytest.mark.parametrize("host", ["[::1]", "[::1]:8080"])
def test_route_host_may_be_ipv6(host: str) -> None:
    assert find([route("a", hosts=("[::1]",))], "/", HTTP_HOST=host) == "a"


def test_route_host_absent_matches_no_route_with_hosts() -> None:
    assert find([route("a", hosts=("a.example",)), route("b")], "/") == "b"


def test_route_headers_restrict() -> None:
    routes = [route("beta", headers=(("x-beta", "1"), ("content-type", "text/plain"))), route("any")]
    assert find(routes, "/", HTTP_X_BETA="1", CONTENT_TYPE="text/plain") == "beta"
    assert find(routes, "/", HTTP_X_BETA="1") == "any"
    assert find(routes, "/", HTTP_X_BETA="2", CONTENT_TYPE="text/plain") == "any"


def test_route_of_one_prefix_that_asks_for_more_is_looked_at_first() -> None:
    routes = [
        route("plain", "/api"),
        route("method", "/api", methods=("GET",)),
        route("header", "/api", headers=(("x", "1"),)),
        route("headers", "/api", headers=(("x", "1"), ("y", "2"))),
        route("host", "/api", hosts=("h",)),
        route("host again", "/api", hosts=("h",)),
    ]
    assert find(routes, "/api", "POST") == "plain"
    assert find(routes, "/api") == "method"
    assert find(routes, "/api", HTTP_X="1") == "header"
    assert find(routes, "/api", HTTP_X="1", HTTP_Y="2") == "headers"
    assert find(routes, "/api", HTTP_X="1", HTTP_Y="2", HTTP_HOST="h") == "host"


def test_route_with_a_longer_prefix_comes_before_one_that_asks_for_more() -> None:
    assert find([route("host", hosts=("h",)), route("api", "/api")], "/api", HTTP_HOST="h") == "api"


_segments = st.lists(st.sampled_from(["a", "b", "ab"]), max_size=4).map(lambda s: "".join(f"/{one}" for one in s))


@given(st.sets(_segments, max_size=6), _segments)
def test_route_is_the_one_that_a_plain_search_finds(prefixes: set[str], path: str) -> None:
    matching = [prefix for prefix in prefixes if path == prefix or path.startswith(prefix + "/")]
    expected = max(matching, key=len) if matching else None
    assert find([route(prefix, prefix) for prefix in sorted(prefixes)], path or "/") == expected


SPELLINGS = ["/api/orders", "//api/orders", "/api//orders", "/%61pi/orders", "/api/%6Frders", "//%61%70i///orders/x"]


@pytest.mark.parametrize("target", SPELLINGS)
def test_route_is_found_in_every_spelling_of_its_path(target: str) -> None:
    assert find(PREFIXES, read_target("GET", target).route) == "orders"


# The middleware


def test_middleware_sets_the_route() -> None:
    gateway = make_gateway({}, {"orders": answering(b"")})
    app = routing.rgate_middlewares(gateway).wrap(answering(b"inside"), None)
    exchange = make_exchange()
    exchange.route = None
    environ = make_environ("/orders/1", exchange)
    environ["rgate.target"] = read_target("GET", "/orders/1")
    assert app(environ, lambda *_: lambda _: None) == [b"inside"]
    assert exchange.route is gateway.routes[0]


def test_middleware_leaves_the_route_of_an_earlier_router() -> None:
    gateway = make_gateway({}, {"orders": answering(b"")})
    app = routing.rgate_middlewares(gateway).wrap(answering(b"inside"), None)
    exchange = make_exchange()
    before = exchange.route
    app(make_environ("/elsewhere", exchange), lambda *_: lambda _: None)
    assert exchange.route is before


def test_middleware_without_a_route_raises_the_default_response() -> None:
    gateway = make_gateway({"default_response": {"body": "nothing here", "status_code": 403, "content_type": "text/plain"}})
    app = routing.rgate_middlewares(gateway).wrap(answering(b"never"), None)
    exchange = Exchange()
    environ = make_environ("/", exchange)
    environ["rgate.target"] = read_target("GET", "/")
    with pytest.raises(NoRoute) as caught:
        app(environ, lambda *_: lambda _: None)
    assert (caught.value.message, caught.value.status, caught.value.content_type) == ("nothing here", 403, "text/plain")


def test_gateway_routes_by_what_it_forwards() -> None:
    with running_gateway({}, {"orders": answering(b"orders"), "payment": answering(b"payment")}) as gateway:
        assert client(gateway).get("/orders/1").data == b"orders"
        assert client(gateway).get("/payment?x").data == b"payment"
        assert_fault(client(gateway).get("/ordersx"), 404, "no_route")


def test_gateway_router_of_a_plugin_decides_before() -> None:
    class Router:
        @hookimpl
        def rgate_middlewares(self, gateway: Any) -> Any:
            from rgate import Middleware

            def wrap(app: Any, options: Any) -> Any:
                def call(environ: Any, start_response: Any) -> Any:
                    Exchange.of(environ).route = gateway.routes[1]
                    return app(environ, start_response)

                return call

            return Middleware("router", wrap, before="routing", edits_environ=False)

    backends = {"orders": answering(b"orders"), "payment": answering(b"payment")}
    with running_gateway({}, backends, {"router": Router()}) as gateway:
        assert client(gateway).get("/orders").data == b"payment"
