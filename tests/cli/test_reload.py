"""`rgate reload`, and /-/reload, which it asks: its output and exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from rgate import Gateway, RgateError
from rgate.cli import main as cli
from rgate.cli.http_client import parse_url
from rgate.serving.server import Server
from rgate.testing import client, closed_port_url, make_gateway, respond_with, running_gateway

from ..support.certificates import authority
from ..support.serving import serving

HERE = {"plugins": {"admin": {"allow": ["127.0.0.1"]}}}


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with running_gateway(HERE, {"orders": respond_with(b"1")}) as gateway:
        yield gateway


@pytest.fixture
def server(gateway: Gateway) -> Iterator[Server]:
    with serving(gateway) as running:
        yield running


def answer(problems: str | RgateError) -> Callable[[], str]:
    def reload() -> str:
        if isinstance(problems, RgateError):
            raise problems
        return problems

    return reload


@pytest.mark.parametrize(
    ("problems", "code", "out", "err"),
    [
        ("", 0, "reloaded\nserver.port stays 8080\n", ""),
        ("config.yml:1: no\nconfig.yml:2: no", 2, "", "config.yml:1: no\nconfig.yml:2: no\n"),
    ],
)
def test_reload_prints_its_outcome(
    gateway: Gateway, server: Server, problems: str, code: int, out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.runtime.on_reload = answer(problems)
    gateway.readiness.warnings["restart"] = "server.port stays 8080"
    assert cli.main(["reload", "--url", server.url]) == code
    assert capsys.readouterr() == (out, err)


@pytest.mark.parametrize("failure", [None, RgateError("not all workers have reloaded in 60 s")])
def test_reload_without_a_known_outcome_is_exit_code_1(
    gateway: Gateway, server: Server, failure: RgateError | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if failure is not None:
        gateway.runtime.on_reload = answer(failure)
    assert cli.main(["reload", "--url", server.url]) == 1
    assert f"/-/reload answers 503: {failure or 'this gateway cannot read its config again'}" in capsys.readouterr().err


def test_reload_without_a_gateway_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with closed_port_url() as url:
        assert cli.main(["reload", "--url", url]) == 1
    assert "no gateway answers at" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_reload_of_a_gateway_on_this_machine_with_tls_needs_no_certificate_for_loopback(
    scheme: str, gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.runtime.on_reload = answer("")
    pair = authority().issue("gateway.example")
    with serving(gateway, tls={"certificate": str(pair.both)}) as server:
        assert cli.main(["reload", "--url", server.url.replace("https", scheme)]) == 0
    assert capsys.readouterr() == ("reloaded\n", "")


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.9", True), ("[::1]", True), ("localhost", True), ("10.0.0.1", False), ("localhost.x", False)]
)
def test_certificate_is_verified_unless_the_gateway_is_on_this_machine(host: str, loopback: bool) -> None:
    assert parse_url(f"https://{host}").is_loopback is loopback


def test_reload_where_the_admin_pages_are_not_answered_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    config = {"plugins": {"admin": {"allow": []}}}
    with running_gateway(config, {}) as gateway, serving(gateway) as server:
        assert cli.main(["reload", "--url", server.url]) == 1
    assert "send it SIGHUP instead" in capsys.readouterr().err


def test_page_shows_what_is_to_be_known_of_the_config_and_no_web_page_may_reload() -> None:
    gateway = make_gateway(HERE, {})
    gateway.readiness.warnings |= {"config": "refused, the config before stays active: no", "health": "something else"}
    assert client(gateway).get("/-/reload").json == {"warnings": {"config": "refused, the config before stays active: no"}}
    assert client(gateway).post("/-/reload", headers={"Origin": "http://evil.example"}).status_code == 404
