"""A changed config, in real processes: what an operator does, what clients see."""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rgate.testing import ScriptedBackend, http_response

from ..support.processes import GatewayProcess
from ..support.raw_client import RawClient
from ..support.waiting import PROCESS_DEADLINE_SECONDS, eventually

ROUTE = "routes: [{{path_prefix: /{path}, backend: one}}]\n"
REST = """
backends: [{{name: one, endpoints: ["{url}"]}}]
server: {{workers: {workers}, reload_on_change: {watch}, max_requests_per_connection: 1000000}}
plugins: {{admin: {{allow: [127.0.0.1]}}, stats: {{database: "sqlite:///{folder}/rgate.db"}}}}
"""


class Config:
    """config.yml, with one route to one backend."""

    def __init__(self, folder: Path, url: str, workers: int, watch: bool) -> None:
        self.path = folder / "config.yml"
        self._rest = REST.format(url=url, workers=workers, watch=str(watch).lower(), folder=folder)
        self.write("a")

    def write(self, path: str, more: str = "") -> None:
        """Replace the file, as editors do."""
        new = self.path.with_name("config.yml.new")
        new.write_text(ROUTE.format(path=path) + self._rest + more)
        new.replace(self.path)


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    with ScriptedBackend(http_response(b"hello")) as backend:
        yield backend


@contextmanager
def live(config: Path) -> Iterator[GatewayProcess]:
    """A gateway process that must end with exit code 0 at SIGTERM."""
    with GatewayProcess(config) as gateway:
        assert gateway.url
        yield gateway
        assert gateway.stop() == 0, gateway.output.lines


def get(running: GatewayProcess, path: str) -> int:
    """The status of a request on a connection of its own."""
    with RawClient(running.url) as client:
        return client.get(path).status


def ready(running: GatewayProcess) -> dict[str, str]:
    with urllib.request.urlopen(f"{running.url}/-/ready", timeout=30) as response:
        notices: dict[str, str] = json.load(response)["warnings"]
        return notices


@pytest.mark.parametrize("workers", [1, 2])
def test_changed_file_is_taken_up_by_all_without_being_asked(backend: ScriptedBackend, tmp_path: Path, workers: int) -> None:
    config = Config(tmp_path, backend.url, workers, watch=True)
    with live(config.path) as running:
        assert (get(running, "/a"), get(running, "/b")) == (200, 404)
        config.write("b")
        running.output.containing("config.yml reloaded")
        assert [get(running, "/b") for _ in range(8)] == [200] * 8
        assert [get(running, "/a") for _ in range(8)] == [404] * 8


@pytest.mark.parametrize("workers", [1, 2])
def test_reload_command_tells_how_it_went(backend: ScriptedBackend, tmp_path: Path, workers: int) -> None:
    config = Config(tmp_path, backend.url, workers, watch=False)
    with live(config.path) as running:
        config.write("c", "nonsense: true\n")
        done = running.reload()
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"{config.path}:6: nonsense: unknown key 'nonsense'"), done.stderr
        assert [get(running, "/a") for _ in range(8)] == [200] * 8
        assert [ready(running)["config"] for _ in range(4)] == [
            f"refused, the config before stays active: {done.stderr.strip()}"
        ] * 4

        config.path.write_text(
            config.path.read_text().replace("nonsense: true\n", "").replace("server: {", "server: {threads: 3, ")
        )
        done = running.reload()
        stays = "server.threads stays 8 until a restart (the config says 3)"
        assert (done.returncode, done.stdout, done.stderr) == (0, f"reloaded\n{stays}\n", "")
        assert [ready(running) for _ in range(4)] == [{"restart": stays}] * 4
        assert [get(running, "/c") for _ in range(8)] == [200] * 8
        running.output.containing(stays)


def test_bad_file_is_told_once_and_what_mends_it_is_taken_up(backend: ScriptedBackend, tmp_path: Path) -> None:
    config = Config(tmp_path, backend.url, 1, watch=True)
    with live(config.path) as running:
        config.write("b", "nonsense: true\n")
        running.output.containing("unknown key 'nonsense'")
        assert (get(running, "/a"), get(running, "/b")) == (200, 404)
        config.write("b")
        running.output.containing("config.yml reloaded")
        assert get(running, "/b") == 200
        assert len([line for line in running.output.lines if "refused" in line]) == 1


def test_worker_that_takes_anothers_place_has_the_config_in_force(backend: ScriptedBackend, tmp_path: Path) -> None:
    config = Config(tmp_path, backend.url, 2, watch=False)
    with live(config.path) as running:
        config.write("b")
        running.hang_up()
        running.output.containing("config.yml reloaded")
        before = running.workers()
        for worker in before:
            os.kill(worker, signal.SIGKILL)
        eventually(lambda: len(running.workers() - before) == 2, "two others take their places", PROCESS_DEADLINE_SECONDS)
        assert [get(running, "/b") for _ in range(8)] == [200] * 8


@pytest.mark.parametrize("workers", [1, 2])
def test_clients_notice_nothing_of_many_reloads_and_every_request_is_counted(
    backend: ScriptedBackend, tmp_path: Path, workers: int
) -> None:
    config = Config(tmp_path, backend.url, workers, watch=False)
    with live(config.path) as running:
        over = threading.Event()
        statuses: list[int] = []

        def ask() -> None:
            while not over.is_set():
                with RawClient(running.url) as client:
                    closes = False
                    while not (over.is_set() or closes):
                        response = client.get("/a")
                        statuses.append(response.status)
                        closes = response.value("Connection") == "close"  # after max_requests_per_connection

        clients = [threading.Thread(target=ask) for _ in range(2)]
        for client in clients:
            client.start()
        for number in range(1, 21):
            config.write("a", f"default_response: {{body: '{number}'}}\n")
            running.hang_up()
            running.output.containing("config.yml reloaded", times=number)
        over.set()
        for client in clients:
            client.join()
        assert set(statuses) == {200}
        with urllib.request.urlopen(f"{running.url}/stats", timeout=30) as response:
            assert json.load(response)["requests_count"] == {"success": len(statuses), "error": 0}
