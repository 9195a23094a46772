"""routing: which route a request takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from posixpath import normpath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgate import AmbiguousPath, Backend, Exchange, NoRoute, Route, hookimpl
from rgate.forwarding.forwarder import _without_prefix
from rgate.http1.target import Target, parse_target
from rgate.plugins import routing
from rgate.plugins.routing import RouteTable
from rgate.testing import assert_error, client, make_environ, make_exchange, make_gateway, respond_with, running_gateway

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def route(name: str, path_prefix: str = "/", **asks: Any) -> Route:
    return Route(path_prefix, Backend("orders"), name, **asks)


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
    assert find([route("a", host=("a.example", "b.example"))], "/", HTTP_HOST=host) == "a"


@pytest.mark.parametrize("host", ["", "b.example", "xa.example", "a.example.evil", "a.example:80:80"])
def test_route_host_is_another_one(host: str) -> None:
    assert find([route("a", host=("a.example",))], "/", HTTP_HOST=host) is None


@pytest.mark.parametrize("host", ["[::1]", "[::1]:8080"])
def test_route_host_may_be_ipv6(host: str) -> None:
    assert find([route("a", host=("[::1]",))], "/", HTTP_HOST=host) == "a"


def test_route_host_absent_matches_no_route_with_hosts() -> None:
    assert find([route("a", host=("a.example",)), route("b")], "/") == "b"


def test_route_headers_restrict() -> None:
    routes = [route("beta", headers={"X-Beta": "1", "Content-Type": "text/plain"}), route("any")]
    assert find(routes, "/", HTTP_X_BETA="1", CONTENT_TYPE="text/plain") == "beta"
    assert find(routes, "/", HTTP_X_BETA="1") == "any"
    assert find(routes, "/", HTTP_X_BETA="2", CONTENT_TYPE="text/plain") == "any"


def test_route_of_one_prefix_with_more_conditions_is_tried_first() -> None:
    routes = [
        route("plain", "/api"),
        route("method", "/api", methods=("GET",)),
        route("header", "/api", headers={"x": "1"}),
        route("headers", "/api", headers={"x": "1", "y": "2"}),
        route("host", "/api", host=("h",)),
        route("host again", "/api", host=("h",)),
    ]
    assert find(routes, "/api", "POST") == "plain"
    assert find(routes, "/api") == "method"
    assert find(routes, "/api", HTTP_X="1") == "header"
    assert find(routes, "/api", HTTP_X="1", HTTP_Y="2") == "headers"
    assert find(routes, "/api", HTTP_X="1", HTTP_Y="2", HTTP_HOST="h") == "host"


def test_route_with_a_longer_prefix_comes_before_one_that_asks_for_more() -> None:
    assert find([route("host", host=("h",)), route("api", "/api")], "/api", HTTP_HOST="h") == "api"


# One reading of a path: every server that may stand behind, and the route that its own reading belongs to

MODELS: dict[str, Callable[[str], str]] = {
    "WSGI, ASGI, nginx": lambda path: unquote(path, "latin-1"),
    "the same, with slashes merged": lambda path: merge(unquote(path, "latin-1")),
    "IIS": lambda path: merge(unquote(path, "latin-1").replace("\\", "/")),
    "Tomcat, Jetty, Spring": lambda path: merge(unquote(re.sub(";[^/]*", "", path), "latin-1")),
    "Tomcat with slashes left": lambda path: merge(re.sub(";[^/]*", "", path)),
    "Tomcat with backslashes": lambda path: merge(unquote(re.sub(";[^/]*", "", path), "latin-1").replace("\\", "/")),
    "Spring, parameters cut after decoding": lambda path: merge(re.sub(";[^/]*", "", unquote(path, "latin-1"))),
    "Shiro": lambda path: merge(unquote(path, "latin-1").partition(";")[0]),
    "Apache, rewriting": lambda path: merge(re.split("[?#]", unquote(path, "latin-1"))[0]),
    "decoded by two": lambda path: resolve(unquote(unquote(path, "latin-1"), "latin-1")),
    "decoded by two on Windows": lambda path: resolve(unquote(unquote(path, "latin-1"), "latin-1").replace("\\", "/")),
    "decoded by Apache and by Tomcat": lambda path: resolve(unquote(re.sub(";[^/]*", "", unquote(path, "latin-1")), "latin-1")),
    "JavaScript's new URL": lambda path: unquote(urlsplit(path).path, "latin-1"),
    "old Java": lambda path: merge(unquote(re.sub("%c0%af", "/", path, flags=re.IGNORECASE), "latin-1")),
}


def merge(path: str) -> str:
    return re.sub("//+", "/", path)


def resolve(path: str) -> str:
    return normpath(merge(path))


def guarded(*, strip_prefix: bool = False) -> tuple[RouteTable, WSGIApplication]:
    """Routes of which some lie within others, and the middleware that chooses among them."""
    prefixes = ("/", "/admin", "/public", "/public/admin", "/@a")
    routes = [{"path_prefix": prefix, "backend": "orders", "strip_prefix": strip_prefix} for prefix in prefixes]
    gateway = make_gateway({"routes": routes}, {"orders": respond_with(b"")})
    return RouteTable(gateway.routes), routing.rgate_middlewares(gateway).wrap(respond_with(b""), None)


def routed(app: WSGIApplication, path: str) -> tuple[Route, Target] | None:
    """The route and the target of a request; None if it is refused."""
    exchange = Exchange()
    environ = make_environ("/", exchange)
    try:
        environ["rgate.target"] = parse_target("GET", path)
        app(environ, lambda *_: lambda _: None)
    except (ValueError, AmbiguousPath):
        return None
    assert exchange.route is not None
    return exchange.route, environ["rgate.target"]


_signs = [
    "/",
    "//",
    "///",
    "%2F",
    "%2f",
    "%5C",
    "%252F",
    "%255c",
    ";",
    ";v=1",
    "%3B",
    "%3f",
    "%23",
    "%25",
    "%c0%af",
    "%252e%252e",
]
_paths = st.lists(st.sampled_from([*_signs, "admin", "public", "a", "%61", "%40"]), max_size=8).map(
    lambda some: "/" + "".join(some)
)


@pytest.mark.parametrize("strip_prefix", [False, True], ids=["kept", "stripped"])
@given(data=st.data())
@settings(max_examples=400)
def test_route_of_a_request_that_goes_on_is_that_of_every_reading(strip_prefix: bool, data: st.DataObject) -> None:
    table, app = _GUARDED[strip_prefix]
    sent = routed(app, data.draw(_paths))
    if sent is None:
        return
    route, target = sent
    prefix = route.path_prefix if strip_prefix else ""
    raw = _without_prefix(prefix, target) if prefix else target.raw
    for server, model in MODELS.items():
        reading = prefix + model(raw)
        assert table.find(reading, {"REQUEST_METHOD": "GET"}) is route, f"{server} reads {raw!r} as {reading!r}"


_GUARDED = {strip_prefix: guarded(strip_prefix=strip_prefix) for strip_prefix in (False, True)}

OTHER_ROUTES = {
    "CVE-2025-66490 Traefik: encoded slash": "/admin%2Fusers",
    "encoded slash in small letters": "/admin%2fusers",
    "encoded slash in front": "/%2Fadmin/users",
    "encoded slash behind a run of them": "//admin%2Fusers",
    "slash encoded twice": "/admin%252Fusers",
    "CVE-2025-66490 Traefik: encoded backslash": "/admin%5Cusers",
    "overlong slash": "/admin%c0%afusers",
    "parameters (Tomcat, Jetty, Spring)": "/admin;/users",
    "parameters of a session": "/admin;jsessionid=1",
    "parameters in front": "/;a/admin",
    "parameters as long as a head": "/;" + "a" * 8_000 + "/admin",
    "CVE-2025-66490 Traefik: encoded semicolon": "/admin%3B/users",
    "CVE-2020-13933 Shiro: everything behind a semicolon": "/admin%3Busers",
    "CVE-2025-66490 Traefik: encoded question mark": "/admin%3Fusers",
    "CVE-2025-66490 Traefik: encoded number sign": "/admin%23users",
    "another sign in its escape": "/%40a/users",
    "dots encoded twice": "/public/%252e%252e/admin",
    "dots encoded twice far behind": "/public/" + "a/" * 4_000 + "%252e%252e/" * 4_000 + "admin",
}


@pytest.mark.parametrize("path", OTHER_ROUTES.values(), ids=OTHER_ROUTES)
@pytest.mark.parametrize("strip_prefix", [False, True], ids=["kept", "stripped"])
def test_path_of_which_a_reading_leads_to_another_route_is_refused(strip_prefix: bool, path: str) -> None:
    assert routed(_GUARDED[strip_prefix][1], path) is None


SAME_ROUTE = {
    "npm's scope": "/@scope%2Fname",
    "GitLab's project": "/api/v4/projects/group%2Fproject/repository/files/src%2Fa%2Eb/raw?ref=main",
    "object key": "/bucket/a%2Fb;c//d%3Fe%23f%25g%5Ch",
    "object key that begins with a slash": "//key/with//slashes",
    "URL in the path": "/fetch/https%3A%2F%2Fa.example%2Fb%3Fc%3Dd%2526e",
    "matrix parameters": "/cars;color=red/wheels;size=17",
    "session of Java": "/shop/cart;jsessionid=0123456789ABCDEF0123456789ABCDEF.node1",
    "inside of the protected route": "/admin/a%2Fb;c/d//e",
    "EUC-JP": "/%CA%BF%C0%AE/%C0%AF%BC%A3.txt",
}


@pytest.mark.parametrize("path", SAME_ROUTE.values(), ids=SAME_ROUTE)
def test_path_of_which_every_reading_leads_to_one_route_passes_byte_for_byte(path: str) -> None:
    sent = routed(_GUARDED[False][1], path)
    assert sent is not None
    assert sent[1].raw == path


@pytest.mark.parametrize(
    ("path", "name", "raw"),
    [
        ("//admin/users", "/admin", "/admin/users"),
        ("//a/admin?q=//", "/", "/a/admin?q=//"),
        ("//a%2Fadmin", "/", "/a%2Fadmin"),
        ("//a/admin%2Fusers", "/", "/a/admin%2Fusers"),
        ("/public//x/y;v", "/public", "/public//x/y;v"),
        ("/public//admin", "/public/admin", "/public/admin"),
        ("/public//a/admin", "/public", "/public/a/admin"),
    ],
)
def test_path_of_which_only_the_slashes_are_to_blame_goes_on_with_them_merged(path: str, name: str, raw: str) -> None:
    sent = routed(_GUARDED[False][1], path)
    assert sent is not None
    assert (sent[0].name, sent[1].raw) == (name, raw)


def test_path_that_is_merged_is_so_in_the_environ_too() -> None:
    exchange = Exchange()
    environ = make_environ("//admin/a%20b?c", exchange)
    environ |= {"SCRIPT_NAME": "/", "PATH_INFO": "/admin/a b", "rgate.target": parse_target("GET", "//admin/a%20b?c")}
    _GUARDED[False][1](environ, lambda *_: lambda _: None)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["QUERY_STRING"]) == ("", "/admin/a b", "c")
    assert environ["RAW_URI"] == environ["REQUEST_URI"] == environ["rgate.target"].raw == "/admin/a%20b?c"


@pytest.mark.parametrize(
    "narrower",
    [{"methods": ("GET",)}, {"host": ("a.example",)}, {"headers": {"X-Beta": "1"}}, {"max_body_bytes": 1}],
    ids=["methods", "host", "headers", "max_body_bytes"],
)
def test_path_of_which_a_reading_leads_to_a_route_that_asks_for_more_is_refused_when_that_has_what_it_asks(narrower: Any) -> None:
    table = RouteTable([route("root"), route("upload", "/upload", **narrower)])
    target = parse_target("GET", "/upload%2Fx")
    environ = {"REQUEST_METHOD": "GET", "HTTP_HOST": "a.example", "HTTP_X_BETA": "1"}
    found = table.find(target.normalized_path, environ)
    assert found is not None
    assert found.name == "root"
    assert not table.is_only_route(found, target, environ)
    if "max_body_bytes" not in narrower:
        other = {"REQUEST_METHOD": "POST", "HTTP_HOST": "b.example"}
        assert table.is_only_route(found, target, other), "/upload/x would go to the same route"


def test_path_prefix_with_ambiguous_signs_is_read_as_it_is_written() -> None:
    table = RouteTable([route("root"), route("a", "/a"), route("project", "/a/g%2Fp"), route("files", "/a/g%2Fp/files")])
    environ = {"REQUEST_METHOD": "GET"}
    for path, name, alone in (
        ("/a/g%2Fp", "project", True),
        ("/a/g%2fp/x%2Fy", "project", True),
        ("/a/g%2Fp%2Ffiles", "a", True),  # who decodes the one decodes the other, and such a prefix is not for him
        ("/a/g%2Fp/files%2Fz", "project", False),
        ("/a/g%2Fq", "a", True),
        ("/a%2Fg%2Fp", "root", False),
    ):
        target = parse_target("GET", path)
        found = table.find(target.normalized_path, environ)
        assert found is not None
        assert found.name == name
        assert table.is_only_route(found, target, environ) is alone, path


def test_path_without_a_route_in_its_own_reading_has_none() -> None:
    with running_gateway({}, {"orders": respond_with(b"orders")}) as gateway:
        assert_error(client(gateway).get("/orders%2F1"), 404, "no_route")


def test_path_of_which_a_reading_has_no_route_is_refused() -> None:
    with running_gateway({}, {"orders": respond_with(b"orders")}) as gateway:
        assert client(gateway).get("/orders/a%2Fb;c").data == b"orders"
        assert_error(client(gateway).get("/orders/%252e%252e/secret"), 400, "ambiguous_path")


_segments = st.lists(st.sampled_from(["a", "b", "ab"]), max_size=4).map(lambda s: "".join(f"/{one}" for one in s))


@given(st.sets(_segments, max_size=6), _segments)
def test_route_is_the_one_that_a_plain_search_finds(prefixes: set[str], path: str) -> None:
    matching = [prefix for prefix in prefixes if path == prefix or path.startswith(prefix + "/")]
    expected = (max(matching, key=len) or "/") if matching else None
    assert find([route(prefix or "/", prefix or "/") for prefix in sorted(prefixes)], path or "/") == expected


SPELLINGS = ["/api/orders", "//api/orders", "/api//orders", "/%61pi/orders", "/api/%6Frders", "//%61%70i///orders/x"]


@pytest.mark.parametrize("target", SPELLINGS)
def test_route_is_found_in_every_spelling_of_its_path(target: str) -> None:
    assert find(PREFIXES, parse_target("GET", target).normalized_path) == "orders"


# The middleware


def test_middleware_sets_the_route() -> None:
    gateway = make_gateway({}, {"orders": respond_with(b"")})
    app = routing.rgate_middlewares(gateway).wrap(respond_with(b"inside"), None)
    exchange = make_exchange()
    exchange.route = None
    environ = make_environ("/orders/1", exchange)
    environ["rgate.target"] = parse_target("GET", "/orders/1")
    assert app(environ, lambda *_: lambda _: None) == [b"inside"]
    assert exchange.route is gateway.routes[0]


def test_middleware_leaves_the_route_of_an_earlier_router() -> None:
    gateway = make_gateway({}, {"orders": respond_with(b"")})
    app = routing.rgate_middlewares(gateway).wrap(respond_with(b"inside"), None)
    exchange = make_exchange()
    before = exchange.route
    app(make_environ("/elsewhere", exchange), lambda *_: lambda _: None)
    assert exchange.route is before


def test_middleware_without_a_route_raises_the_default_response() -> None:
    gateway = make_gateway({"default_response": {"body": "nothing here", "status_code": 403, "content_type": "text/plain"}})
    app = routing.rgate_middlewares(gateway).wrap(respond_with(b"never"), None)
    exchange = Exchange()
    environ = make_environ("/", exchange)
    environ["rgate.target"] = parse_target("GET", "/")
    with pytest.raises(NoRoute) as caught:
        app(environ, lambda *_: lambda _: None)
    assert (caught.value.message, caught.value.status, caught.value.content_type) == ("nothing here", 403, "text/plain")


def test_gateway_routes_by_what_it_forwards() -> None:
    with running_gateway({}, {"orders": respond_with(b"orders"), "payment": respond_with(b"payment")}) as gateway:
        assert client(gateway).get("/orders/1").data == b"orders"
        assert client(gateway).get("/payment?x").data == b"payment"
        assert_error(client(gateway).get("/ordersx"), 404, "no_route")


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

            return Middleware("router", wrap, before="routing", modifies_request=False)

    backends = {"orders": respond_with(b"orders"), "payment": respond_with(b"payment")}
    with running_gateway({}, backends, {"router": Router()}) as gateway:
        assert client(gateway).get("/orders").data == b"payment"
