"""admin: pages at an address of their own."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from rgate import AllowedClients, ConfigError, Gateway, LocalRoute, LocalRoutes, PluginError, SideServer, hookimpl
from rgate.config import load_text
from rgate.gateway import build
from rgate.registry import Registry
from rgate.running import Running
from rgate.testing import answering, assert_fault, client, make_gateway, running_gateway

from ...raw_client import RawClient, RawResponse


def free_port(family: socket.AddressFamily = socket.AF_INET, host: str = "127.0.0.1") -> int:
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def config(**admin: Any) -> dict[str, Any]:
    return {"plugins": {"admin": {"address": f"127.0.0.1:{free_port()}", **admin}}}


def asked(gateway: Gateway, path: str, *headers: str) -> RawResponse:
    with RawClient(f"http://{gateway.options('admin').address}") as raw:
        return raw.get(path, *headers)


def test_pages_at_an_address_of_their_own_are_nowhere_else() -> None:
    with running_gateway(config(), {"orders": answering(b"hello")}) as gateway:
        for path in ("/-/backends", "/-/drain", "/-/config"):
            assert asked(gateway, path).status == 200
            assert_fault(client(gateway).get(path), 404, "no_route")
        nowhere = asked(gateway, "/orders")
        assert (nowhere.status, json.loads(nowhere.body)["reason"]) == (404, "no_route")
    with pytest.raises(ConnectionRefusedError):
        asked(gateway, "/-/live")


class Local:
    """A plugin with a local route."""

    @hookimpl
    def rgate_local_routes(self, gateway: Gateway) -> LocalRoutes:
        return {"/numbers": answering(b"42"), "/closed": LocalRoute(answering(b"43"), AllowedClients(()))}


def test_other_local_routes_are_answered_at_the_address_too() -> None:
    """Also those that are closed on the port of the gateway: this is where they belong."""
    with running_gateway(config(), {}, {"local": Local()}) as gateway:
        assert (asked(gateway, "/numbers").body, asked(gateway, "/closed").body) == (b"42", b"43")
        assert client(gateway).get("/numbers").data == b"42"


def test_address_answers_whoever_reaches_it_unless_allow_says_otherwise() -> None:
    with running_gateway(config()) as gateway:
        assert asked(gateway, "/-/config", "X-Forwarded-For: 192.0.2.7").status == 200
    with running_gateway(config(allow=["192.0.2.0/24"]), {}, {"local": Local()}) as gateway:
        assert asked(gateway, "/-/config").status == asked(gateway, "/numbers").status == 404


def test_probes_stay_on_the_port_of_the_gateway_for_this_machine() -> None:
    """A container's health check asks there."""
    with running_gateway(config()) as gateway:
        for path in ("/-/live", "/-/ready"):
            assert asked(gateway, path).status == client(gateway).get(path).status_code == 200
            assert_fault(client(gateway).get(path, environ_base={"REMOTE_ADDR": "192.0.2.7"}), 404, "no_route")


def test_public_probes_are_for_everybody_on_the_port_of_the_gateway_only() -> None:
    with running_gateway(config(probes="public")) as gateway:
        assert client(gateway).get("/-/ready", environ_base={"REMOTE_ADDR": "192.0.2.7"}).json == {"ready": True}
        assert_fault(client(gateway).get("/-/config"), 404, "no_route")
        assert "notices" in json.loads(asked(gateway, "/-/ready").body)


def test_address_that_is_taken_stops_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        gateway = make_gateway({"plugins": {"admin": {"address": f"127.0.0.1:{port}"}}})
        with (
            pytest.raises(PluginError, match=rf"plugins.admin.address: cannot listen on 127.0.0.1 port {port}: Address already"),
            gateway.running(),
        ):
            pass


@pytest.mark.parametrize("address", ["127.0.0.1", ":9901", "127.0.0.1:99999", "http://127.0.0.1:9901", "::1:9901", "[::1]"])
def test_address_that_is_none_is_a_problem_with_the_way_out(address: str) -> None:
    with pytest.raises(ConfigError, match=r"plugins\.admin\.address.*write one like 127\.0\.0\.1:9901 or \[::1\]:9901"):
        make_gateway({"plugins": {"admin": {"address": address}}})


def test_address_may_be_one_of_ipv6() -> None:
    try:
        port = free_port(socket.AF_INET6, "::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    with running_gateway({"plugins": {"admin": {"address": f"[::1]:{port}"}}}) as gateway:
        assert asked(gateway, "/-/live").status == 200


def running_with(address: str, prefix: str, before: Gateway | None = None) -> Gateway:
    registry = Registry()
    text = f"""
routes: [{{path_prefix: {prefix}, backend: a}}]
backends: [{{name: a, endpoints: ["http://127.0.0.1:9"]}}]
plugins: {{disable: [stats, docker_labels], admin: {{address: "{address}"}}}}
"""
    return build(load_text(text, registry), registry, before)


def prefixes(gateway: Gateway) -> list[str]:
    return [route["path_prefix"] for route in json.loads(asked(gateway, "/-/routes").body)["routes"]]


def test_address_goes_on_over_a_reload_and_shows_the_gateway_in_force() -> None:
    address = f"127.0.0.1:{free_port()}"
    first = running_with(address, "/one")
    running = Running(first)
    second = running_with(address, "/two", first)
    after = Running(second, running)
    with RawClient(f"http://{address}") as raw:
        assert prefixes(first) == ["/one"], "the next one is not in force yet"
        after.take_over()
        running.end()
        assert prefixes(second) == ["/two"]
        assert raw.get("/-/live").status == 200, "the connection that was there goes on"
    after.end()
    with pytest.raises(ConnectionRefusedError):
        asked(second, "/-/live")


def test_address_goes_on_when_the_next_gateway_is_given_up() -> None:
    address = f"127.0.0.1:{free_port()}"
    first = running_with(address, "/one")
    running = Running(first)
    Running(running_with(address, "/two", first), running).end()
    assert prefixes(first) == ["/one"]
    running.end()


def test_side_server_that_is_not_entered_has_no_url() -> None:
    assert SideServer("x", "127.0.0.1", 0).url == ""
