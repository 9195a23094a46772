"""The client's identity as backends and plugins see it, and the peers that may state it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from rgate import Middleware, hookimpl
from rgate.http1.environ import FIELDS_KEY, edited_fields, from_foreign_environ
from rgate.testing import ScriptedBackend, http_response, make_environ

from ..support.forwarding import forwarding
from ..support.raw_client import RawClient
from ..support.tls_client import SecureClient
from ..tls.test_client_certificates import ALICE, asking

SAID = [
    "X-Forwarded-For: 6.6.6.6, 203.0.113.5",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: shop.example",
    "X-Forwarded-Port: 8443",
    "X-Forwarded-Prefix: /shop",
    "X-Forwarded-User: me",
    "X-Real-IP: 203.0.113.5",
    "Forwarded: for=203.0.113.5;proto=https",
]
WAY = ("x-forwarded", "forwarded", "x-real-ip")


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    with ScriptedBackend(http_response(b"ok")) as running:
        yield running


def way(backend: ScriptedBackend) -> dict[str, list[str]]:
    """The forwarding headers that the backend received, by lower-case name."""
    request = backend.requests[-1]
    names = {name.lower() for name, _ in request.headers if name.lower().startswith(WAY)}
    return {name: request.values(name) for name in names}


def test_peer_that_is_not_trusted_is_not_believed(backend: ScriptedBackend) -> None:
    with forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get("/", *SAID).status == 200
    assert way(backend) == {
        "x-forwarded-for": ["6.6.6.6, 203.0.113.5, 127.0.0.1"],
        "x-forwarded-proto": ["http"],
        "x-forwarded-host": ["x"],
        "x-forwarded-port": ["80"],
    }


def test_peer_that_is_trusted_is_believed(backend: ScriptedBackend) -> None:
    with forwarding(backend, trusted_proxies=["127.0.0.0/8"]) as live, RawClient(live.url) as client:
        assert client.get("/", *SAID).status == 200
    assert way(backend) == {
        "x-forwarded-for": ["6.6.6.6, 203.0.113.5, 127.0.0.1"],
        "x-forwarded-proto": ["https"],
        "x-forwarded-host": ["shop.example"],
        "x-forwarded-port": ["8443"],
        "x-forwarded-prefix": ["/shop"],
        "x-forwarded-user": ["me"],
        "x-real-ip": ["203.0.113.5"],
        "forwarded": ["for=203.0.113.5;proto=https, for=127.0.0.1"],
    }


def test_peer_that_is_trusted_and_says_little_leaves_the_rest_to_the_gateway(backend: ScriptedBackend) -> None:
    with forwarding(backend, trusted_proxies=["127.0.0.1"]) as live, RawClient(live.url) as client:
        assert client.get("/", "X-Forwarded-Proto: https").status == 200
        assert way(backend) == {
            "x-forwarded-for": ["127.0.0.1"],
            "x-forwarded-proto": ["https"],
            "x-forwarded-host": ["x"],
            "x-forwarded-port": ["443"],
        }
        assert client.get("/").status == 200
        assert way(backend)["x-forwarded-proto"] == ["http"], "what one request said must not stick to the next"


def test_peer_elsewhere_than_the_trusted_networks_is_not_believed(backend: ScriptedBackend) -> None:
    with forwarding(backend, trusted_proxies=["10.0.0.0/8"]) as live, RawClient(live.url) as client:
        assert client.get("/", *SAID).status == 200
    assert way(backend)["x-forwarded-proto"] == ["http"]
    assert "x-real-ip" not in way(backend)


def test_port_is_the_one_that_the_client_addressed(backend: ScriptedBackend) -> None:
    with forwarding(backend) as live, RawClient(live.url) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n")
        assert client.response().status == 200
    assert way(backend)["x-forwarded-port"] == ["8080"]


def test_prefix_that_the_route_takes_away_is_told(backend: ScriptedBackend) -> None:
    route = {"path_prefix": "/api", "strip_prefix": True}
    with forwarding(backend, route=route) as live, RawClient(live.url) as client:
        assert client.get("/api/x", "X-Forwarded-Prefix: /evil").status == 200
    assert way(backend)["x-forwarded-prefix"] == ["/api"]
    with forwarding(backend, route=route, trusted_proxies=["127.0.0.1"]) as live, RawClient(live.url) as client:
        assert client.get("/api/x", "X-Forwarded-Prefix: /shop/").status == 200
    assert way(backend)["x-forwarded-prefix"] == ["/shop/api"]


OTHER_CLAIMS = [
    *("X-Client-IP", "Client-IP", "True-Client-IP", "X-Cluster-Client-IP", "CF-Connecting-IP", "Fastly-Client-IP"),
    *("X-Azure-ClientIP", "X-Envoy-External-Address", "X-Original-Forwarded-For", "X-Forwarded", "X-Remote-Addr"),
    *("X-Original-URL", "X-Rewrite-URL", "X-Original-Host", "X-Script-Name", "X-Forwarded-Server", "X-Forwarded-Path"),
    *("X-Scheme", "X-Url-Scheme", "Front-End-Https"),
]


@pytest.mark.parametrize("trusted", [[], ["127.0.0.1"]], ids=["untrusted", "trusted"])
@pytest.mark.parametrize("name", OTHER_CLAIMS)
def test_claim_under_another_name_is_only_a_trusted_proxys(backend: ScriptedBackend, name: str, trusted: list[str]) -> None:
    """Symfony's CVE-2018-14773 and its kin: X-Original-URL leads a backend to another path than the gateway has routed."""
    with forwarding(backend, trusted_proxies=trusted) as live, RawClient(live.url) as client:
        assert client.get("/", f"{name}: /admin", f"Connection: {name}").status == 200
    assert backend.requests[-1].values(name) == (["/admin"] if trusted else [])


def test_header_proxy_goes_no_further(backend: ScriptedBackend) -> None:
    """CVE-2016-5385 (httpoxy): CGI makes HTTP_PROXY of it, which clients there believe."""
    with forwarding(backend, trusted_proxies=["127.0.0.1"]) as live, RawClient(live.url) as client:
        assert client.get("/", "Proxy: http://evil.example").status == 200
    assert backend.requests[-1].values("Proxy") == []


@pytest.mark.parametrize("name", ["X-Forwarded-For", "x-forwarded-host", "X-Forwarded-User", "Forwarded", "X-Real-IP"])
@pytest.mark.parametrize("trusted", [[], ["127.0.0.1"]], ids=["untrusted", "trusted"])
def test_connection_cannot_take_away_what_is_said_of_the_way(backend: ScriptedBackend, name: str, trusted: list[str]) -> None:
    with forwarding(backend, trusted_proxies=trusted) as live, RawClient(live.url) as client:
        client.get("/", *SAID)
        before = way(backend)
        client.get("/", f"Connection: {name}", *SAID)
    assert way(backend) == before


class Seeing:
    """A plugin that keeps what it sees of the client, and may say something of it itself."""

    def __init__(self, edit: Callable[[dict[str, Any]], object] = lambda environ: None) -> None:
        self.seen: list[dict[str, Any]] = []
        self.edit = edit

    @hookimpl
    def rgate_middlewares(self) -> Middleware:
        def wrap(app: Any, options: object) -> Any:
            def seeing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
                self.seen.append(dict(environ))
                self.edit(environ)
                answer: Iterable[bytes] = app(environ, start_response)
                return answer

            return seeing

        return Middleware("seeing", wrap)


def test_plugin_sees_the_client_in_remote_addr(backend: ScriptedBackend) -> None:
    plugin = Seeing()
    with (
        forwarding(backend, plugins={"seeing": plugin}, trusted_proxies=["127.0.0.1"]) as live,
        RawClient(live.url) as client,
    ):
        client.get("/", *SAID)
        client.get("/")
    first, second = plugin.seen
    assert (first["REMOTE_ADDR"], first["rgate.peer"], first["wsgi.url_scheme"]) == ("203.0.113.5", "127.0.0.1", "https")
    assert (second["REMOTE_ADDR"], second["wsgi.url_scheme"]) == ("127.0.0.1", "http")


def test_plugin_sees_the_peer_in_remote_addr_when_nobody_is_trusted(backend: ScriptedBackend) -> None:
    plugin = Seeing()
    with forwarding(backend, plugins={"seeing": plugin}) as live, RawClient(live.url) as client:
        client.get("/", *SAID)
    (seen,) = plugin.seen
    assert (seen["REMOTE_ADDR"], seen.get("rgate.peer"), seen["wsgi.url_scheme"]) == ("127.0.0.1", None, "http")


@pytest.mark.parametrize("trusted", [[], ["127.0.0.1"]], ids=["untrusted", "trusted"])
def test_plugin_may_say_who_the_user_is_where_a_client_may_not(backend: ScriptedBackend, trusted: list[str]) -> None:
    plugin = Seeing(lambda environ: environ.update(HTTP_X_FORWARDED_USER="authenticated"))
    with forwarding(backend, plugins={"seeing": plugin}, trusted_proxies=trusted) as live, RawClient(live.url) as client:
        client.get("/", "X-Forwarded-User: forged", "X-Forwarded-Email: forged")
    told = way(backend)
    assert told["x-forwarded-user"] == ["authenticated"]
    assert told.get("x-forwarded-email") == (["forged"] if trusted else None)


def test_access_log_has_the_client(backend: ScriptedBackend, capsys: pytest.CaptureFixture[str]) -> None:
    log = {"access_log": {"format": "text"}}
    with forwarding(backend, trusted_proxies=["127.0.0.1"], options=log) as live, RawClient(live.url) as client:
        client.get("/logged", *SAID)
    assert ' 203.0.113.5 "GET /logged" ' in capsys.readouterr().out


def test_claims_under_another_wsgi_server_go_no_further() -> None:
    """The operator of that server decides which proxies are trusted. rgate cannot know, so it trusts none."""
    environ = make_environ(
        "/", headers={"X-Forwarded-User": "forged", "X-Real-IP": "6.6.6.6", "X-Forwarded-Proto": "https", "A": "1"}
    )
    from_foreign_environ(environ)
    assert environ[FIELDS_KEY].lines == b"Host: localhost\r\nA: 1\r\n"
    environ["HTTP_X_FORWARDED_EMAIL"] = "from-a-plugin"
    assert edited_fields(environ) == [b"Host: localhost\r\n", b"A: 1\r\n", b"X-Forwarded-Email: from-a-plugin\r\n"]


def test_client_with_a_certificate_may_not_say_more_than_others(backend: ScriptedBackend) -> None:
    """Not even through a chain that edits requests, where what a plugin says must be told from what the client has said."""
    plugin = Seeing(lambda environ: environ.update(HTTP_X_EDITED="1"))
    more = {"plugins": {"seeing": plugin}, **asking(True)}
    with forwarding(backend, **more) as live, SecureClient(live.url, pair=ALICE) as client:
        assert client.get("/", *SAID, "X-Forwarded-Client-Cert: Subject=CN=Root").status == 200
    told = way(backend)
    assert told.keys() == {*(f"x-forwarded-{name}" for name in ("for", "proto", "host", "port", "client-cert"))}
    assert "Root" not in told["x-forwarded-client-cert"][0]
