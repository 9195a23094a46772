"""`/-/drain`: no new requests for an endpoint, by name, id or address."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from werkzeug.test import Client

from rgate import Gateway
from rgate.plugins.admin.drain import Drain
from rgate.testing import assert_error, client, respond_with, running_gateway

from ...support.waiting import passed

HERE = {"plugins": {"admin": {"allow": ["127.0.0.1"]}}}


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with running_gateway(HERE, {"orders": [respond_with(b"1"), respond_with(b"2")], "other": respond_with(b"other")}) as running:
        yield running


@pytest.fixture
def local(gateway: Gateway) -> Client:
    return client(gateway)


def answers(local: Client) -> set[bytes]:
    return {local.get("/orders").data for _ in range(20)}


@pytest.mark.parametrize("named", ["orders-1", "http://in-process.invalid:1", "in-process.invalid:1"])
def test_drained_endpoint_gets_no_new_requests_until_it_is_undone(local: Client, named: str) -> None:
    assert answers(local) == {b"1", b"2"}
    response = local.post("/-/drain", query_string={"endpoint": named})
    assert response.status_code == 200, response.data
    said: Any = response.json
    assert {"orders-1"} <= {endpoint["name"] for endpoint in said["endpoints"]}
    assert answers(local) == {b"2"}
    shown: Any = local.get("/-/backends").json
    (first, second) = shown["backends"][0]["endpoints"]
    assert (first["in_use"], first["excluded"]) == (False, {"drain": "drained by an operator"})
    assert (second["in_use"], second["excluded"]) == (True, {})
    local.post("/-/drain", query_string={"endpoint": named, "undo": ""})
    assert answers(local) == {b"1", b"2"}


def test_running_request_of_a_drained_endpoint_goes_on() -> None:
    began, go = threading.Event(), threading.Event()

    def slow(environ: object, start_response: Any) -> Iterable[bytes]:
        began.set()
        passed(go)
        start_response("200 OK", [("Content-Length", "4")])
        return [b"done"]

    with running_gateway(HERE, {"orders": slow}) as gateway:
        got: list[bytes] = []
        running = threading.Thread(target=lambda: got.append(client(gateway).get("/orders").data))
        running.start()
        passed(began)
        client(gateway).post("/-/drain?endpoint=orders-1")
        assert_error(client(gateway).get("/orders"), 503, "no_endpoint")
        go.set()
        running.join(10)
        assert got == [b"done"]


def test_what_is_drained_is_listed(local: Client) -> None:
    assert local.get("/-/drain").json == {"drained": []}
    local.post("/-/drain?endpoint=orders-2")
    shown: Any = local.get("/-/drain").json
    assert [endpoint["name"] for endpoint in shown["drained"]] == ["orders-2"]


def test_draining_twice_or_undoing_nothing_changes_nothing(local: Client) -> None:
    counts = []
    for query in ("endpoint=other-1", "endpoint=other-1", "endpoint=other-1&undo", "endpoint=other-1&undo"):
        said: Any = local.post(f"/-/drain?{query}").json
        counts.append(said["changed"])
    assert counts == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("query", "says"), [("endpoint=ordres-1", "'ordres-1'; there are orders-1, orders-2, other-1"), ("", "''")]
)
def test_endpoint_that_is_not_there_is_told_with_those_that_are(local: Client, query: str, says: str) -> None:
    fault = assert_error(local.post(f"/-/drain?{query}"), 404, "unknown_endpoint")
    assert says in fault["body"]


def test_beginning_of_an_id_is_enough_when_it_is_the_only_one(gateway: Gateway, local: Client) -> None:
    said: Any = local.post("/-/drain?endpoint=othe").json
    assert [endpoint["name"] for endpoint in said["endpoints"]] == ["other-1"]
    assert "give more of it" in assert_error(local.post("/-/drain?endpoint=orders"), 404, "unknown_endpoint")["body"]
    assert_error(local.post("/-/drain?endpoint=oth"), 404, "unknown_endpoint")


def test_web_page_cannot_drain(local: Client) -> None:
    """A browser on the operator's machine comes from loopback, too."""
    response = local.post("/-/drain?endpoint=orders-1", headers={"Origin": "http://evil.example"})
    assert_error(response, 404, "no_route")
    assert answers(local) == {b"1", b"2"}


def test_drain_from_elsewhere_is_nothing(gateway: Gateway) -> None:
    response = client(gateway).post("/-/drain?endpoint=orders-1", environ_base={"REMOTE_ADDR": "192.0.2.7"})
    assert_error(response, 404, "no_route")


class Worker:
    """A worker process, as the other worker processes see it."""

    def __init__(self, gateway: Gateway, others: list[Worker]) -> None:
        self.gateway = gateway
        self.actions: dict[str, Any] = {}
        self.others = others
        self.asked = threading.Event()
        object.__setattr__(gateway, "workers", self)  # a gateway is frozen
        self.drain = Drain(gateway)

    def on_command(self, topic: str, action: Any) -> None:
        self.actions[topic] = action

    def on_connect(self, action: Any) -> None:
        self.connected = action

    def broadcast(self, topic: str, argument: str = "") -> bool:
        for other in self.others:
            other.actions[topic](argument)
        self.asked.set()
        return True


def test_every_worker_drains_what_one_is_told_to(gateway: Gateway) -> None:
    with running_gateway({}, {"orders": [respond_with(b"1"), respond_with(b"2")]}) as second:
        other = Worker(second, [])
        Worker(gateway, [other]).drain.post({"QUERY_STRING": "endpoint=orders-1"})
        assert [endpoint.name for endpoint in second.table.snapshot.endpoints["orders"]] == ["orders-2"]


def test_worker_that_follows_one_that_died_learns_what_is_drained(gateway: Gateway) -> None:
    with running_gateway({}, {"orders": [respond_with(b"1"), respond_with(b"2")]}) as second:
        fresh = Worker(second, [])
        old = Worker(gateway, [])
        old.drain.post({"QUERY_STRING": "endpoint=orders-1"})
        fresh.others, old.others = [old], [fresh]
        old.asked.clear()
        fresh.connected()
        passed(old.asked, "the old worker tells the new one")
        assert [endpoint.name for endpoint in second.table.snapshot.endpoints["orders"]] == ["orders-2"]


def test_drain_told_before_the_endpoint_is_found_holds_when_it_is(gateway: Gateway) -> None:
    (first, _) = gateway.table.snapshot.found["orders"]
    with running_gateway({}, {"orders": [respond_with(b"1"), respond_with(b"2")]}) as second:
        worker = Worker(second, [])
        message = {"id": first.id, "name": first.name, "undo": False, "scheme": "http", "host": "in-process.invalid"}
        worker.actions["admin.drain"](json.dumps({**message, "port": 1, "base_path": ""}))
        second.table.refresh()
        assert [endpoint.name for endpoint in second.table.snapshot.endpoints["orders"]] == ["orders-2"]
