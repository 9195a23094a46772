"""admin: pages at an address of their own."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from rgate import AdminServer, ConfigError, Gateway, IPAllowlist, LocalRoute, LocalRoutes, PluginError, hookimpl
from rgate.config import load_text
from rgate.plugin.lifespan import Lifespan
from rgate.plugin.registry import Registry
from rgate.runtime.gateway import build
from rgate.runtime.runtime import Runtime
from rgate.testing import assert_error, client, make_gateway, respond_with, running_gateway

from ...support.raw_client import RawClient, RawResponse


def free_port(family: socket.AddressFamily = socket.AF_INET, host: str = "127.0.0.1") -> int:
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def config(**admin: Any) -> dict[str, Any]:
    return {"plugins": {"admin": {"address": f"127.0.0.1:{free_port()}", **admin}}}


def asked(gateway: Gateway, path: str, *headers: str) -> RawResponse:
    with RawClient(f"http://{gateway.options('admin').address}", host="127.0.0.1:9901") as raw:
        return raw.get(path, *headers)


def test_pages_at_an_address_of_their_own_are_nowhere_else() -> None:
    with running_gateway(config(), {"orders": respond_with(b"hello")}) as gateway:
        for path in ("/-/backends", "/-/drain", "/-/config"):
            assert asked(gateway, path).status == 200
            assert_error(client(gateway).get(path), 404, "no_route")
        nowhere = asked(gateway, "/orders")
        assert (nowhere.status, json.loads(nowhere.body)["reason"]) == (404, "no_route")
    with pytest.raises(ConnectionRefusedError):
        asked(gateway, "/-/live")


class Local:
    """A plugin with a local route."""

    @hookimpl
    def rgate_local_routes(self, gateway: Gateway) -> LocalRoutes:
        return {"/numbers": respond_with(b"42"), "/closed": LocalRoute(respond_with(b"43"), IPAllowlist(()))}


def test_other_local_routes_are_answered_at_the_address_too() -> None:
    """Also those that are not served on the port of the gateway."""
    with running_gateway(config(), {}, {"local": Local()}) as gateway:
        assert (asked(gateway, "/numbers").body, asked(gateway, "/closed").body) == (b"42", b"43")
        assert client(gateway).get("/numbers").data == b"42"


def test_address_answers_whoever_reaches_it_himself_unless_allow_says_otherwise() -> None:
    with running_gateway(config()) as gateway:
        assert asked(gateway, "/-/config").status == 200
        assert asked(gateway, "/-/config", "X-Forwarded-For: 192.0.2.7").status == 404
    with running_gateway(config(allow=["192.0.2.0/24"]), {}, {"local": Local()}) as gateway:
        assert asked(gateway, "/-/config").status == asked(gateway, "/numbers").status == 404


@pytest.mark.parametrize(
    ("host", "status"), [("127.0.0.1:9901", 200), ("localhost", 200), ("attacker.example", 404), ("192.0.2.1", 404)]
)
def test_address_answers_nobody_who_asks_for_another_host(host: str, status: int) -> None:
    """The name of a web page may resolve to this address (DNS rebinding)."""
    with running_gateway(config(), {}, {"local": Local()}) as gateway:
        for path in ("/-/config", "/-/live", "/numbers"):
            with RawClient(f"http://{gateway.options('admin').address}", host=host) as raw:
                assert raw.get(path).status == status, path


@pytest.mark.parametrize("header", ["Origin: http://127.0.0.1:9901", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"])
def test_address_answers_no_web_page(header: str) -> None:
    with running_gateway(config(), {}, {"local": Local()}) as gateway:
        assert asked(gateway, "/-/config", header).status == asked(gateway, "/numbers", header).status == 404
        assert asked(gateway, "/-/config", "Sec-Fetch-Site: none").status == 200, "a person has typed the URL"


def test_probes_stay_on_the_port_of_the_gateway_for_every_client() -> None:
    """Load balancers and container engines use them there."""
    with running_gateway(config()) as gateway:
        for path in ("/-/live", "/-/ready"):
            for address in ("127.0.0.1", "192.0.2.7"):
                answer = client(gateway).get(path, environ_base={"REMOTE_ADDR": address})
                assert (answer.status_code, answer.json) == (200, {path.rpartition("/")[2]: True})
        assert "warnings" in json.loads(asked(gateway, "/-/ready").body)
        assert_error(client(gateway).get("/-/config"), 404, "no_route")


def test_probes_for_the_allowed_are_nowhere_on_the_port_when_they_have_an_address() -> None:
    with running_gateway(config(probes="allowed")) as gateway:
        assert asked(gateway, "/-/live").status == 200
        assert_error(client(gateway).get("/-/live"), 404, "no_route")


def test_address_that_is_taken_stops_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        gateway = make_gateway({"plugins": {"admin": {"address": f"127.0.0.1:{port}"}}})
        with (
            pytest.raises(PluginError, match=rf"plugins.admin.address: cannot listen on 127.0.0.1 port {port}: Address already"),
            gateway.running(),
        ):
            pass


@pytest.mark.parametrize("address", [True, "127.0.0.1", ":9901", "127.0.0.1:99999", "http://127.0.0.1:9901", "::1:9901", "[::1]"])
def test_address_that_is_none_is_a_problem_with_the_way_out(address: object) -> None:
    with pytest.raises(ConfigError, match=r"plugins\.admin\.address.*write one like 127\.0\.0\.1:9901 or \[::1\]:9901"):
        make_gateway({"plugins": {"admin": {"address": address}}})


def test_address_may_be_one_of_ipv6() -> None:
    try:
        port = free_port(socket.AF_INET6, "::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    with running_gateway({"plugins": {"admin": {"address": f"[::1]:{port}"}}}) as gateway:
        assert asked(gateway, "/-/live").status == 200


def made_with(address: str, prefix: str, runtime: Runtime | None = None) -> Gateway:
    registry = Registry()
    text = f"""
routes: [{{path_prefix: {prefix}, backend: a}}]
backends: [{{name: a, endpoints: ["http://127.0.0.1:9"]}}]
plugins: {{disable: [stats, docker], admin: {{address: "{address}"}}}}
"""
    return build(load_text(text, registry), registry, runtime)


def prefixes(gateway: Gateway) -> list[str]:
    return [route["path_prefix"] for route in json.loads(asked(gateway, "/-/routes").body)["routes"]]


def test_address_goes_on_over_a_reload_and_shows_the_current_gateway() -> None:
    address = f"127.0.0.1:{free_port()}"
    first = made_with(address, "/one")
    with first.running(), RawClient(f"http://{address}", host="localhost") as raw:
        second = made_with(address, "/two", first.runtime)
        assert prefixes(first) == ["/one"], "the next one is not current yet"
        first.runtime.activate(second)
        assert prefixes(second) == ["/two"]
        assert raw.get("/-/live").status == 200, "the connection that was there goes on"
    with pytest.raises(ConnectionRefusedError):
        asked(second, "/-/live")


def test_address_goes_on_when_the_next_gateway_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    first = made_with(address, "/one")
    with first.running():
        second = made_with(address, "/two", first.runtime)
        lifespans = second.registry.lifespans

        def failing(gateway: Gateway) -> Iterator[Lifespan]:
            yield from lifespans(gateway)
            raise PluginError("another lifespan cannot begin")

        monkeypatch.setattr(second.registry, "lifespans", failing)
        with pytest.raises(PluginError, match="cannot begin"):
            first.runtime.activate(second)
        assert prefixes(first) == ["/one"]


def test_side_server_that_is_not_entered_has_no_url() -> None:
    assert AdminServer("x", "127.0.0.1", 0).url == ""
