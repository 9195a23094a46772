"""The demo's backends as processes, as `rgate demo` starts them."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BACKENDS = Path(__file__).parents[2] / "backends"


@dataclass
class BackendProcess:
    name: str
    process: subprocess.Popen[str]
    start_line: str
    connection: http.client.HTTPConnection

    def ask(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        self.connection.request(method, path, **options)
        response = self.connection.getresponse()
        return response.status, response.read()


def start(name: str) -> Iterator[BackendProcess]:
    command = [sys.executable, str(BACKENDS / name / "app.py"), "--port", "0"]
    with subprocess.Popen(
        command, env={"INSTANCE": "one"}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout
        start_line = process.stdout.readline().rstrip()
        found = re.search(r" http://127\.0\.0\.1:(\d+)$", start_line)
        assert found, f"no address in the start line {start_line!r}"
        with closing(http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=10)) as connection:
            yield BackendProcess(name, process, start_line, connection)
        process.kill()


@pytest.fixture(params=["payment", "orders"])
def backend(request: pytest.FixtureRequest) -> Iterator[BackendProcess]:
    yield from start(request.param)


@pytest.fixture
def orders() -> Iterator[BackendProcess]:
    yield from start("orders")


def test_get_is_answered_with_message_service_name_and_path(backend: BackendProcess) -> None:
    status, body = backend.ask("GET", f"/api/{backend.name}/7?x=%2F")
    reply = json.loads(body)
    assert status == 200
    assert reply["message"] == f"Hello from {backend.name}"
    assert reply["service_name"] == backend.name
    assert (reply["method"], reply["path"]) == ("GET", f"/api/{backend.name}/7?x=%2F")


def test_orders_shows_its_instance(orders: BackendProcess) -> None:
    assert json.loads(orders.ask("GET", "/")[1])["instance"] == "one"
    assert orders.start_line.startswith("orders (one) listens on ")


@pytest.mark.parametrize("body", [b"x" * 100_000, iter([b"a", b"x" * 100_000])], ids=["length", "chunked"])
def test_request_body_is_read_to_its_end_so_the_connection_goes_on(orders: BackendProcess, body: object) -> None:
    status, _ = orders.ask("POST", "/", body=body)
    used = orders.connection.sock
    assert status == 200
    assert orders.ask("HEAD", "/") == (200, b"")
    assert json.loads(orders.ask("DELETE", "/1")[1])["method"] == "DELETE"
    assert orders.connection.sock is used, "the backend closed the connection"


def test_orders_delay_ms_is_waited_out_and_nonsense_ignored(orders: BackendProcess) -> None:
    began = time.monotonic()
    assert orders.ask("GET", "/?delay_ms=50")[0] == 200
    assert time.monotonic() - began >= 0.05
    assert orders.ask("GET", "/?delay_ms=-1")[0] == 200


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_backend_with_code_0_even_with_a_connection_open(backend: BackendProcess, how: signal.Signals) -> None:
    backend.ask("GET", "/")
    backend.process.send_signal(how)
    assert backend.process.wait(timeout=5) == 0


def test_signal_lets_requests_be_answered_that_come_before_others_have_noticed(orders: BackendProcess) -> None:
    assert orders.ask("GET", "/")[0] == 200
    orders.process.send_signal(signal.SIGTERM)
    told: list[str | None] = []
    while "close" not in told:  # http.client connects anew after an answer that closes
        orders.connection.request("POST", "/?delay_ms=20", body=b"x")
        response = orders.connection.getresponse()
        assert (response.status, json.loads(response.read())["method"]) == (200, "POST")
        told.append(response.getheader("Connection"))
    assert orders.ask("GET", "/?delay_ms=400")[0] == 200, "in flight when nothing has come for a while"
    assert orders.process.wait(timeout=5) == 0
