"""How a command finds its gateway: by URL, by config, by config.yml in the working directory, or as the only one."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from rgate import Config
from rgate.cli import main as cli
from rgate.cli.find_gateway import Found, find, impossible_commands
from rgate.cli.http_client import GatewayUnreachable
from rgate.config import load
from rgate.plugin.registry import Registry
from rgate.plugins.admin import AdminOptions
from rgate.serving.runtime_dir import socket_name
from rgate.testing import client, make_gateway, respond_with

from ..config.configs import loaded


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The only runtime directory, and an empty working directory."""
    monkeypatch.chdir(tmp_path)
    with TemporaryDirectory(prefix="rgate-") as folder:
        monkeypatch.setattr("rgate.serving.runtime_dir.directories", lambda environ=None: [folder])
        yield Path(folder)


@contextmanager
def listening(sockets: Path, port: int, host: str = "127.0.0.1") -> Iterator[str]:
    path = sockets / socket_name(host, port)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        yield f"unix:{path}"


def where(url: str | None = None, path: str | None = None, at_port: bool = False, any_gateway: bool = True) -> Found:
    return find(url, path, lambda file: load(file, Registry()), at_port=at_port, any_gateway=any_gateway)


def write(path: str, text: str) -> str:
    Path(path).write_text(text)
    return path


def test_only_socket_is_used(sockets: Path) -> None:
    with listening(sockets, 9000) as only:
        assert where() == Found(only)


def test_of_several_sockets_one_must_be_named(sockets: Path) -> None:
    with listening(sockets, 9000) as one, listening(sockets, 9001) as other:
        with pytest.raises(
            GatewayUnreachable, match=f"several gateways run here: {one}, {other}; name one with --url, or its config"
        ):
            where()
        assert where("http://127.0.0.1:9001").url == other
        assert where("localhost:9000").url == one
        assert where(path=write("my.yml", "server: {port: 9001}")).url == other


def test_without_a_socket_port_8080_is_used_and_a_remark_says_so(sockets: Path) -> None:
    assert where() == Found("http://127.0.0.1:8080", f"no admin socket in {sockets}; asking at http://127.0.0.1:8080")


def test_url_of_this_machine_means_the_socket_of_its_port(sockets: Path) -> None:
    with listening(sockets, 9000) as ours, listening(sockets, 443) as tls, listening(sockets, 9002, "192.0.2.1") as named:
        for url in ("http://127.0.0.1:9000", "https://localhost:9000/", "http://[::1]:9000", "127.0.0.1:9000"):
            assert where(url).url == ours
        assert where("https://localhost").url == tls
        assert where("http://192.0.2.1:9002").url == named
        for url in ("http://127.0.0.1:9000/stats", "http://192.0.2.7:9000", "http://127.0.0.1:9001", "unix:/x", "http://x:99999"):
            assert where(url) == Found(url)


def test_config_in_the_working_directory_names_the_gateway(sockets: Path) -> None:
    write("config.yml", "server: {port: 9001}")
    with listening(sockets, 9000) as only:
        with listening(sockets, 9001) as ours:
            assert where() == Found(ours)
        missing = "no gateway has an admin socket for port 9001, which config.yml says"
        assert where() == Found(only, f"{missing}; asking at {only}")
        assert where(any_gateway=False) == Found("http://127.0.0.1:9001"), "the readiness of another gateway must not be reported"
        write("config.yml", "nonsense: true")
        assert where() == Found(only, f"config.yml cannot be used; asking at {only}"), "a reload must report its problems"
    write("config.yml", "server: {port: 9001}")
    assert where() == Found("http://127.0.0.1:9001", f"{missing}; asking at http://127.0.0.1:9001")


def test_config_gives_the_address_of_the_admin_pages(sockets: Path) -> None:
    def of(text: str) -> str:
        return where(path=write("my.yml", text)).url

    assert of("plugins: {admin: {address: 'unix:/run/x.sock'}}") == "unix:/run/x.sock"
    assert of("plugins: {admin: {address: '0.0.0.0:9901'}}") == "http://127.0.0.1:9901"
    assert of("plugins: {admin: {address: '[::]:9901'}}") == "http://[::1]:9901"
    with listening(sockets, 8080):
        assert of("plugins: {admin: {address: false}}") == "http://127.0.0.1:8080"
        assert of("plugins: {disable: [admin]}") == "http://127.0.0.1:8080"
    assert of("server: {host: '::', port: 9000}") == "http://[::1]:9000"


def test_socket_of_another_user_is_told(sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.serving.runtime_dir._can_connect", lambda path: False)
    config = write("my.yml", "server: {port: 9000}")
    with listening(sockets, 9000) as theirs:
        for path in (None, config):
            with pytest.raises(GatewayUnreachable, match=f"{theirs}: no permission; ask as root, or as the user"):
                where(path=path)
        assert where(path=config, at_port=True) == Found("http://127.0.0.1:9000")
        assert where(at_port=True).remark.startswith(f"{theirs}: no permission")


def test_url_and_config_cannot_be_combined(sockets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["stats"], ["reload"], ["drain"], ["healthcheck"]):
        assert cli.main([*command, "--url", "unix:/x", "--config", "x"]) == 2
        assert "--url and --config both name a gateway" in capsys.readouterr().err


def test_commands_find_the_socket_of_a_gateway(sockets: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = {"plugins": {"stats": {"database": f"sqlite:///{tmp_path}/stats.db"}}}
    gateway = make_gateway(config, {"orders": respond_with(b"hello")})
    gateway.runtime.on_reload = lambda: ""
    gateway.runtime.listening = ("127.0.0.1", 9000)
    with gateway.running():
        assert stat.S_IMODE((sockets / "9000.sock").stat().st_mode) == 0o600
        client(gateway).get("/orders").close()
        for command in (["healthcheck"], ["reload"], ["drain", "orders-1"], ["drain"]):
            assert cli.main(command) == 0, capsys.readouterr().err
        assert capsys.readouterr().out.splitlines()[:2] == ["ready", "reloaded"]
        assert cli.main(["stats", "--by", "endpoint", "--json"]) == 0
        assert [group["endpoint"] for group in json.loads(capsys.readouterr().out)["groups"]] == ["orders-1"]
    assert os.listdir(sockets) == []


def test_gateway_without_a_directory_for_its_socket_starts_and_says_so(sockets: Path, caplog: pytest.LogCaptureFixture) -> None:
    (sockets / "rgate").touch()
    gateway = make_gateway()
    gateway.runtime.listening = ("127.0.0.1", 9000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rgate.serving.runtime_dir.directories", lambda environ=None: [f"{sockets}/rgate", "/tmp/" + "x" * 100])
        with gateway.running():
            assert client(gateway).get("/-/live").status_code == 200
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == gateway.readiness.warnings["admin"]
    assert "no admin socket" in told and "accessible to other users" in told and "more than 96 bytes" in told
    assert "make one of these directories writable, or set plugins.admin.address" in told


@pytest.mark.parametrize(
    ("config", "commands"),
    [
        ("routes: []", []),
        ("server: {proxy_protocol: true}", []),
        ("plugins: {admin: {address: 'unix:/x'}, disable: [stats]}", ["stats"]),
        ("plugins: {admin: {address: '127.0.0.1:9901'}}", []),
        ("plugins: {admin: {address: '127.0.0.1:9901', allow: [10.0.0.0/8]}}", ["reload, drain, stats and healthcheck"]),
        ("plugins: {admin: {address: false}}", ["reload and drain"]),
        ("plugins: {admin: {address: false, allow: [127.0.0.1]}}", []),
        (
            "{server: {proxy_protocol: true}, plugins: {admin: {address: false, allow: [127.0.0.1]}}}",
            ["reload and drain", "healthcheck", "stats"],
        ),
        (
            "{server: {proxy_protocol: true, trusted_proxies: [192.0.2.1]}, plugins: {admin: {address: false}}}",
            ["reload and drain"],
        ),
        ("plugins: {disable: [admin]}", ["reload, drain and healthcheck"]),
    ],
)
def test_commands_that_cannot_work_with_a_config_are_named(config: str, commands: list[str]) -> None:
    found = [*impossible_commands(loaded(config))]
    assert [line.removeprefix("rgate ").partition(" can")[0].partition(" has")[0] for line in found] == commands, found


@pytest.mark.parametrize(("address", "count"), [(None, 0), (False, 3), ("127.0.0.1:9901", 0)])
def test_required_client_certificates_prevent_commands_only_without_an_address(address: Any, count: int) -> None:
    tls = {"certificate": "a.pem", "client_certificates": {"ca": "b.pem"}}
    admin = AdminOptions(address=address, allow=("127.0.0.1",))
    config = Config.model_validate({"server": {"tls": tls}}).model_copy(update={"plugins": {"admin": admin}})
    found = [*impossible_commands(config)]
    assert len(found) == count and all("asks for client certificates" in line for line in found)


def test_check_lists_commands_that_cannot_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yml"
    path.write_text("plugins: {admin: {address: false}}")
    assert cli.main(["check", str(path)]) == 0
    *notices, ok = capsys.readouterr().out.splitlines()
    notice = f"{path}: rgate reload and drain cannot ask this gateway: plugins.admin.address is false"
    assert ok.startswith(f"{path}: OK") and any(line.startswith(notice) for line in notices)
    assert cli.main(["check", str(path), "--json"]) == 0
    told = [warning["message"] for warning in json.loads(capsys.readouterr().out)["warnings"]]
    assert len([message for message in told if message.startswith("rgate reload and drain cannot ask")]) == 1
