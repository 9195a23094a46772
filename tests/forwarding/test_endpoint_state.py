"""EndpointState hears of the attempts at its endpoint: faults, and responses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from werkzeug.test import create_environ

from rgate import Gateway
from rgate.testing import ScriptedBackend, ScriptedConnection, client, closed_port_url, http_response, running_gateway

Script = bytes | Callable[[ScriptedConnection], None]


def config(url: str) -> dict[str, object]:
    timeouts = {"connect_seconds": 5, "read_seconds": 0.2}
    return {
        "backends": [{"name": "x", "endpoints": [url]}],
        "routes": [{"path_prefix": "/", "backend": "x", "timeouts": timeouts, "plugins": {"retry": False}}],
    }


def told(gateway: Gateway) -> list[object]:
    """Everything that the one endpoint is told from now on: statuses, and the names of faults."""
    found: list[object] = []
    (endpoint,) = gateway.table.snapshot.endpoints["x"]
    endpoint.state.on_response = lambda exchange, code: found.append(code)
    endpoint.state.on_failure = lambda exchange, error: found.append(type(error).__name__)
    return found


def close(connection: ScriptedConnection) -> None:
    connection.read_request()


def hang(connection: ScriptedConnection) -> None:
    connection.read_request()
    connection.read_request()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (http_response(b"ok"), [200]),
        (http_response(b"sorry", "503 Service Unavailable"), [503]),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", [200]),
        (b"HTTP/1.1 204 No Content\r\n\r\n", [204]),
        (b"nonsense\r\n\r\n", ["BadResponse"]),
        (close, ["UpstreamClosed"]),
        (hang, ["ResponseTimeout"]),
    ],
)
def test_response_and_fault_are_told(script: Script, expected: list[object]) -> None:
    with ScriptedBackend(script) as backend, running_gateway(config(backend.url)) as gateway:
        found = told(gateway)
        client(gateway).get("/")
    assert found == expected


@pytest.mark.parametrize("framing", [b"Content-Length: 10", b"Transfer-Encoding: chunked"])
def test_response_that_breaks_off_is_told_twice(framing: bytes) -> None:
    def cut(connection: ScriptedConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n2\r\nok")

    with ScriptedBackend(cut) as backend, running_gateway(config(backend.url)) as gateway:
        found = told(gateway)
        client(gateway).get("/")
    assert found == [200, "UpstreamTruncated"]


def test_body_that_nobody_reads_to_its_end_is_no_fault() -> None:
    with (
        ScriptedBackend(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok") as backend,
        running_gateway(config(backend.url)) as gateway,
    ):
        found = told(gateway)
        environ = create_environ("/", environ_base={"REMOTE_ADDR": "127.0.0.1"})
        gateway(environ, lambda *_: lambda block: None).close()  # type: ignore[attr-defined]
    assert found == [200]


def test_refused_connection_is_told() -> None:
    with closed_port_url() as nobody, running_gateway(config(nobody)) as gateway:
        found = told(gateway)
        client(gateway).get("/")
    assert found == ["ConnectionRefused"]
