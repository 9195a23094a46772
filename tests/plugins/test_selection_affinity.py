"""selection: affinity of a client to an endpoint, by hash or by a cookie."""

from __future__ import annotations

import re

import pytest
from werkzeug.test import Client, TestResponse

from rgate import ConfigError, Gateway
from rgate.plugins.selection.affinity import StickyCookie, cookie, key_of
from rgate.testing import (
    ScriptedBackend,
    client,
    closed_port_url,
    http_response,
    make_endpoint,
    make_environ,
    make_gateway,
    respond_with,
    running_gateway,
)

THREE = {"x": [respond_with(f"x-{number}".encode()) for number in (1, 2, 3)]}


def config(**backend: object) -> dict[str, object]:
    return {
        "backends": [{"name": "x", "match_labels": ["a=b"], **backend}],
        "routes": [{"path_prefix": "/", "backend": "x"}],
    }


@pytest.mark.parametrize(
    ("hash_key", "request_", "key"),
    [
        ("client", {"REMOTE_ADDR": "192.0.2.1"}, "192.0.2.1"),
        ("header:X-User", {"HTTP_X_USER": "u"}, "u"),
        ("header:content-type", {"CONTENT_TYPE": "text/plain"}, "text/plain"),
        ("header:X-User", {"REMOTE_ADDR": "192.0.2.1"}, "192.0.2.1"),
        ("cookie:session", {"HTTP_COOKIE": "a=1; session=s=2;session=3"}, "s=2"),
        ("cookie:session", {"HTTP_COOKIE": "xsession=1; session", "REMOTE_ADDR": "192.0.2.1"}, "192.0.2.1"),
        ("client", {}, ""),
    ],
)
def test_key_is_what_the_config_says_or_the_address(hash_key: str, request_: dict[str, str], key: str) -> None:
    assert key_of(hash_key)(request_) == key


@pytest.mark.parametrize("header", ["", ";;;", "a", "=b", "a=b"])
def test_cookie_that_is_not_there_is_empty(header: str) -> None:
    assert cookie({"HTTP_COOKIE": header}, "session") == ""


def test_gateway_hash_keeps_every_user_at_one_endpoint() -> None:
    with running_gateway(config(policy="hash", hash_key="header:X-User"), THREE) as gateway:
        asked = client(gateway)
        homes = {user: {asked.get("/", headers={"X-User": user}).text for _ in range(5)} for user in map(str, range(30))}
    assert all(len(home) == 1 for home in homes.values())
    assert len(set.union(*homes.values())) == 3


def sticky(gateway: Gateway) -> Client:
    return client(gateway)


def set_cookie(response: TestResponse) -> str:
    return response.headers.get("Set-Cookie", "")


class TestSticky:
    def test_client_with_the_cookie_stays_and_is_not_sent_it_again(self) -> None:
        with running_gateway(config(sticky={"cookie": "home"}), THREE) as gateway:
            asked = sticky(gateway)
            first = asked.get("/")
            assert re.fullmatch(r"home=[A-Za-z0-9_-]{16}; Path=/; HttpOnly; SameSite=Lax", set_cookie(first))
            later = [asked.get("/") for _ in range(20)]
            assert {response.text for response in later} == {first.text}
            assert not any(map(set_cookie, later))

    def test_clients_without_a_cookie_are_spread(self) -> None:
        with running_gateway(config(sticky={"cookie": "home"}, policy="round_robin"), THREE) as gateway:
            assert {client(gateway).get("/").text for _ in range(3)} == {"x-1", "x-2", "x-3"}

    def test_over_tls_the_cookie_is_secure_and_has_its_age(self) -> None:
        with running_gateway(config(sticky={"cookie": "home", "max_age_seconds": 60}), THREE) as gateway:
            response = client(gateway).get("/", base_url="https://shop.example")
        assert set_cookie(response).endswith("; Path=/; HttpOnly; SameSite=Lax; Max-Age=60; Secure")

    def test_endpoint_set_aside_loses_the_client_to_another(self) -> None:
        with running_gateway(config(sticky={"cookie": "home"}), THREE) as gateway:
            asked = sticky(gateway)
            home = asked.get("/").text
            gone = next(e for e in gateway.table.snapshot.endpoints["x"] if e.name == home)
            gateway.table.exclude(gone, "drain", "draining")
            moved = asked.get("/")
            assert moved.text != home
            assert set_cookie(moved)
            gateway.table.readmit(gone, "drain")
            assert {asked.get("/").text for _ in range(5)} == {moved.text}

    def test_endpoint_of_weight_0_keeps_its_clients_and_gets_no_others(self) -> None:
        with ScriptedBackend(http_response(b"a")) as a, ScriptedBackend(http_response(b"b")) as b:
            secret = {"cookie": "home", "secret": "0123456789abcdef"}
            urls = [{"url": a.url}, {"url": b.url}]
            with running_gateway(config(endpoints=urls, sticky=secret)) as gateway:
                at_a = next(c for c in (sticky(gateway) for _ in range(200)) if c.get("/").text == "a")
                value = at_a.get_cookie("home")
            with running_gateway(config(endpoints=[{**urls[0], "weight": 0}, urls[1]], sticky=secret)) as gateway:
                assert {client(gateway).get("/").text for _ in range(20)} == {"b"}
                kept = sticky(gateway)
                assert value is not None
                kept.set_cookie("home", value.value)
                assert {kept.get("/").text for _ in range(20)} == {"a"}

    def test_endpoint_that_fails_loses_the_client_by_a_retry(self) -> None:
        with ScriptedBackend(http_response(b"ok")) as backend, closed_port_url() as unknown:
            secret = {"cookie": "home", "secret": "0123456789abcdef"}
            dead = StickyCookie("x", "home", secret["secret"])._value(f"{unknown}")
            with running_gateway(config(endpoints=[unknown, backend.url], sticky=secret)) as gateway:
                asked = sticky(gateway)
                asked.set_cookie("home", dead)
                response = asked.get("/")
                assert (response.status_code, response.text) == (200, "ok")
                assert set_cookie(response)

    def test_value_depends_on_secret_and_backend_and_does_not_show_the_address(self) -> None:
        endpoint = make_endpoint("10.0.0.1:80")
        values = set()
        for backend, secret in (("x", "a" * 16), ("x", "b" * 16), ("y", "a" * 16), ("x", None), ("x", None)):
            jar = StickyCookie(backend, "home", secret)
            values.add(jar._value(endpoint.id))
        assert len(values) == 5
        assert StickyCookie("x", "home", "a" * 16)._value(endpoint.id) in values

    def test_unknown_value_is_replaced(self) -> None:
        jar = StickyCookie("x", "home")
        environ = make_environ(headers={"Cookie": "home=whatever"})
        assert jar.lookup(environ, [make_endpoint()]) is None


@pytest.mark.parametrize(
    ("backends", "problem"),
    [
        ([{"hash_key": "client"}], "backends[0].hash_key: has no effect with policy power_of_two_choices; set policy: hash"),
        ([{"policy": "hash", "hash_key": "header"}], "'header' is neither client, header:NAME nor cookie:NAME"),
        ([{"sticky": {"cookie": "a b"}}], "backends[0].sticky.cookie: the value is not valid"),
        ([{"sticky": {}}], "backends[0].sticky.cookie: is missing"),
        ([{"sticky": {"cookie": "c"}}, {"sticky": {"cookie": "c"}}], "backend '0' has a cookie 'c' already"),
    ],
)
def test_config_that_makes_no_sense_is_a_problem(backends: list[dict[str, object]], problem: str) -> None:
    entries = [{"name": str(number), "match_labels": ["a=b"], **backend} for number, backend in enumerate(backends)]
    with pytest.raises(ConfigError, match=re.escape(problem)):
        make_gateway({"backends": entries})
