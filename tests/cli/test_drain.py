"""`rgate drain`: an endpoint of a running gateway, by its name, and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rgate.cli import main as cli
from rgate.serving.server import Server
from rgate.testing import ScriptedBackend, closed_port_url, http_response, respond_with, running_gateway

from ..support.raw_client import RawClient
from ..support.serving import serving


@pytest.fixture
def server() -> Iterator[Server]:
    with (
        running_gateway(
            {"plugins": {"admin": {"allow": ["127.0.0.1"]}}}, {"orders": [respond_with(b"1"), respond_with(b"2")]}
        ) as gateway,
        serving(gateway) as running,
    ):
        yield running


def answers(server: Server) -> set[bytes]:
    with RawClient(server.url) as client:
        return {client.get("/orders").body for _ in range(20)}


def rgate(*arguments: str) -> int:
    return cli.main(arguments)


def test_drain_and_undo_print_what_they_have_done(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert rgate("drain", "--url", server.url) == 0
    assert rgate("drain", "orders-1", "--url", server.url) == 0
    assert answers(server) == {b"2"}
    assert rgate("drain", "--url", server.url) == 0
    assert rgate("drain", "orders-1", "--undo", "--url", server.url) == 0
    assert answers(server) == {b"1", b"2"}
    name = "orders-1 (http://in-process.invalid:1)"
    assert capsys.readouterr().out.splitlines() == [
        "nothing is drained",
        f"{name} gets no new requests (0 requests in flight)",
        f"{name} is drained (0 requests in flight)",
        f"{name} gets new requests again (0 requests in flight)",
    ]


def test_drain_of_an_unknown_endpoint_lists_those_there_are(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert rgate("drain", "ordres-1", "--url", server.url) == 2
    assert capsys.readouterr().err == "No endpoint is called 'ordres-1'; there are orders-1, orders-2.\n"


def test_undo_needs_an_endpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert rgate("drain", "--undo") == 2
    assert "--undo needs the name of an endpoint" in capsys.readouterr().err


def test_drain_without_a_gateway_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with closed_port_url() as url:
        assert rgate("drain", "orders-1", "--url", url) == 1
    assert "no gateway answers at" in capsys.readouterr().err


def test_drain_where_the_admin_pages_are_not_answered_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with running_gateway({"plugins": {"admin": {"allow": []}}}) as gateway, serving(gateway) as server:
        assert rgate("drain", "orders-1", "--url", server.url) == 1
    assert "not answered there" in capsys.readouterr().err


def test_drain_of_a_server_that_is_not_rgate_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedBackend(http_response(b"hello")) as backend:
        assert rgate("drain", "orders-1", "--url", backend.url) == 1
    assert "is not rgate" in capsys.readouterr().err


def test_drain_not_confirmed_by_every_worker_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    said = b'{"endpoints": [], "drained": true, "changed": 1, "workers_told": false}'
    with ScriptedBackend(http_response(said)) as backend:
        assert rgate("drain", "orders-1", "--url", backend.url) == 1
    assert "not every worker process has answered in time" in capsys.readouterr().err
