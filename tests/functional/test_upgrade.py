"""One gateway takes over from another, and systemd's part in that; real processes, real connections."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns

import pytest

from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.processes import GatewayProcess, Traffic, listening_socket, service_manager
from ..support.raw_client import RawClient
from ..support.waiting import PROCESS_DEADLINE_SECONDS, eventually

# As systemd does it: the socket as descriptor 3, and the process that it is for.
ACTIVATED = (
    sys.executable,
    "-c",
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True);"
    "os.execvpe(sys.argv[2], sys.argv[2:], {**os.environ, 'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'})",
)


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    with ScriptedBackend(http_response(b"hello")) as backend:
        yield backend


def written(tmp_path: Path, backend: ScriptedBackend, workers: int = 1) -> Path:
    config = tmp_path / "config.yml"
    config.write_text(f"""
routes: [{{path_prefix: /hello, backend: hello}}]
backends: [{{name: hello, endpoints: ["{backend.url}"]}}]
server: {{workers: {workers}}}
plugins: {{disable: [docker], stats: {{database: "sqlite:///{tmp_path}/rgate.db"}}}}
""")
    return config


@pytest.mark.parametrize(("workers", "upgrades"), [(1, 2), (2, 1)])
def test_upgrades_lose_nothing(workers: int, upgrades: int, tmp_path: Path, backend: ScriptedBackend) -> None:
    with GatewayProcess(written(tmp_path, backend, workers)) as gateway:
        url = gateway.url
        serving = gateway.process.pid
        with Traffic(url, "/hello", clients=4) as traffic:
            for _ in range(upgrades):
                before = traffic.count
                eventually(lambda before=before: traffic.count > before + 50, "requests are answered")
                serving = gateway.upgrade(serving)
            gateway.output.until(" stopped$")
            assert gateway.wait() == 0
            before = traffic.count
            eventually(lambda: traffic.count > before + 50, "the last one serves")
        assert not traffic.lost
        assert (traffic.refused, set(traffic.answers)) == (0, {200})
        with RawClient(url, host="localhost") as client:
            stats = client.get("/stats").body
        assert f'"success": {traffic.count}'.encode() in stats, "both processes count into one database"
        gateway.stop_all(serving)


@pytest.mark.parametrize("workers", [1, 2])
def test_gateway_that_has_taken_over_is_on_its_own(workers: int, tmp_path: Path) -> None:
    """Not a child of the one before, as systemd waits for the end of its own children only, and not ended with it."""
    answer = threading.Event()

    def script(connection: ScriptedConnection) -> None:
        while request := connection.read_request():
            if b"/hello/slow" in request.head:
                answer.wait(PROCESS_DEADLINE_SECONDS)
            connection.send(http_response(b"hello"))

    with ScriptedBackend(script) as backend, GatewayProcess(written(tmp_path, backend, workers)) as gateway:
        url = gateway.url
        with RawClient(url) as slow:
            slow.send(b"GET /hello/slow HTTP/1.1\r\nHost: x\r\n\r\n")
            backend.wait_for_requests(1)
            serving = gateway.upgrade(gateway.process.pid)
            assert f"PPid:\t{gateway.process.pid}\n" not in Path(f"/proc/{serving}/status").read_text()
            os.kill(gateway.process.pid, signal.SIGTERM)
            if workers == 1:
                gateway.output.until(" stopping, ")
            answer.set()
            assert slow.response().body == b"hello"
        assert gateway.wait() == 0
        with RawClient(url) as quick:
            assert quick.get("/hello").body == b"hello"
        gateway.stop_all(serving)


def test_upgrade_that_fails_leaves_the_running_gateway_alone(tmp_path: Path, backend: ScriptedBackend) -> None:
    config = written(tmp_path, backend)
    with GatewayProcess(config) as gateway:
        url = gateway.url
        config.write_text("routes: nonsense")
        os.kill(gateway.process.pid, signal.SIGUSR2)
        gateway.output.until(r"config.yml:1: routes")
        assert gateway.output.until(r"no upgrade: process \d+ ended with exit code 2; this gateway goes on")
        with RawClient(url) as client:
            assert client.get("/hello").body == b"hello"
        assert gateway.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_socket_activation_serves_what_it_is_given_and_tells_systemd(
    workers: int, tmp_path: Path, backend: ScriptedBackend
) -> None:
    with listening_socket() as listener, service_manager(tmp_path) as (manager, environ):
        port = listener.getsockname()[1]
        with RawClient(f"http://127.0.0.1:{port}") as early:
            early.sock.settimeout(PROCESS_DEADLINE_SECONDS)
            early.send(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
            config = written(tmp_path, backend, workers)
            fds = {"pass_fds": (listener.fileno(),)}
            with GatewayProcess(config, launcher=[*ACTIVATED, str(listener.fileno())], environ=environ, **fds) as gateway:
                assert early.response().body == b"hello", "a client that came before rgate is served"
                assert gateway.url.endswith(f":{port}")
                assert manager.recv(100) == b"READY=1"
                serving = gateway.upgrade(gateway.process.pid)
                assert manager.recv(100) == f"MAINPID={serving}\nSTATUS=".encode(), "systemd listens to the main process alone"
                with RawClient(f"http://127.0.0.1:{port}") as client:
                    assert client.get("/hello").status == 200
                gateway.stop_all(serving)
                assert manager.recv(100) == b"STOPPING=1"
                with RawClient(f"http://127.0.0.1:{port}") as waiting:
                    listener.accept()[0].close()
                    assert waiting.is_closed()


@pytest.mark.parametrize("workers", [1, 2])
def test_systemd_is_told_when_a_wanted_reload_begins_and_how_it_ends(
    workers: int, tmp_path: Path, backend: ScriptedBackend
) -> None:
    config = written(tmp_path, backend, workers)
    config.write_text(config.read_text().replace("server: {", "server: {reload_on_change: false, "))
    with service_manager(tmp_path) as (manager, environ), GatewayProcess(config, environ=environ) as gateway:
        assert manager.recv(100) == b"READY=1"

        def reload() -> str:
            wanted_at = monotonic_ns() // 1_000
            os.kill(gateway.process.pid, signal.SIGHUP)
            begins, usec = manager.recv(100).decode().rsplit("=", 1)
            assert begins == "RELOADING=1\nMONOTONIC_USEC" and int(usec) >= wanted_at, "it is the one that was wanted"
            return manager.recv(1_000).decode()

        assert reload() == "READY=1\nSTATUS="
        config.write_text(config.read_text().replace("backend: hello", "backend: missing"))
        refused = reload()
        assert refused.startswith("READY=1\nSTATUS=refused, the config before stays active: ")
        assert "routes[0].backend: no backend named 'missing'" in refused


def test_sockets_that_cannot_be_served_are_a_clear_error(tmp_path: Path, backend: ScriptedBackend) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.set_inheritable(True)
        fds = {"pass_fds": (sock.fileno(),)}
        with GatewayProcess(written(tmp_path, backend), launcher=[*ACTIVATED, str(sock.fileno())], **fds) as gateway:
            assert gateway.output.until("LISTEN_FDS: descriptor 3 is not a listening TCP socket; write ListenStream=PORT")
            assert gateway.wait() == 2
