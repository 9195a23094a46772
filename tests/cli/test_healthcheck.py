"""`rgate healthcheck`: one line and an exit code, without the gateway's imports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rgate import Gateway
from rgate.cli import main as cli
from rgate.cli.healthcheck import check, run
from rgate.testing import ScriptedBackend, closed_port_url, http_response, running_gateway

from ..support.certificates import authority
from ..support.serving import serving

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with running_gateway({"plugins": {"admin": {"allow": ["127.0.0.1"]}}}, {}) as running:
        yield running


def test_ready_gateway_is_exit_code_0(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(gateway) as server:
        assert run(server.url) == 0
        assert capsys.readouterr().out == "ready\n"
        assert run(f"{server.url}/") == run(f"{server.url}/-/live") == 0


def test_gateway_that_is_not_ready_is_exit_code_1_with_every_reason(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.readiness.not_ready_reasons.update({"stopping": "SIGTERM 3 s ago", "other": "why"})
    with serving(gateway) as server:
        assert run(server.url) == 1
        assert capsys.readouterr() == ("", "not ready: stopping: SIGTERM 3 s ago; other: why\n")


def test_port_that_nothing_listens_on_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with closed_port_url() as url:
        assert run(url) == 1
        assert capsys.readouterr().err == f"no gateway answers at {url}: Connection refused\n"


@pytest.mark.parametrize("url", ["", "http://", "ftp://x", "http://x:99999", "http://x/ y", "a:b"])
def test_invalid_url_is_exit_code_2(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(url) == 2
    assert "is not the URL of a gateway; write one like http://127.0.0.1:8080" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (http_response(b"nothing", "404 Not Found"), "answers 404 at /-/ready; is this rgate, and may this machine ask"),
        (http_response(b'{"ready": false}', "503 Service Unavailable"), "not ready: no reason given"),
        (http_response(b'["ready"]', "503 Service Unavailable"), "answers 503"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "does not speak HTTP"),
        (b"", "does not speak HTTP"),
    ],
)
def test_answer_that_is_not_rgates_is_printed(response: bytes, says: str) -> None:
    def script(connection: object) -> None:
        connection.read_request()  # type: ignore[attr-defined]
        connection.send(response)  # type: ignore[attr-defined]

    with ScriptedBackend(script) as backend:
        ready, line = check(backend.url)
        assert not ready and says in line, line


def test_gateway_that_speaks_tls_is_asked_over_tls(gateway: Gateway) -> None:
    """Also if the URL does not say so: the default URL works for a gateway with any config."""
    pair = authority().issue("gateway.example")
    with serving(gateway, tls={"certificate": str(pair.both)}) as server:
        assert check(server.url) == (True, "ready")
        assert check(server.url.replace("https", "http")) == (True, "ready")


def test_address_is_taken_from_the_config(gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(gateway) as server:
        file = tmp_path / "config.yml"
        file.write_text(f"server: {{host: 0.0.0.0, port: {server.port}}}\nplugins: {{disable: [stats]}}")
        assert cli.main(["healthcheck", "--config", str(file)]) == 0
    assert capsys.readouterr().out == "ready\n"


RUNS = {"-m rgate": "run_module('rgate', run_name='__main__')", "rgate.py": "run_path('rgate.py', run_name='__main__')"}


@pytest.mark.parametrize("run_it", RUNS.values(), ids=RUNS)
def test_command_imports_nothing_of_the_gateway(run_it: str) -> None:
    """That is why it takes 50 ms, a tenth of the time that the gateway takes to import."""
    code = f"""
import runpy, sys
sys.argv[1:] = ["healthcheck", "--url", "x x"]
try:
    runpy.{run_it}
finally:
    print(*sys.modules)
"""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert found.returncode == 2 and "not the URL of a gateway" in found.stderr, found.stderr
    loaded = set(found.stdout.split())
    assert {name for name in loaded if name.startswith("rgate.")} <= {
        "rgate.cli",
        "rgate.cli.healthcheck",
        "rgate.cli.http_client",
        "rgate.serving",
        "rgate.serving.runtime_dir",
        "rgate.__main__",
    }
    assert not loaded & {"pydantic", "urllib3", "werkzeug", "click", "http.client", "urllib.request", "ssl", "yaml"}
