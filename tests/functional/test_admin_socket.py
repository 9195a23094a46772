"""The pages at a unix socket, of worker processes that die and of a gateway that is succeeded by another."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from ..support.certificates import authority
from ..support.processes import GatewayProcess, run_rgate
from ..support.raw_client import RawClient
from ..support.waiting import PROCESS_DEADLINE_SECONDS, eventually

CONFIG = """\
server: {{workers: {workers}}}
backends: [{{name: a, endpoints: ["http://127.0.0.1:9"]}}]
routes: [{{path_prefix: /, backend: a}}]
plugins: {{disable: [stats, docker], admin: {{address: "unix:{path}"}}}}
"""


def process_at(path: Path) -> int:
    """The number of the process that answers there; 0 when none does."""
    with suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(b"GET /-/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        response = b"".join(iter(lambda: sock.recv(65_536), b""))
        return int(json.loads(response.partition(b"\r\n\r\n")[2])["process"])
    return 0


def test_unix_socket_is_answered_again_when_the_worker_that_has_it_is_killed() -> None:
    with TemporaryDirectory(prefix="rgate-") as folder:
        path, config = Path(folder) / "admin.sock", Path(folder) / "config.yml"
        config.write_text(CONFIG.format(workers=2, path=path))
        with GatewayProcess(config) as gateway:
            for _ in range(2):
                one = eventually(lambda: process_at(path), "a worker answers", PROCESS_DEADLINE_SECONDS)
                os.kill(one, signal.SIGKILL)
                eventually(lambda: process_at(path) not in (0, one), "another answers", PROCESS_DEADLINE_SECONDS)  # noqa: B023
            gateway.stop_all(gateway.process.pid)
        assert not path.exists()


def test_unix_socket_goes_to_the_successor_and_comes_back_from_one_that_gives_up() -> None:
    with TemporaryDirectory(prefix="rgate-") as folder:
        path, config = Path(folder) / "admin.sock", Path(folder) / "config.yml"
        config.write_text(CONFIG.format(workers=1, path=path))
        with GatewayProcess(config) as gateway:
            first = gateway.process.pid
            assert eventually(lambda: process_at(path), "it answers", PROCESS_DEADLINE_SECONDS) == first
            second = gateway.upgrade(first)
            eventually(lambda: process_at(path) == second, "the successor answers", PROCESS_DEADLINE_SECONDS)
            config.write_text("routes: 1")
            os.kill(second, signal.SIGUSR2)
            gateway.output.until("no upgrade")
            eventually(lambda: process_at(path) == second, "it goes on", PROCESS_DEADLINE_SECONDS)
            gateway.stop_all(second)
        assert not path.exists()


BY_DEFAULT = """\
server: {{workers: {workers}}}
backends: [{{name: a, endpoints: ["http://127.0.0.1:9"]}}]
routes: [{{path_prefix: /, backend: a}}]
plugins: {{disable: [docker], stats: {{database: "sqlite:///{folder}/rgate.db"}}}}
"""


def command(*arguments: str, folder: Path) -> str:
    """The output of a command of rgate that knows no other gateways than those of `folder`."""
    return run_rgate(*arguments, environ={"RUNTIME_DIRECTORY": str(folder)}, cwd=folder, check=True).stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_socket_is_there_by_default_under_the_port_for_this_user_and_over_reload_and_upgrade(
    tmp_path: Path, workers: int
) -> None:
    with TemporaryDirectory(prefix="rgate-") as folder_name:
        folder, config = Path(folder_name), tmp_path / "config.yml"
        config.write_text(BY_DEFAULT.format(workers=workers, folder=tmp_path))
        with GatewayProcess(config, environ={"RUNTIME_DIRECTORY": folder_name}) as gateway:
            port = int(gateway.url.rpartition(":")[2])
            path = folder / f"{port}.sock"
            eventually(lambda: process_at(path), "it answers", PROCESS_DEADLINE_SECONDS)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert command("healthcheck", folder=folder) == "ready\n"
            assert command("reload", folder=folder) == "reloaded\n"
            assert command("drain", folder=folder) == "nothing is drained\n"
            assert command("stats", "--by", "endpoint", folder=folder).split() != []
            assert command("reload", "--url", f"http://127.0.0.1:{port}", folder=folder) == "reloaded\n"
            second = gateway.upgrade(gateway.process.pid)
            eventually(lambda: process_at(path), "the successor answers", PROCESS_DEADLINE_SECONDS)
            assert command("reload", folder=folder) == "reloaded\n"
            gateway.stop_all(second)
        assert os.listdir(folder) == []


def test_commands_work_behind_required_client_certificates(tmp_path: Path) -> None:
    pair = authority().issue("gateway.example")
    config = tmp_path / "config.yml"
    text = BY_DEFAULT.format(workers=1, folder=tmp_path)
    tls = f"tls: {{certificate: {pair.both}, client_certificates: {{ca: {authority().file}}}}}"
    config.write_text(text.replace("{workers: 1}", f"{{{tls}}}"))
    commands_work(config)


def test_commands_work_behind_the_proxy_protocol_and_nobody_is_local_there(tmp_path: Path) -> None:
    """Whoever reaches the port can say that he comes from loopback."""
    config = tmp_path / "config.yml"
    text = BY_DEFAULT.format(workers=1, folder=tmp_path).replace("workers: 1", "proxy_protocol: true")
    config.write_text(text.replace("{disable:", "{admin: {allow: [127.0.0.1]}, disable:"))

    def attack(url: str) -> None:
        for header in (b"PROXY TCP4 127.0.0.1 127.0.0.1 4711 80\r\n", b"PROXY UNKNOWN\r\n"):
            for path, status in (("/stats", 503), ("/-/config", 503), ("/-/live", 200)):
                with RawClient(url, host="localhost") as client:
                    client.send(header)
                    assert client.get(path).status == status, (header, path)

    commands_work(config, attack)


def commands_work(config: Path, also: Callable[[str], None] = lambda url: None) -> None:
    with TemporaryDirectory(prefix="rgate-") as name, GatewayProcess(config, environ={"RUNTIME_DIRECTORY": name}) as gateway:
        url = gateway.url
        eventually(lambda: process_at(Path(name) / f"{url.rpartition(':')[2]}.sock"), "it answers", PROCESS_DEADLINE_SECONDS)
        assert command("healthcheck", folder=Path(name)) == "ready\n"
        assert command("reload", folder=Path(name)) == "reloaded\n"
        assert command("drain", folder=Path(name)) == "nothing is drained\n"
        assert "SUCCESS" in command("stats", folder=Path(name))
        also(url)
        gateway.stop_all(gateway.process.pid)


def test_directory_that_cannot_be_used_is_told_once_by_all_workers_and_requests_are_served(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text(BY_DEFAULT.format(workers=2, folder=tmp_path))
    with GatewayProcess(
        config, launcher=[sys.executable, "-c", NOWHERE_ELSE]
    ) as gateway:  # a path that is too long, whoever the user is
        url = gateway.url
        with RawClient(url) as client:
            assert client.get("/-/live").status == 200
        gateway.stop_all(gateway.process.pid)
        told = [line for line in gateway.output.lines if "no admin socket" in line]
        assert len(told) == 1 and "set plugins.admin.address" in told[0], gateway.output.lines


NOWHERE_ELSE = """
import runpy, sys
import rgate.serving.runtime_dir
rgate.serving.runtime_dir.directories = lambda environ=None: ["/" + "x" * 120]
sys.argv = sys.argv[2:]
sys.orig_argv = [sys.executable, *sys.argv]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
