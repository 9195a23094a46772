"""admin: the pages under /-/, and the clients that get them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from time import monotonic
from typing import Any

import pytest
from werkzeug.test import Client, TestResponse

from rgate import ConfigError, Gateway, Instance
from rgate.discovery import NearMiss
from rgate.plugins.admin import PAGES
from rgate.testing import assert_error, client, make_gateway, respond_with, running_gateway

ALL = ("/-/live", "/-/ready", *PAGES)
HERE = {"plugins": {"admin": {"allow": ["127.0.0.1"]}}}
ROUTE_THERE = {"routes": [{"path_prefix": "/-", "backend": "orders"}]}


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with running_gateway(HERE, {"orders": [respond_with(b"a"), respond_with(b"b")], "empty": ()}) as running:
        yield running


@pytest.fixture
def local(gateway: Gateway) -> Client:
    return client(gateway)


def asked(gateway: Gateway, path: str, address: str, **headers: str) -> TestResponse:
    return client(gateway).get(path, environ_base={"REMOTE_ADDR": address}, headers=headers)


@pytest.mark.parametrize("path", ALL)
def test_page_asked_for_locally_is_json_that_is_not_to_be_kept(local: Client, path: str) -> None:
    response = local.get(path)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.json["process"] == os.getpid()
    assert response.data.startswith(b'{\n  "') and response.data.endswith(b"}\n"), "not made for reading with curl"


@pytest.mark.parametrize("path", ALL)
def test_page_asked_for_by_head_has_no_body(local: Client, path: str) -> None:
    response = local.head(path)
    assert (response.status_code, response.data) == (200, b"")
    assert response.content_length


@pytest.mark.parametrize("path", ALL)
def test_page_asked_for_by_another_method_says_which_are_allowed(local: Client, path: str) -> None:
    response = local.delete(path)
    assert_error(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", PAGES)
def test_page_asked_for_from_elsewhere_is_nothing(gateway: Gateway, path: str) -> None:
    """Exactly as for a path that does not exist."""
    there, nowhere = asked(gateway, path, "192.0.2.7"), asked(gateway, "/nowhere", "192.0.2.7")
    assert_error(there, 404, "no_route")
    assert set(there.headers.keys()) == set(nowhere.headers.keys())


@pytest.mark.parametrize("path", [*PAGES, "/-/drain", "/-/reload", "/-/", "/-/live/", "/%2d/ready"])
@pytest.mark.parametrize("address", ["192.0.2.7", "127.0.0.1"])
def test_page_is_the_routes_for_every_client_that_allow_does_not_name(path: str, address: str) -> None:
    """By default no client on the gateway's port; an allowed client has to spell the path as it is."""
    with running_gateway(ROUTE_THERE, {"orders": respond_with(b"the backend's")}) as gateway:
        assert asked(gateway, path, address).data == b"the backend's"


@pytest.mark.parametrize("path", ["/-/live", "/-/ready"])
def test_probes_are_the_only_paths_that_no_route_can_have(path: str) -> None:
    with running_gateway(ROUTE_THERE, {"orders": respond_with(b"the backend's")}) as gateway:
        assert asked(gateway, path, "192.0.2.7").json == {path.rpartition("/")[2]: True}
    with running_gateway(
        {**ROUTE_THERE, "plugins": {"admin": {"probes": "allowed"}}}, {"orders": respond_with(b"its")}
    ) as gateway:
        assert asked(gateway, path, "127.0.0.1").data == b"its"


@pytest.mark.parametrize("spelling", ["/-%2Fconfig", "/%2d/config"])
def test_page_is_answered_at_its_own_spelling_only(gateway: Gateway, spelling: str) -> None:
    assert_error(asked(gateway, spelling, "127.0.0.1"), 404, "no_route")


@pytest.mark.parametrize(
    "headers",
    [{"X-Forwarded-For": "127.0.0.1"}, {"Forwarded": "for=127.0.0.1"}, {"X-Real-Ip": "::1"}, {"Via": "1.1 nginx"}],
    ids=lambda headers: next(iter(headers)),
)
def test_page_asked_for_through_a_proxy_on_this_machine_is_nothing(gateway: Gateway, headers: dict[str, str]) -> None:
    assert_error(asked(gateway, "/-/config", "127.0.0.1", **headers), 404, "no_route")


def test_page_asked_for_by_an_allowed_network_is_answered() -> None:
    gateway = make_gateway({"plugins": {"admin": {"allow": ["10.1.0.0/16"]}}})
    assert asked(gateway, "/-/routes", "10.1.2.3").status_code == 200
    assert_error(asked(gateway, "/-/routes", "127.0.0.1"), 404, "no_route")


def test_probes_that_are_public_are_answered_without_reasons_to_others() -> None:
    gateway = make_gateway(HERE)
    gateway.readiness.not_ready_reasons["stopping"] = "SIGTERM 3 s ago"
    assert asked(gateway, "/-/live", "192.0.2.7").json == {"live": True}
    ready = asked(gateway, "/-/ready", "192.0.2.7")
    assert (ready.status_code, ready.json) == (503, {"ready": False})
    assert asked(gateway, "/-/ready", "127.0.0.1").json["reasons"]["stopping"] == "SIGTERM 3 s ago"
    assert_error(asked(gateway, "/-/backends", "192.0.2.7"), 404, "no_route")


def test_allow_that_is_no_network_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"plugins\.admin\.allow.*write a network like 10\.0\.0\.0/8"):
        make_gateway({"plugins": {"admin": {"allow": ["localhost"]}}})


def test_ready_before_discovery_has_listed_says_what_is_missing() -> None:
    gateway = make_gateway(HERE, {"orders": respond_with()})
    response = client(gateway).get("/-/ready")
    assert (response.status_code, response.json["ready"]) == (503, False)
    assert response.json["reasons"] == {"testing": "no list yet: listing"}
    assert client(gateway).get("/-/live").status_code == 200


def test_ready_with_a_condition_says_every_reason_and_notice(gateway: Gateway, local: Client) -> None:
    assert local.get("/-/ready").json == {"ready": True, "process": os.getpid(), "reasons": {}, "warnings": {}}
    gateway.readiness.warnings["config"] = "config.yml:12: refused, so the previous one stays active"
    assert local.get("/-/ready").json["warnings"] == gateway.readiness.warnings
    gateway.readiness.not_ready_reasons["stopping"] = "SIGTERM"
    response = local.get("/-/ready")
    assert (response.status_code, response.json["reasons"]) == (503, {"stopping": "SIGTERM"})


def replaced(gateway: Gateway, **state: Any) -> None:
    """Put the only source of a gateway into another state."""
    snapshot = gateway.table.snapshot
    sources = {name: replace(source, **state) for name, source in snapshot.sources.items()}
    gateway.table.snapshot = replace(snapshot, sources=sources)


def test_source_that_fails_is_a_notice_until_its_list_is_too_old(gateway: Gateway, local: Client) -> None:
    replaced(gateway, listed_at=monotonic() - 200, error="the engine is gone")
    response = local.get("/-/ready")
    assert response.status_code == 200
    assert response.json["warnings"]["testing"] == "the engine is gone (keeping the list of 200 s ago, trying again)"
    replaced(gateway, listed_at=monotonic() - 301)
    response = local.get("/-/ready")
    assert response.status_code == 503
    assert response.json["reasons"] == {"testing": "the last list is 301 s old: the engine is gone"}


def test_source_without_a_limit_of_age_is_never_too_old() -> None:
    with running_gateway({"plugins": {"admin": {"stale_seconds": None}}}, {"orders": respond_with()}) as gateway:
        replaced(gateway, listed_at=monotonic() - 100_000)
        assert client(gateway).get("/-/ready").status_code == 200


def test_routes_shows_the_chain_of_each(local: Client) -> None:
    (orders, empty) = local.get("/-/routes").json["routes"]
    assert (orders["name"], orders["path_prefix"], orders["backend"]) == ("/orders", "/orders", "orders")
    assert {"routing", "selection"} < set(orders["chain"]) and orders["chain"][-1] == "forwarder"
    assert empty["timeouts"] == {"connect_seconds": 4.0, "read_seconds": 30.0}


def test_backends_shows_endpoints_and_sources(gateway: Gateway, local: Client) -> None:
    gateway.table.snapshot.endpoints["orders"][1].state.active_exchanges.add(object())  # type: ignore[arg-type]
    shown = local.get("/-/backends").json
    (orders, empty) = shown["backends"]
    assert [(endpoint["name"], endpoint["in_flight"]) for endpoint in orders["endpoints"]] == [("orders-1", 0), ("orders-2", 1)]
    assert empty["endpoints"] == []
    (source,) = shown["sources"]
    assert (source["name"], source["instances"], source["error"]) == ("testing", 2, None)
    assert source["age_seconds"] >= 0


def test_backends_shows_notes_and_the_nearest_of_those_that_nearly_match(gateway: Gateway, local: Client) -> None:
    table = gateway.table
    noted = Instance(table.snapshot.found["orders"][0].id, "orders-1", notes=("unknown label rgate.prot",))
    unusable = Instance("u", "web_9", reason="paused", notes=("unknown label rgate.x",))
    near = [NearMiss(Instance(str(n), f"web_{n}"), "app_name=orders, but no env=production") for n in range(13)]
    table.snapshot = replace(
        table.snapshot,
        noted={noted.id: noted, unusable.id: unusable},
        unusable={**table.snapshot.unusable, "orders": (unusable,)},
        near_misses={"orders": tuple(near)},
    )
    (orders, empty) = local.get("/-/backends").json["backends"]
    assert [endpoint["notes"] for endpoint in orders["endpoints"]] == [["unknown label rgate.prot"], []]
    assert orders["unusable"] == [{"name": "web_9", "id": "u", "reason": "paused", "notes": ["unknown label rgate.x"]}]
    assert (len(orders["near_misses"]), orders["near_misses_not_shown"]) == (10, 3)
    assert orders["near_misses"][0] == {"name": "web_0", "id": "0", "reason": "has app_name=orders, but no env=production"}
    assert (empty["near_misses"], empty["near_misses_not_shown"]) == ([], 0)


def test_plugins_shows_versions_hooks_and_places(local: Client) -> None:
    shown: dict[str, Any] = {plugin["name"]: plugin for plugin in local.get("/-/plugins").json["plugins"]}
    assert shown["admin"]["distribution"] == "rgate" and shown["admin"]["version"]
    assert "rgate_local_routes" in shown["admin"]["hooks"]
    places = shown["selection"]["places"]
    chain = local.get("/-/routes").json["routes"][0]["chain"]
    assert chain[places["/orders"] - 1] == "selection"


def test_config_is_shown_without_secrets() -> None:
    config = {
        "server": {"port": "${PORT}"},
        "default_response": {"body": "${GREETING:-hello}"},
        "routes": [{"path_prefix": "/", "backend": "orders", "headers": {"Authorization": "Bearer c2VjcmV0"}}],
        "backends": [{"name": "orders", "match_labels": ["a=b"], "tls": {"verify": False}}],
        "plugins": {"disable": ["websocket"], **HERE["plugins"]},
    }
    gateway = make_gateway(config, environ={"PORT": "8123"})
    response = client(gateway).get("/-/config")
    shown = response.json["config"]
    assert b"c2VjcmV0" not in response.data and b"8123" not in response.data
    assert shown["backends"][0]["tls"]["verify"] is False
    assert shown["routes"][0]["headers"] == {"Authorization": "***"}
    assert shown["default_response"]["body"] == "${GREETING:-hello}"
    assert shown["server"]["port"] == "${PORT}"
    assert shown["server"]["threads"] == 8, "defaults are active too"
    assert shown["plugins"]["disable"] == ["websocket"]
    assert "disabled" not in shown
