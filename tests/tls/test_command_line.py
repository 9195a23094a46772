"""TLS from the command line: what is wrong with a file is told, and what is right is served, by every worker alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from rgate.cli.main import main
from rgate.testing import ScriptedBackend, http_response

from ..cli.test_main import config, running
from ..support.certificates import authority
from ..support.processes import GatewayProcess
from ..support.raw_client import RawClient
from ..support.tls_client import SHOP, MemoryClient, SecureClient


def tls(more: str = "", certificate: str = SHOP.both) -> str:
    return f"server:\n  tls: {{certificate: {certificate}, redirect_port: 0}}\n{more}"


def urls(gateway: GatewayProcess) -> tuple[str, str]:
    """Where TLS is spoken, and where plain HTTP is."""
    secure = gateway.output.until(r"^rgate .* listening on (https://127\.0\.0\.1:\d+) ")[1]
    port = gateway.output.until(r"^and plain HTTP on port (\d+), answered with where https is$")[1]
    return secure, f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("arguments", [["check"], ["--port", "0", "--config"]], ids=["check", "serve"])
@pytest.mark.parametrize("backend", [False, True], ids=["server", "backend"])
def test_file_that_is_missing_ends_the_start(
    arguments: list[str], backend: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, "https://127.0.0.1:9", "" if backend else tls(certificate="/nowhere.pem"))
    if backend:
        text = Path(path).read_text()
        Path(path).write_text(text.replace('["https://127.0.0.1:9"]', '["https://127.0.0.1:9"], tls: {ca: /nowhere.pem}'))
    assert main([*arguments, path]) == 2
    place = ":3: backends[0].tls.ca" if backend else ":8: server.tls.certificate"
    assert capsys.readouterr().err == f"{path}{place}: /nowhere.pem: no such file\n"


def test_file_that_is_right_is_ok(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", config(tmp_path, more=tls())]) == 0
    assert "OK (1 route, 1 backend)" in capsys.readouterr().out


def test_port_for_redirects_that_is_taken_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedBackend() as other:
        more = f"server:\n  tls: {{certificate: {SHOP.both}, redirect_port: {other.port}}}"
        assert main(["--port", "0", "--config", config(tmp_path, more=more)]) == 2
        assert f"cannot listen on 127.0.0.1 port {other.port}: the port is taken" in capsys.readouterr().err


def test_client_that_asks_for_no_host_name_fills_no_log(tmp_path: Path) -> None:
    other = authority().issue("admin.example")
    more = f"server:\n  tls: {{certificate: {SHOP.both}, redirect_port: 0, certificates: [{{certificate: {other.both}}}]}}\n"
    with running("--config", config(tmp_path, more=more), "--port", "0") as gateway:
        secure, _ = urls(gateway)
        for _ in range(3):
            hello = MemoryClient("localhost").to_send().replace(b"localhost", b"local\xffost")
            with RawClient(secure) as client:
                client.send(hello)
                assert client.rest().startswith(b"\x15\x03"), "no alert"
        assert gateway.stop() == 0
        assert gateway.errors.unread()
        assert not [line for line in gateway.errors.lines if " INFO rgate.process: " not in line]


@pytest.mark.parametrize("workers", [1, 2])
def test_tls_is_served_until_the_signal(workers: int, tmp_path: Path) -> None:
    with ScriptedBackend(http_response(b"hello")) as backend:
        path = config(tmp_path, backend.url, f"server:\n  workers: {workers}\n{tls().removeprefix('server:')}")
        with running("--config", path, "--port", "0") as gateway:
            secure, plain = urls(gateway)
            context = authority().client_context()
            session = None
            for _ in range(12):  # by chance, every worker has some of them
                with SecureClient(secure, context=context, session=session) as client:
                    assert client.get("/orders").body == b"hello"
                    assert session is None or client.tls.session_reused, "a worker does not know another one's session"
                    session = client.tls.session
            with RawClient(plain) as client_:
                assert client_.get("/orders").value("Location") == f"https://x:{secure.rpartition(':')[2]}/orders"
            assert gateway.stop() == 0
