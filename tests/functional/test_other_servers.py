"""The gateway under other WSGI servers: what can be had there is had."""

from __future__ import annotations

import json
import re
import signal
import socket
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from rgate import ConfigError
from rgate.testing import ScriptedBackend, ScriptedConnection, http_response, make_environ

from ..support.processes import ChildProcess
from ..support.raw_client import RawClient
from ..support.waiting import eventually, passed

APP = "rgate.wsgi:app"
SERVERS = {
    "gunicorn": ["gunicorn", "--worker-class", "gthread", "--threads", "8", "--bind", "127.0.0.1:0", "--keep-alive", "5", APP],
    "waitress": ["waitress", "--listen", "127.0.0.1:0", APP],
    "granian": ["granian", "--interface", "wsgi", "--blocking-threads", "8", "--host", "127.0.0.1", "--port", "{port}", APP],
}


def echo(connection: ScriptedConnection) -> None:
    while (request := connection.read_request()) is not None:
        if request.line.startswith("GET /slow "):
            connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            passed(go_on)
            connection.send(b"4\r\nlast\r\n0\r\n\r\n")
        elif request.line.startswith("HEAD "):
            connection.send(http_response(b"", headers=[("X-Method", "HEAD")]))
        else:
            connection.send(http_response(request.body, headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]))


go_on = threading.Event()


def write_config(path: Path, backend: ScriptedBackend) -> Path:
    config = path / "config.yml"
    config.write_text(
        f"""
        routes:
          - {{path_prefix: /gone, backend: gone}}
          - {{path_prefix: /, backend: echo}}
        backends:
          - {{name: echo, endpoints: ["{backend.url}"]}}
          - {{name: gone, match_labels: [app=gone]}}
        plugins:
          disable: [docker]
          stats: {{database: "sqlite:///{path}/stats.db"}}
        """
    )
    return config


class Hosted:
    """A gateway under another server, as a process of its own."""

    def __init__(self, name: str, config: Path, backend: ScriptedBackend) -> None:
        self.name = name
        self.backend = backend
        # granian does not say which port it has taken, so it is given one, reserved until the end of the test.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reserved.bind(("127.0.0.1", 0))
        port = str(self._reserved.getsockname()[1])
        command = (argument.replace("{port}", port) for argument in SERVERS[name])
        self.server = ChildProcess(sys.executable, "-m", *command, environ={"RGATE_CONFIG": str(config)})
        self.url = self.server.output.until(r"http://127\.0\.0\.1:\d+")[0]
        eventually(self._accepts, f"{name} accepts connections")

    def _accepts(self) -> bool:
        try:
            RawClient(self.url).close()
        except ConnectionRefusedError:
            return False
        return True

    def stop(self) -> None:
        self.server.stop(signal.SIGTERM if self.name == "gunicorn" else signal.SIGINT)
        self.server.output.wait_for_end()
        self._reserved.close()


@pytest.fixture(scope="module", params=SERVERS)
def hosted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    with ScriptedBackend(echo) as backend:
        folder = tmp_path_factory.mktemp(request.param)
        running = Hosted(request.param, write_config(folder, backend), backend)
        try:
            yield running
        finally:
            running.stop()
        with closing(sqlite3.connect(folder / "stats.db")) as database:
            (table,) = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name LIMIT 1").fetchone()
            assert table, "the plugins' lifespan ended with the process, and has written what was counted"


@pytest.fixture
def client(hosted: Hosted) -> Iterator[RawClient]:
    with RawClient(hosted.url, host="localhost") as connected:
        yield connected


def test_hosted_request_reaches_the_backend(hosted: Hosted, client: RawClient) -> None:
    response = client.get("/a%2Fb/%7Ec?q=%31", "X-One: 1", "Connection: X-Two", "X-Two: 2", "Forwarded: for=evil", "Cookie: a=1")
    assert response.status == 200
    request = hosted.backend.requests[-1]
    raw = "/a/b/~c" if hosted.name == "granian" else "/a%2Fb/%7Ec"  # it passes on the decoded path only
    assert request.line == f"GET {raw}?q=%31 HTTP/1.1"
    assert request.values("Host") == ["localhost"]
    assert sorted(name for name, _ in request.headers) == [
        "Cookie", "Host", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto", "X-One",
    ]  # fmt: skip
    assert re.fullmatch(r"1\.1 rgate \([0-9a-f]+\)", request.values("Via")[0])
    assert request.values("X-Forwarded-For") == ["127.0.0.1"]


def test_hosted_path_is_read_in_one_way(hosted: Hosted, client: RawClient) -> None:
    response = client.get("/gone%2Fx")
    found = {"granian": "no_endpoint"}  # which passes on the decoded path only, so it is /gone/x
    assert json.loads(response.body)["reason"] == found.get(hosted.name, "ambiguous_path")
    assert json.loads(client.get("/gone%252Fx").body)["reason"] == "ambiguous_path"
    for sent, raw in (("/a/./b/.?x=/./", "/a/b/?x=/./"), ("/a//b;c", "/a//b;c")):
        assert client.get(sent).status == 200
        assert hosted.backend.requests[-1].line == f"GET {raw} HTTP/1.1"


def test_hosted_response_reaches_the_client(client: RawClient) -> None:
    client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
    response = client.response()
    assert (response.body, response.values("Set-Cookie")) == (b"hello", ["a=1", "b=2"])


def test_hosted_body_of_many_bytes_goes_both_ways(client: RawClient) -> None:
    body = bytes(range(256)) * 4_000
    client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body), body)
    assert client.response().body == body


def test_hosted_chunked_body_goes_on(hosted: Hosted, client: RawClient) -> None:
    client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    body = client.response().body
    assert body.removeprefix(b"5\r\n").removesuffix(b"\r\n0\r\n\r\n") == b"hello"


def test_hosted_response_streams(hosted: Hosted, client: RawClient) -> None:
    go_on.clear()
    client.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.until(b"first").endswith(b"first"), "the first block comes before the last is sent"
    go_on.set()
    assert b"last" in client.until(b"last")


def test_hosted_head_has_no_body(client: RawClient) -> None:
    response = client.get(method="HEAD")
    assert (response.status, response.value("X-Method")) == (200, "HEAD")


@pytest.mark.parametrize(
    ("target", "status", "reason"),
    [("/gone", 503, "no_endpoint"), ("/a/%2e%2e/b", 400, "bad_request"), ("/%00", 400, "bad_request")],
)
def test_hosted_faults_have_the_common_shape(client: RawClient, target: str, status: int, reason: str) -> None:
    response = client.get(target)
    answer = json.loads(response.body)
    assert (response.status, answer["status_code"], answer["reason"]) == (status, status, reason)


def test_hosted_path_is_one_view_or_refused(hosted: Hosted, client: RawClient) -> None:
    """Where the server shows plugins another path than the one that was sent, the request is refused."""
    response = client.get("//gone")
    assert response.status in (503, 400)


def test_hosted_local_routes_answer(client: RawClient) -> None:
    assert json.loads(client.get("/stats").body).keys() >= {"requests_count", "latency_ms"}


# In this process


@pytest.fixture
def wsgi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., object]]:
    with ScriptedBackend() as backend:
        monkeypatch.setenv("RGATE_CONFIG", str(write_config(tmp_path, backend)))
        import importlib

        import rgate.wsgi

        module = importlib.reload(rgate.wsgi)
        yield module.app
        module.app.close()  # type: ignore[attr-defined]


def test_hosted_gateway_starts_with_the_first_request_and_ends_when_closed(wsgi: Callable[..., object]) -> None:
    gateway = wsgi._gateway  # type: ignore[attr-defined]
    assert not gateway.table.discovery.is_running
    statuses: list[str] = []

    def start_response(status: str, headers: object, exc_info: object = None) -> Callable[[bytes], object]:
        statuses.append(status)
        return lambda block: None

    for _ in range(2):
        environ = make_environ("/")
        del environ["rgate.exchange"]
        assert wsgi(environ, start_response) == [b"ok"]
    assert gateway.table.discovery.is_running
    wsgi.close()  # type: ignore[attr-defined]
    assert not gateway.table.discovery.is_running
    wsgi.close()  # type: ignore[attr-defined]
    assert statuses == ["200 OK"] * 2


def test_hosted_gateway_with_a_bad_config_says_so_when_it_is_loaded(tmp_path: Path) -> None:
    from rgate.wsgi import HostedGateway

    with pytest.raises(ConfigError, match="no such file"):
        HostedGateway(str(tmp_path / "missing.yml"))
