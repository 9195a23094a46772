"""The command line: its output, its exit codes, and a gateway from its start line to the last signal."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import logging
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rgate import ConfigProblem, PluginError, RgateError, hookimpl
from rgate.cli import demo
from rgate.cli.console import Console
from rgate.cli.main import main
from rgate.discovery import Change
from rgate.plugins import BUILTIN
from rgate.process.runner import serve, start_line
from rgate.testing import ScriptedBackend, ScriptedConnection, closed_port_url, http_response, make_gateway, respond_with
from rgate.version import VERSION

from ..support.processes import ROOT, GatewayProcess, Output, run_rgate
from ..support.waiting import PROCESS_DEADLINE_SECONDS


def config(tmp_path: Path, url: str = "http://127.0.0.1:9", more: str = "") -> str:
    """A config file with one route to one fixed endpoint, and nothing that reaches beyond this machine."""
    path = tmp_path / "config.yml"
    path.write_text(f"""
routes: [{{path_prefix: /orders, backend: orders}}]
backends: [{{name: orders, endpoints: ["{url}"]}}]
plugins:
  disable: [docker]
  stats: {{database: "sqlite:///{tmp_path}/rgate.db"}}
{more}""")
    return str(path)


# Commands that do one thing


@pytest.mark.parametrize("command", [["rgate.py"], ["-m", "rgate"]], ids=" ".join)
def test_version_is_printed_by_every_way_to_start(command: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, *command, "--version"], cwd=ROOT, capture_output=True, text=True, timeout=PROCESS_DEADLINE_SECONDS
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"rgate {VERSION} (Python ")


@pytest.mark.parametrize("command", [[], ["check"], ["plugins"], ["stats"], ["demo"]], ids=str)
def test_help_has_examples_and_fits_a_terminal(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage:" in shown
    assert max(map(len, shown.splitlines())) <= 80, shown
    if not command:
        assert "rgate check config.yml" in shown and "path_prefix:" in shown


def test_check_good_config_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path)
    assert main(["check", path]) == 0
    assert capsys.readouterr().out == f"{path}: OK (1 route, 1 backend)\n"


def test_check_shipped_config_needs_no_network(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def connect(*args: object) -> None:
        raise AssertionError(f"check connects to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.chdir(ROOT)
    assert main(["check"]) == 0
    assert capsys.readouterr().out == "config.yml: OK (2 routes, 2 backends)\n"


def test_check_bad_config_prints_every_problem_on_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, more="servr: {}\n").replace("\\", "/")
    Path(path).write_text(Path(path).read_text().replace("backend: orders", "backend: ordres"))
    assert main(["check", path]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(line.startswith(f"{path}:") for line in err.splitlines()), err
    assert "ordres" in err and "servr" in err and len(err.splitlines()) >= 2


def test_check_as_json_has_the_problems_in_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, more="servr: {}\n")
    assert main(["check", "--json", path]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert (answer["file"], answer["ok"]) == (path, False)
    assert answer["problems"][0]["location"].startswith(path) and "servr" in answer["problems"][0]["message"]
    assert main(["check", "--json", config(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []


def test_check_prints_probable_mistakes_and_succeeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, more="server: {host: 192.0.2.1}\n")
    Path(path).write_text(Path(path).read_text().replace("backends: [", "backends: [{name: b, match_labels: [a=b]}, "))
    assert main(["check", path]) == 0
    unused, elsewhere, ok = capsys.readouterr().out.splitlines()
    assert unused.startswith(f"{path}:") and unused.endswith("backends[0]: no route leads to 'b', so it is not used")
    assert elsewhere == f"{path}: server.host: '192.0.2.1' is not an address of this machine"
    assert ok == f"{path}: OK (1 route, 2 backends)"
    assert main(["check", "--json", path]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ok"], answer["problems"], len(answer["warnings"])) == (True, [], 2)


def test_check_chain_that_cannot_be_built_is_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object) -> None:
        raise PluginError("plugin 'x': wrap() raised")

    monkeypatch.setattr("rgate.cli.main.build", build)
    path = config(tmp_path)
    assert main(["check", path]) == 2
    assert capsys.readouterr().err == f"{path}: plugin 'x': wrap() raised\n"


def test_plugins_lists_all_that_are_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0
    shown = capsys.readouterr().out
    for name in BUILTIN:
        assert re.search(rf"^{name} +rgate +{re.escape(VERSION)} +yes +\w", shown, re.MULTILINE), shown
    assert "CHAIN" not in shown


def test_plugins_with_a_config_shows_the_chain_of_every_route(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path)
    assert main(["plugins", "--config", path]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^docker .* no +unknown until it is active$", shown, re.MULTILINE), shown
    chain = "stats → normalize → faults → routing → bulkhead → retry → selection → websocket → forwarder"
    assert re.search(rf"^/orders +{chain}$", shown, re.MULTILINE), shown
    assert main(["plugins", "--config", path, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["chains"]["/orders"][-2:] == ["websocket", "forwarder"]
    assert {plugin["name"]: plugin["active"] for plugin in answer["plugins"]} | {"docker": False} == {
        name: name != "docker" for name in BUILTIN
    } | {plugin["name"]: plugin["active"] for plugin in answer["plugins"] if not plugin["builtin"]}


# Mistakes: one clear line, exit code 2, no traceback


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "no-such.yml"], "no-such.yml: no such file"),
        (["--config", "."], ".: is a directory"),
        (["--port", "65536"], "65536 is not in the range"),
        (["--log-level", "loud"], "'loud' is not one of"),
        (["config.yml"], "rgate --config config.yml"),
        (["--port", "1", "check"], "--port is an option of serving"),
        (["chekc"], "No such command 'chekc'"),
        (["check", "no-such.yml"], "no-such.yml: no such file"),
        (["plugins", "--config", "no-such.yml"], "no-such.yml: no such file"),
    ],
    ids=str,
)
def test_mistake_is_printed_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("rgate.log.start", lambda *_: None)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert words in err and "Traceback" not in err, err
    assert out == ""


def test_access_log_of_a_disabled_plugin_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rgate.log.start", lambda *_: None)
    path = Path(config(tmp_path))
    path.write_text(path.read_text().replace("[docker]", "[docker, access_log]"))
    assert main(["--config", str(path), "--access-log"]) == 2
    assert capsys.readouterr().err == "--access-log: the plugin access_log is disabled in the config\n"


def test_port_that_is_taken_is_reported_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run_rgate("--config", config(tmp_path), "--port", port)
    assert ended.returncode == 2
    assert (
        ended.stderr
        == f"cannot listen on 127.0.0.1 port {port}: the port is taken; choose another with --port (0 takes a free one)\n"
    )
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied"), "on 127.0.0.1 port 0: no permission; choose a port from 1024 on"),
        (PermissionError(13, "Permission denied"), "(deploy/rgate.socket), or give rgate the capability CAP_NET_BIND_SERVICE"),
        (OSError(99, "Cannot assign requested address"), "this is not an address of this machine; choose another with --host"),
        (OSError(23, "Too many open files in system"), "port 0: Too many open files in system"),
        (socket.gaierror(-2, "Name or service not known"), "on '127.0.0.1': no such host"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_listening_that_fails_says_why_and_what_to_do(error: OSError, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(*_: object) -> None:
        raise error

    monkeypatch.setattr("rgate.serving.listeners.listen", listen)
    with pytest.raises(RgateError, match=re.escape(words)):
        serve(make_gateway({"server": {"port": 0}}), Console(io.StringIO()))


# A gateway in the foreground


def running(*arguments: str, cwd: Path = ROOT) -> GatewayProcess:
    """`rgate` with these arguments, stdout and stderr apart."""
    return GatewayProcess(None, *arguments, cwd=cwd, apart=True)


def port_in(output: Output) -> int:
    return int(output.until(r"^rgate .* listening on http://127\.0\.0\.1:(\d+) ")[1])


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROCESS_DEADLINE_SECONDS)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serving_from_start_line_to_signal(number: int, tmp_path: Path) -> None:
    with (
        ScriptedBackend(http_response(b"hello")) as backend,
        running("--port", "0", "--config", config(tmp_path, backend.url)) as gateway,
    ):
        start = gateway.output.until("listening")
        assert re.fullmatch(
            rf"rgate {re.escape(VERSION)} listening on http://127\.0\.0\.1:\d+ \(1 route, 1 backend, 1 endpoint\)", start.string
        )
        assert gateway.output.until("^ROUTE").string.split() == ["ROUTE", "BACKEND", "ENDPOINT"]
        assert gateway.output.until("^/orders").string.split() == ["/orders", "orders", backend.url]
        port = int(start.string.split(":")[2].split()[0])
        assert get(port, "/orders") == (200, b"hello")
        assert gateway.stop(number) == 0
        stopping = gateway.errors.until(r"INFO rgate\.process: stopping, ")
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", stopping.string)
        assert gateway.errors.until("INFO rgate\\.process: stopped$")
        gateway.output.until("^all others")
        assert gateway.output.unread() == [], "everything else goes to the log"


@pytest.mark.parametrize("form", ["text", "json"])
def test_access_log_has_stdout_to_itself(form: str, tmp_path: Path) -> None:
    arguments = ["--access-log", *([form] if form == "json" else []), "--port", "0"]
    with ScriptedBackend() as backend, running(*arguments, "--config", config(tmp_path, backend.url)) as gateway:
        assert get(port_in(gateway.errors), "/orders?x=1")[0] == 200
        first = gateway.output.until("").string
        if form == "json":
            assert json.loads(first)["target"] == "/orders?x=1"
        else:
            assert '"GET /orders?x=1" 200 2 ' in first
        assert gateway.stop() == 0
        assert gateway.errors.until("stopped$")


def held(release: threading.Event) -> Callable[[ScriptedConnection], None]:
    """A script that answers once released."""

    def script(connection: ScriptedConnection) -> None:
        while connection.read_request():
            assert release.wait(PROCESS_DEADLINE_SECONDS)
            connection.send(http_response(b"late"))

    return script


def test_signal_lets_requests_in_flight_finish(tmp_path: Path) -> None:
    release, answers = threading.Event(), queue.Queue[tuple[int, bytes]]()
    with ScriptedBackend(held(release)) as backend, running("--port", "0", "--config", config(tmp_path, backend.url)) as gateway:
        port = port_in(gateway.output)
        asking = threading.Thread(target=lambda: answers.put(get(port, "/orders")), daemon=True)
        asking.start()
        backend.wait_for_requests(1)
        gateway.process.send_signal(signal.SIGTERM)
        gateway.errors.until("stopping, ")
        release.set()
        assert answers.get(timeout=PROCESS_DEADLINE_SECONDS) == (200, b"late")
        assert gateway.wait() == 0


def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    release = threading.Event()
    with ScriptedBackend(held(release)) as backend, running("--port", "0", "--config", config(tmp_path, backend.url)) as gateway:
        port = port_in(gateway.output)

        def ask() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                get(port, "/orders")

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        backend.wait_for_requests(1)
        gateway.process.send_signal(signal.SIGINT)
        gateway.errors.until("stopping, ")
        assert gateway.stop(signal.SIGTERM) == 128 + signal.SIGTERM
        release.set()
        asking.join(PROCESS_DEADLINE_SECONDS)


class Sensed(io.StringIO):
    """A stream that calls back when a line with these words has been written to it."""

    def __init__(self, words: str, callback: Callable[[], object]) -> None:
        super().__init__()
        self.words, self.callback = words, callback

    def write(self, text: str) -> int:
        count = super().write(text)
        if self.words in text:
            self.callback()
        return count


def test_serve_prints_hints_and_logs_changes_after_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    gateway = make_gateway({"server": {"port": 0}}, {"orders": respond_with(), "empty": ()})
    change = Change("!", "orders", ("orders-9",), "no address")

    def tell() -> None:
        (callback,) = gateway.table.discovery._on_change

        def change_and_stop() -> None:
            callback([change])
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=change_and_stop).start()

    stream = Sensed("last hint", tell)
    callbacks_before = signal.getsignal(signal.SIGTERM)
    serve(gateway, Console(stream), ["try {url}/x", "last hint"])
    lines = stream.getvalue().splitlines()
    url = re.search(r"http://\S+", lines[0])
    assert url is not None
    assert f"try {url[0]}/x" in lines
    assert lines[-1] == "last hint"
    told = [record for record in caplog.records if record.name != "rgate.discovery.changes"]
    logged = [(record.name, record.levelname, record.getMessage()) for record in told]
    assert logged[0] == ("rgate.endpoints", "WARNING", "backend orders: orders-9 is not usable: no address")
    assert told[0].__dict__["fields"]["endpoints"] == ("orders-9",)
    assert logged[-2][2].startswith("stopping") and logged[-1] == ("rgate.process", "INFO", "stopped")
    assert any("none yet: requests get a 503" in line for line in lines)
    assert signal.getsignal(signal.SIGTERM) is callbacks_before


# stats


REPORT = {
    "requests_count": {"success": 1234, "error": 5},
    "latency_ms": {"average": 1.25, "p95": 3.0, "p99": 1500.5},
    "since": "2026-01-31T12:00:00Z",
    "groups": [
        {
            "route": None,
            "status": 404,
            "requests_count": {"success": 0, "error": 5},
            "latency_ms": {"average": 0.125, "p95": 0.5, "p99": 0.5},
        }
    ],
    "storage": {"state": "locked", "lost": 3, "unsaved": 7, "begun": {"at": "2026-01-31T12:00:00Z", "because": "corrupt"}},
}


def test_stats_of_a_gateway_are_asked_for_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedBackend(http_response(json.dumps(REPORT).encode())) as gateway:
        assert main(["stats", "--url", gateway.url, "--by", "route,status", "--since", "1h"]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert main(["stats", "--url", f"127.0.0.1:{gateway.port}/elsewhere", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == REPORT
    assert [request.line.split()[1] for request in gateway.requests] == ["/stats?by=route%2Cstatus&since=1h", "/elsewhere"]
    assert shown[0] == "Since 2026-01-31T12:00:00Z"
    assert [line.split("  ") and line.split() for line in shown[1:4]] == [
        ["ROUTE", "STATUS", "SUCCESS", "ERROR", "AVERAGE", "P95", "P99"],
        ["-", "404", "0", "5", "0.12", "ms", "0.50", "ms", "0.50", "ms"],
        ["all", "1,234", "5", "1.25", "ms", "3.00", "ms", "1,500.50", "ms"],
    ]
    assert shown[4:] == [
        "The database is locked: 7 requests unsaved, 3 lost",
        "It was recreated at 2026-01-31T12:00:00Z: corrupt",
    ]


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (
            http_response(b'{"status_code": 400, "body": "by=x is not known"}', "400 Bad Request"),
            "answers 400: by=x is not known",
        ),
        (http_response(b"<h1>404</h1>", "404 Not Found"), "answers 404: there are no statistics of rgate"),
        (http_response(b"<h1>hello</h1>"), "is not a report of rgate"),
        (http_response(b'{"status_code": 200}'), "is not a report of rgate"),
        (b"SSH-2.0-OpenSSH\r\n", "no gateway answers at"),
    ],
    ids=["refused", "elsewhere", "html", "json", "ssh"],
)
def test_stats_of_something_else_are_an_error(response: bytes, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(response)

    with ScriptedBackend(script) as gateway:
        assert main(["stats", "--url", gateway.url]) == 1
    out, err = capsys.readouterr()
    assert words in err and len(err.splitlines()) == 1 and out == ""


def test_stats_of_nothing_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with closed_port_url() as url:
        assert main(["stats", "--url", url]) == 1
    assert (
        capsys.readouterr().err == f"no gateway answers at {url}/stats: Connection refused; is it running? --url names another\n"
    )
    assert main(["stats", "--url", "ftp://x"]) == 1
    assert "is not the URL of a gateway" in capsys.readouterr().err


def test_stats_of_a_database_with_and_without_a_gateway(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedBackend() as backend, running("--port", "0", "--config", config(tmp_path, backend.url)) as gateway:
        assert get(port_in(gateway.output), "/orders")[0] == 200
        assert gateway.stop() == 0
    for database in (str(tmp_path / "rgate.db"), f"sqlite:///{tmp_path}/rgate.db"):
        assert main(["stats", "--database", database, "--by", "route", "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["requests_count"] == {"success": 1, "error": 0}
        assert answer["groups"][0]["route"] == "/orders"
    assert main(["stats", "--database", str(tmp_path / "none.db")]) == 1
    assert not (tmp_path / "none.db").exists()
    assert main(["stats", "--database", str(tmp_path / "rgate.db"), "--by", "nothing"]) == 1
    assert "by=nothing is not known" in capsys.readouterr().err


# demo


def test_demo_starts_tells_and_ends_everything(tmp_path: Path) -> None:
    with running("demo", "--port", "0", cwd=tmp_path) as gateway:
        port = port_in(gateway.output)
        pids = [int(pid) for pid in gateway.output.until(r"^  kill ((?:\d+ ?)+)$")[1].split()]
        assert [get(port, path)[0] for path in ("/api/payment", "/api/orders", "/nowhere", "/stats")] == [200, 200, 403, 200]
        answers = {json.loads(get(port, "/api/orders")[1])["body"]["instance"] for _ in range(40)}
        assert answers == {"orders-1", "orders-2"}
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        assert {gateway.errors.until(r"backend orders: - (orders-\d) .*ended with exit code")[1] for _ in pids} == {
            "orders-1",
            "orders-2",
        }
        assert get(port, "/api/orders")[0] == 503
        assert get(port, "/api/payment")[0] == 200
        assert gateway.stop(signal.SIGINT) == 0
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children")
    assert not children.exists()


def test_demo_every_curl_line_is_one_that_works(tmp_path: Path) -> None:
    with running("demo", "--port", "0", cwd=tmp_path) as gateway:
        port = port_in(gateway.output)
        lines = [gateway.output.until(r"^  curl -\w+ (\S+)$")[1] for _ in range(4)]
        assert all(line.startswith(f"http://127.0.0.1:{port}/") for line in lines), lines
        assert gateway.stop() == 0


def test_demo_processes_end_with_the_context() -> None:
    with demo.backends(docker=False) as (make_registry, hints, _):
        pids = [int(pid) for hint in hints if "kill" in hint for pid in hint.split()[1:]]
        assert "local_processes" in make_registry().names
        assert len(pids) == 2
        for pid in pids:
            os.kill(pid, 0)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_demo_at_once_kills_every_process() -> None:
    with demo.backends(docker=False) as (make_registry, _, at_once):
        sources = make_registry().collect("rgate_discovery_sources", config=None)
        (source,) = (source for source in sources if source.name == "local_processes")
        assert all(instance.address for instance in source.list())
        changed = threading.Event()
        stop = threading.Event()
        watching = threading.Thread(target=source.watch, args=(changed.set, stop), daemon=True)
        watching.start()
        at_once()
        assert changed.wait(PROCESS_DEADLINE_SECONDS)
        stop.set()
        watching.join(PROCESS_DEADLINE_SECONDS)


def test_demo_service_that_does_not_start_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SERVICES", (("no_such_service", 1),))
    words = r"no_such_service-1 does not start; to see why, run: \S+ \S+/no_such_service/app.py --port 0"
    with pytest.raises(demo.DemoUnavailable, match=words), demo.backends(docker=False):
        pass


def test_demo_without_a_checkout_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rgate.log.start", lambda *_: None)
    monkeypatch.setattr(demo, "CHECKOUT", tmp_path)
    monkeypatch.setattr(demo, "CONFIG", tmp_path / "config.yml")
    assert main(["demo"]) == 2
    assert "the demo needs a checkout of rgate, but there is no config.yml and no backends" in capsys.readouterr().err


def test_demo_with_docker_but_no_docker_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rgate.log.start", lambda *_: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["demo", "--docker"]) == 2
    assert (
        capsys.readouterr().err
        == "the demo with containers needs docker compose, or docker-compose; without them, run: rgate demo\n"
    )


def fake_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str = "nothing") -> Path:
    """Programs named docker and docker-compose that write down what they are asked, and fail when that contains `failing`."""
    log = tmp_path / "log"
    for name in ("docker", "docker-compose"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\ncase "{name} $*" in *"{failing}"*) exit 1 ;; esac\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return log


def test_demo_with_docker_puts_containers_up_and_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = fake_docker(tmp_path, monkeypatch)
    with demo.backends(docker=True) as (make_registry, hints, at_once):
        at_once()
        registry = make_registry()
        registry.activate()
        assert "docker" in registry.names
        assert any("docker compose --file" in hint and hint.endswith("stop orders") for hint in hints)
    asked = [line.replace(str(demo.COMPOSE_FILE), "FILE") for line in log.read_text().splitlines()]
    assert asked == [
        "docker compose version",
        "docker version",
        "docker compose --file FILE up --build --detach",
        "docker compose --file FILE down --timeout 2",
    ]


def test_demo_with_docker_takes_the_old_compose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = fake_docker(tmp_path, monkeypatch, "docker compose version")
    with demo.backends(docker=True):
        pass
    assert log.read_text().splitlines()[-1] == f"docker-compose --file {demo.COMPOSE_FILE} down --timeout 2"


def test_demo_with_docker_but_no_engine_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = fake_docker(tmp_path, monkeypatch, "docker version")
    with pytest.raises(demo.DemoUnavailable, match="no Docker engine answers"), demo.backends(docker=True):
        pass
    assert "up" not in log.read_text()


def test_demo_with_containers_that_fail_takes_them_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = fake_docker(tmp_path, monkeypatch, " up ")
    with pytest.raises(demo.DemoUnavailable, match="the containers do not start"), demo.backends(docker=True):
        pass
    assert log.read_text().splitlines()[-1].endswith("down --timeout 2")


# The console


def test_console_in_a_pipe_never_cuts_values() -> None:
    stream = io.StringIO()
    Console(stream).table(("ROUTE", "EMPTY", "REQUESTS"), [("/" + "x" * 300, "", "1"), ("/y", "", "20")])
    assert stream.getvalue().splitlines() == [f"{'ROUTE':301}  REQUESTS", f"/{'x' * 300}         1", f"{'/y':301}        20"]


def test_console_on_a_terminal_folds_and_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    console = Console(stream)
    console.line("a line", "green")
    console.table(("ROUTE",), [("/" + "x" * 60,)])
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("\x1b[32ma line")
    assert max(len(line) for line in lines[2:]) <= 40


def test_console_in_an_ascii_locale_replaces_what_it_cannot_write() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii")
    Console(stream).line("a → b")
    assert raw.getvalue() == b"a \\u2192 b\n"


def test_console_shows_routes_as_people_say_them() -> None:
    class Stopped:
        name = "stopped"

        def list(self) -> Any:
            from rgate import Instance

            return [Instance("s", "orders-7", reason="it has stopped", backend="orders")]

        @hookimpl
        def rgate_discovery_sources(self, config: object) -> Any:
            return self

    routes = [
        {"path_prefix": "/", "host": ["a.example", "b.example"], "methods": ["get"], "headers": {"X-A": "1"}, "backend": "orders"}
    ]
    gateway = make_gateway({"routes": routes}, {"orders": ()}, {"stopped": Stopped()})
    gateway.table.refresh()
    stream = io.StringIO()
    Console(stream).routes(gateway)
    assert "GET a.example|b.example/ X-A=1" in stream.getvalue()
    assert "orders-7" in stream.getvalue() and "not usable: it has stopped" in stream.getvalue()


def test_check_problem_without_a_place_is_still_a_line() -> None:
    assert str(ConfigProblem((), "wrong", "config.yml")) == "config.yml: wrong"


def test_demo_that_is_ended_while_it_starts_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[demo.LocalProcess] = []
    start = demo.LocalProcess.__init__

    def started_then_ended(process: demo.LocalProcess, service: str, name: str) -> None:
        if started:
            os.kill(os.getpid(), signal.SIGTERM)
        start(process, service, name)
        started.append(process)

    monkeypatch.setattr(demo.LocalProcess, "__init__", started_then_ended)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), demo.backends(docker=False):
        pass
    assert [process.exit_code for process in started] == [0]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("arguments", [["plugins"], ["plugins", "--json"], ["check"]], ids=" ".join)
def test_reader_that_has_left_ends_it_quietly(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as stdout:
        command = [sys.executable, "rgate.py", *arguments]
        ended = subprocess.run(
            command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=PROCESS_DEADLINE_SECONDS
        )
    assert (ended.returncode, ended.stderr) == (1, "")


def test_keyboard_interrupt_before_serving_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rgate.cli.main.load", load)
    assert main(["check"]) == 130


@pytest.mark.parametrize(("host", "where"), [("127.0.0.1", " ("), ("0.0.0.0", " and every other address (")])
def test_start_line_says_whether_it_is_reached_from_elsewhere(host: str, where: str) -> None:
    line = start_line(make_gateway({"server": {"host": host}}), "http://127.0.0.1:8080")
    assert line.startswith(f"rgate {VERSION} listening on http://127.0.0.1:8080{where}")
