"""admin: pages at a unix socket, for the users that its mode admits."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from rgate import AdminServer, ConfigError, Gateway, PluginError
from rgate.cli import main as cli
from rgate.config import load_text
from rgate.plugin.registry import Registry
from rgate.runtime.gateway import build
from rgate.runtime.runtime import Runtime
from rgate.serving.unix_socket import UnixSocketPath
from rgate.testing import assert_error, client, make_gateway, respond_with, running_gateway

from ...support.waiting import eventually


@pytest.fixture
def path() -> Iterator[Path]:
    """A path in a folder with a short name: the path of a socket has at most 107 bytes."""
    with TemporaryDirectory(prefix="rgate-") as folder:
        yield Path(folder) / "admin.sock"


def config(path: Path, **admin: Any) -> dict[str, Any]:
    return {"plugins": {"admin": {"address": f"unix:{path}", **admin}}}


def asked(path: Path, target: str, method: str = "GET") -> tuple[int, Any]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        response = b"".join(iter(lambda: sock.recv(65_536), b""))
    head, _, body = response.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), json.loads(body)


def is_answered(path: Path) -> bool:
    with suppress(OSError, IndexError):
        return asked(path, "/-/live")[0] == 200
    return False


def test_pages_at_a_unix_socket_are_nowhere_else(path: Path) -> None:
    with running_gateway(config(path), {"orders": respond_with(b"hello")}) as gateway:
        for page in ("/-/backends", "/-/drain", "/-/config", "/-/live"):
            assert asked(path, page)[0] == 200
        assert_error(client(gateway).get("/-/backends"), 404, "no_route")
        assert asked(path, "/orders")[0] == 404
    assert not path.exists()
    assert os.listdir(path.parent) == [], "nothing is left behind"


def test_client_whose_own_end_has_a_name_is_answered_too(path: Path) -> None:
    with running_gateway(config(path)), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.bind(str(path.with_name("client")))
        sock.connect(str(path))
        sock.sendall(b"GET /-/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(65_536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(("mode", "expected"), [(None, 0o600), ("600", 0o600), ("660", 0o660), ("0666", 0o666)])
def test_mode_is_what_it_says_whatever_the_umask(mode: str | None, expected: int, path: Path) -> None:
    with running_gateway(config(path, **({"mode": mode} if mode else {}))):
        assert stat.S_IMODE(path.stat().st_mode) == expected
        assert stat.S_ISSOCK(path.stat().st_mode)


def test_socket_that_a_killed_process_has_left_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with running_gateway(config(path)):
        assert asked(path, "/-/live")[0] == 200
    assert not path.exists()


def test_file_that_is_no_socket_is_left_alone_and_stops_the_start(path: Path) -> None:
    path.write_text("precious")
    gateway = make_gateway(config(path))
    words = rf"cannot listen on unix:{path}: the path exists and is not a socket"
    with pytest.raises(PluginError, match=words), gateway.running():
        pass
    assert path.read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_socket_of_another_user_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        os.chown(path, 12_345, -1)
        with pytest.raises(OSError, match="of another user"):
            UnixSocketPath(str(path), 0o600).bind()
    assert path.exists()


def test_folder_that_is_not_there_stops_the_start(path: Path) -> None:
    gateway = make_gateway(config(path.parent / "nowhere" / "admin.sock"))
    with pytest.raises(PluginError, match="No such file or directory"), gateway.running():
        pass


@pytest.mark.parametrize(
    ("admin", "problem"),
    [
        ({"address": "unix:relative.sock"}, "is not an address with a port; write one like .* unix:/run/rgate/admin.sock"),
        ({"address": "unix:/" + "x" * 100}, "is not an address with a port"),
        ({"hosts": ["gateway.internal:80"]}, "is not a host name; write the name alone"),
        ({"address": "127.0.0.1:9901", "mode": "660"}, "mode has no effect without"),
        ({"address": "unix:/x", "mode": "rw"}, r"plugins\.admin\.mode"),
        ({"address": "unix:/x", "mode": "888"}, r"plugins\.admin\.mode"),
    ],
)
def test_options_that_cannot_be_are_problems(admin: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        make_gateway({"plugins": {"admin": admin}})


def test_last_one_has_the_place_and_the_one_before_removes_nothing(path: Path) -> None:
    first, second = UnixSocketPath(str(path), 0o600), UnixSocketPath(str(path), 0o600)
    with first.bind() as one, second.bind() as two:
        assert first.is_listening() and second.is_listening()
        first.unlink()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            two.accept()[0].close()
        one.setblocking(False)
        with pytest.raises(BlockingIOError):
            one.accept()
        second.unlink()
    assert not first.is_listening()


def test_place_is_taken_again_when_the_one_that_had_it_is_gone(path: Path) -> None:
    """As when a worker process is killed, or a successor gives up."""
    with running_gateway(config(path)):
        with UnixSocketPath(str(path), 0o600).bind():
            pass
        assert path.exists(), "it has left its socket there"
        eventually(lambda: is_answered(path), "the gateway is there again", within_seconds=30)
    assert not path.exists()


def test_socket_that_somebody_removes_is_made_again_as_soon_as_it_can(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running_gateway(config(path)):
        path.unlink()
        path.mkdir()
        eventually(lambda: f"cannot listen on unix:{path}: the path exists and" in caplog.text, within_seconds=30)
        path.rmdir()
        eventually(lambda: is_answered(path), "the gateway is there again", within_seconds=30)


def made_with(path: Path, prefix: str, mode: str, runtime: Runtime | None = None) -> Gateway:
    registry = Registry()
    text = f"""
routes: [{{path_prefix: {prefix}, backend: a}}]
backends: [{{name: a, endpoints: ["http://127.0.0.1:9"]}}]
plugins: {{disable: [stats, docker], admin: {{address: "unix:{path}", mode: "{mode}"}}}}
"""
    return build(load_text(text, registry), registry, runtime)


@pytest.mark.parametrize("mode", ["600", "660"])
def test_socket_is_there_over_a_reload_also_with_another_mode(mode: str, path: Path) -> None:
    first = made_with(path, "/one", "600")
    with first.running():
        first.runtime.activate(made_with(path, "/two", mode, first.runtime))
        eventually(lambda: "rgate-drain" not in [thread.name for thread in threading.enumerate()], "the first one has ended")
        assert [route["path_prefix"] for route in asked(path, "/-/routes")[1]["routes"]] == ["/two"]
        assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)
    assert not path.exists()


def test_side_server_says_where_it_listens(path: Path) -> None:
    server = AdminServer("x", f"unix:{path}")
    assert server.url == ""
    with server:
        assert server.url == f"unix:{path}"


def test_commands_reach_a_gateway_at_its_unix_socket(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"unix:{path}"
    with running_gateway(config(path), {"orders": respond_with(b"hello")}) as gateway:
        gateway.runtime.on_reload = lambda: ""
        for command in (["healthcheck"], ["reload"], ["drain", "orders-1"], ["drain"]):
            assert cli.main([*command, "--url", url]) == 0, capsys.readouterr().err
        assert cli.main(["drain", "orders-9", "--url", url]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[:2] == ["ready", "reloaded"]
    assert "o endpoint is called 'orders-9'; there are orders-1" in err
    for name in ("healthcheck", "reload"):
        assert cli.main([name, "--url", url]) == 1
        assert f"no gateway answers at {url}" in capsys.readouterr().err


def test_healthcheck_finds_the_unix_socket_in_the_config(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = path.parent / "config.yml"
    written.write_text(f"routes: []\nbackends: []\nplugins: {{admin: {{address: 'unix:{path}'}}}}\n")
    with running_gateway(config(path)):
        assert cli.main(["healthcheck", "--config", str(written)]) == 0
    assert capsys.readouterr().out == "ready\n"
