"""stats as a plugin: in the chain, at its path, by its options, over its life."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest

from rgate import ConfigError, Gateway, build
from rgate.plugins import stats
from rgate.plugins.stats import StatsOptions
from rgate.plugins.stats.report import report
from rgate.testing import assert_error, client, make_exchange, make_gateway, respond_with, running_gateway

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

BACKENDS: dict[str, WSGIApplication | Sequence[WSGIApplication]] = {
    "orders": [respond_with(b"one"), respond_with(b"two")],
    "payment": respond_with(b"no", "500 Internal Server Error"),
    "empty": (),
}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/rgate.db"


@pytest.fixture
def running(url: str) -> Callable[..., AbstractContextManager[Gateway]]:
    def running(config: dict[str, Any] | None = None, **options: object) -> AbstractContextManager[Gateway]:
        return running_gateway({**(config or {}), "plugins": {"stats": {"database": url, **options}}}, BACKENDS)

    return running


def stats_of(gateway: Gateway, query: str = "") -> dict[str, Any]:
    answer = client(gateway).get(f"/stats{query}").json
    assert isinstance(answer, dict)
    return answer


def test_stats_without_traffic_are_zeros(running: Callable[..., AbstractContextManager[Gateway]]) -> None:
    with running() as gateway:
        assert stats_of(gateway) == {
            "requests_count": {"success": 0, "error": 0},
            "latency_ms": {"average": 0.0, "p95": 0.0, "p99": 0.0},
        }


def test_every_request_but_the_local_ones_is_counted(running: Callable[..., AbstractContextManager[Gateway]]) -> None:
    with running() as gateway:
        for path in ("/orders", "/orders/1", "/payment", "/empty", "/nowhere", "/stats", "/stats?by=x"):
            client(gateway).get(path).close()
        assert stats_of(gateway)["requests_count"] == {"success": 2, "error": 3}


def test_stats_are_divided_as_asked(running: Callable[..., AbstractContextManager[Gateway]]) -> None:
    with running() as gateway:
        for path in ("/orders", "/payment", "/empty", "/nowhere"):
            client(gateway).get(path).close()
        groups = stats_of(gateway, "?by=route,backend,status&since=1m")["groups"]
        found = [(group["route"], group["backend"], group["status"]) for group in groups]
        assert found == [(None, None, 404), ("/empty", "empty", 503), ("/orders", "orders", 200), ("/payment", "payment", 500)]
        refused = client(gateway).get("/stats?by=route,endpoint")
        assert "by=endpoint is answered at the admin socket only" in assert_error(refused, 400, "bad_request")["body"]
        assert_error(client(gateway).get("/stats?by=plugin"), 400, "bad_request")
        at_socket = gateway.local_routes["/stats"].admin_app  # type: ignore[union-attr]
        answer: Any = client(at_socket).get("/stats?by=endpoint").json
        endpoints = {group["endpoint"] for group in answer["groups"]}
        assert endpoints <= {None, "orders-1", "orders-2", "payment-1"} and None in endpoints


def test_request_that_has_just_ended_is_in_the_stats(running: Callable[..., AbstractContextManager[Gateway]]) -> None:
    with running() as gateway:
        for number in range(1, 100):
            client(gateway).get("/orders").close()
            assert stats_of(gateway)["requests_count"]["success"] == number


def test_stats_survive_a_restart(running: Callable[..., AbstractContextManager[Gateway]], url: str) -> None:
    for number in (1, 2):
        with running() as gateway:
            client(gateway).get("/orders").close()
            assert stats_of(gateway)["requests_count"]["success"] == number
    assert report(url)["requests_count"] == {"success": 2, "error": 0}


def test_end_of_the_gateway_saves_what_it_counted(running: Callable[..., AbstractContextManager[Gateway]], url: str) -> None:
    with running(flush_seconds=1) as gateway:
        client(gateway).get("/orders").close()
    assert report(url)["requests_count"] == {"success": 1, "error": 0}
    assert not [thread for thread in threading.enumerate() if thread.name == "rgate-stats"]


def test_path_is_what_the_options_say(running: Callable[..., AbstractContextManager[Gateway]]) -> None:
    with running(path="/-/numbers") as gateway:
        assert client(gateway).get("/stats").status_code == 404
        assert client(gateway).get("/-/numbers").get_json()["requests_count"] == {"success": 0, "error": 1}


def test_route_with_statistics_off_is_not_counted(running: Callable[..., AbstractContextManager[Gateway]]) -> None:
    routes = [
        {"path_prefix": "/orders", "backend": "orders"},
        {"path_prefix": "/ping", "backend": "orders", "plugins": {"stats": False}},
    ]
    with running({"routes": routes}) as gateway:
        for path in ("/orders", "/ping", "/ping"):
            assert client(gateway).get(path).status_code == 200
        assert stats_of(gateway)["requests_count"]["success"] == 1


def test_route_with_options_of_its_own_is_refused(url: str) -> None:
    routes = [{"path_prefix": "/orders", "backend": "orders", "plugins": {"stats": {"retention_days": 3}}}]
    with pytest.raises(ConfigError, match=r"routes\[0\]\.plugins\.stats.*false is what keeps it out"):
        make_gateway({"routes": routes, "plugins": {"stats": {"database": url}}}, BACKENDS)


def test_body_goes_through_untouched_and_is_closed() -> None:
    class Body:
        closed = False

        def __iter__(self) -> Iterator[bytes]:
            yield b"block"

        def close(self) -> None:
            self.closed = True

    body = Body()

    def inner(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return body

    middleware = stats.rgate_middlewares(make_gateway())
    assert (
        middleware.wrap(inner, None)(
            {"rgate.exchange": make_exchange()}, lambda status, headers, exc_info=None: lambda data: None
        )
        is body
    )
    response = client(validator(middleware.wrap(validator(inner), None)), make_exchange()).get("/")
    assert (response.data, body.closed) == (b"block", True)
    assert (middleware.name, middleware.modifies_request) == ("stats", False)


def test_database_is_not_touched_before_the_gateway_runs(url: str, tmp_path: Path) -> None:
    make_gateway({"plugins": {"stats": {"database": url}}}, BACKENDS)
    assert list(tmp_path.iterdir()) == []


def test_gateway_has_one_recorder(url: str) -> None:
    gateway = make_gateway({"plugins": {"stats": {"database": url}}}, BACKENDS)
    assert stats.recorder_of(gateway) is stats.recorder_of(gateway)


@pytest.mark.parametrize(("options", "same"), [({}, True), ({"path": "/-/stats"}, True), ({"retention_days": 5}, False)])
def test_recorder_goes_on_in_the_next_gateway_unless_it_is_to_save_in_another_way(
    url: str, options: dict[str, object], same: bool
) -> None:
    before = make_gateway({"plugins": {"stats": {"database": url}}}, BACKENDS)
    after = before.config.model_copy(
        update={"plugins": {**before.config.plugins, "stats": StatsOptions(database=url, **options)}}
    )  # type: ignore[arg-type]
    assert (stats.recorder_of(build(after, before.registry, before.runtime)) is stats.recorder_of(before)) is same


def test_options_have_defaults() -> None:
    assert StatsOptions().model_dump() == {
        "database": "sqlite:///rgate.db",
        "path": "/stats",
        "allow": None,
        "hosts": (),
        "flush_seconds": 0.5,
        "retention_days": 30,
        "max_megabytes": 256,
    }


@pytest.mark.parametrize(
    "database",
    ["sqlite:////var/lib/rgate.db", "sqlite+pysqlite:///x.db", "postgresql://u:p@db/rgate", "postgresql+psycopg://db/x"],
)
def test_database_may_be_sqlite_or_postgresql(database: str) -> None:
    assert StatsOptions(database=database).database == database


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"database": "mysql://db/rgate"}, "begins with sqlite:// or postgresql://"),
        ({"database": "rgate.db"}, "begins with sqlite:// or postgresql://"),
        ({"database": "sqlite://"}, "names no file"),
        ({"database": "sqlite:///:memory:"}, "names no file"),
        ({"path": "stats"}, "must begin with /"),
        ({"path": "/stats?x"}, "must begin with /"),
        ({"flush_seconds": 2}, "at most 1, found 2"),
        ({"flush_seconds": 0}, "at least 0.05, found 0"),
        ({"retention_days": 0}, "at least 1, found 0"),
        ({"max_megabytes": 0}, "at least 1, found 0"),
        ({"databse": "x"}, "databse"),
    ],
)
def test_option_that_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_gateway({"plugins": {"stats": options}}, BACKENDS)


def test_stats_that_are_closed_are_answered_to_those_who_are_allowed(
    running: Callable[..., AbstractContextManager[Gateway]],
) -> None:
    with running(allow=["10.0.0.0/8"]) as gateway:
        allowed = client(gateway).get("/stats", environ_base={"REMOTE_ADDR": "10.1.2.3"})
        assert allowed.status_code == 200 and "requests_count" in allowed.json  # type: ignore[operator]
        assert_error(client(gateway).get("/stats"), 404, "no_route")
        assert_error(client(gateway).get("/stats", headers={"X-Forwarded-For": "10.1.2.3"}), 404, "no_route")


def test_allow_that_is_no_network_is_a_problem() -> None:
    with pytest.raises(ConfigError, match=r"plugins\.stats\.allow.*write a network like 10\.0\.0\.0/8"):
        make_gateway({"plugins": {"stats": {"allow": ["everywhere"]}}})


@pytest.mark.parametrize(
    ("address", "headers"),
    [
        ("192.0.2.7", {}),
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.7"}),
        ("127.0.0.1", {"CF-Connecting-IP": "192.0.2.7"}),
        ("127.0.0.1", {"Host": "shop.example"}),
        ("127.0.0.1", {"Sec-Fetch-Site": "cross-site"}),
    ],
)
def test_stats_are_for_this_machine_and_a_backend_has_the_path_for_all_others(
    url: str, address: str, headers: dict[str, str]
) -> None:
    config = {"routes": [{"path_prefix": "/", "backend": "proxy"}], "plugins": {"stats": {"database": url}}}
    with running_gateway(config, {"proxy": respond_with(b"the backend's own")}) as gateway:
        answer = client(gateway).get("/stats", headers=headers, environ_base={"REMOTE_ADDR": address})
        assert answer.data == b"the backend's own"
        assert "requests_count" in stats_of(gateway)
        assert client(gateway).get("/st%61ts").data == b"the backend's own"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_database_is_this_users_alone(
    running: Callable[..., AbstractContextManager[Gateway]], tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        with running() as gateway:
            client(gateway).get("/orders").close()
            stats_of(gateway)
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"rgate.db": 0o600, "rgate.db-wal": 0o600, "rgate.db-shm": 0o600}


def test_database_that_is_there_keeps_its_mode(running: Callable[..., AbstractContextManager[Gateway]], tmp_path: Path) -> None:
    """An operator may have opened it to a group."""
    (tmp_path / "rgate.db").touch(0o600)
    (tmp_path / "rgate.db").chmod(0o640)
    with running() as gateway:
        client(gateway).get("/orders").close()
        stats_of(gateway)
        assert stat.S_IMODE((tmp_path / "rgate.db-wal").stat().st_mode) == 0o640
