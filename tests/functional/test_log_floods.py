"""A failure with every request: the log has the first with its traceback and the number of the others, of every process."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rgate.testing import ScriptedBackend, ScriptedConnection

from ..support.processes import GatewayProcess
from ..support.raw_client import RawClient

CONFIG = """\
server: {{workers: {workers}}}
backends:
  - {{name: gone, endpoints: ["{url}"]}}
routes:
  - {{path_prefix: /gone, backend: gone}}
  - {{path_prefix: /broken, backend: gone}}
use:
  - app: broken_app:Broken
plugins:
  disable: [stats]
  access_log: {{requests: {requests}}}
"""
BROKEN = """\
class Broken:
    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] == "/broken":
            raise KeyError("acme")
        return self.app(environ, start_response)
"""
TIMES = 20


def close(connection: ScriptedConnection) -> None:
    connection.read_request()


@pytest.mark.parametrize("workers", [1, 2])
def test_failure_with_every_request_is_told_once_and_counted(workers: int, tmp_path: Path) -> None:
    (tmp_path / "broken_app.py").write_text(BROKEN)
    config = tmp_path / "config.yml"
    with ScriptedBackend(close) as backend:
        config.write_text(CONFIG.format(workers=workers, url=backend.url, requests="none"))
        with GatewayProcess(config, environ={"PYTHONPATH": str(tmp_path)}) as gateway:
            url = gateway.url
            with RawClient(url) as client:  # one connection, so one process
                for _ in range(TIMES):
                    assert client.get("/broken").status == 500
                    client.send(b"POST /gone HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
                    assert client.response().status == 502
            gateway.stop_all(gateway.process.pid)
            lines = gateway.output.lines
    firsts = [line for line in lines if re.search(r"failed in rgate_middlewares: KeyError\('acme'\)$", line)]
    assert 1 <= len(firsts) < TIMES / 4, "few, however slow the machine is"
    assert lines.count("    KeyError: 'acme'") == len(firsts)
    assert counted(lines, r"KeyError\('acme'\)") == TIMES - len(firsts)
    firsts = [line for line in lines if re.search(r" closed: .* \(route /gone, backend gone, endpoint [^()]+\)$", line)]
    assert 1 <= len(firsts) < TIMES / 4
    assert counted(lines, r" closed: .*") == TIMES - len(firsts)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_id_that_a_client_is_given_is_found_in_one_line_by_default(workers: int, tmp_path: Path) -> None:
    (tmp_path / "broken_app.py").write_text(BROKEN)
    config = tmp_path / "config.yml"
    ids = []
    with ScriptedBackend(close) as backend:
        config.write_text(CONFIG.format(workers=workers, url=backend.url, requests="failed"))
        with GatewayProcess(config, environ={"PYTHONPATH": str(tmp_path)}) as gateway:
            with RawClient(gateway.url) as client:
                for path in ("/broken", "/gone", "/nowhere"):
                    for _ in range(TIMES):
                        client.send(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % path.encode())
                        ids.append(json.loads(client.response().body)["request_id"])
            gateway.stop_all(gateway.process.pid)
            lines = [line for line in gateway.output.lines if " rgate.access: " in line]
    assert [re.search(r"rgate\.access: (\S+) ", line)[1] for line in lines] == ids  # type: ignore[index]
    reasons = ("internal", "closed", "no_route")
    assert [re.search(r" reason=(\w+)", line)[1] for line in lines] == [each for each in reasons for _ in range(TIMES)]  # type: ignore[index]
    assert {" ERROR " in line or " WARNING " in line for line in lines[: 2 * TIMES]} == {True}
    assert {" INFO " in line for line in lines[2 * TIMES :]} == {True}


def counted(lines: list[str], pattern: str) -> int:
    """How many lines have been held back, as the log says."""
    found = (re.search(rf"{pattern} \(([\d,]+) more times? in the last \d+ s\)$", line) for line in lines)
    return sum(int(match[1]) for match in found if match)
