"""gateway.probe(): one question to an endpoint outside of all traffic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rgate import BadResponse, ConnectionRefused, Endpoint, Gateway, GatewayError, ResponseTimeout, UpstreamClosed
from rgate.testing import ScriptedBackend, ScriptedConnection, closed_port_url, http_response, running_gateway


@contextmanager
def probing(url: str) -> Iterator[tuple[Gateway, Endpoint]]:
    config = {"backends": [{"name": "x", "endpoints": [url]}], "routes": [{"path_prefix": "/", "backend": "x"}]}
    with running_gateway(config) as gateway:
        yield gateway, gateway.table.snapshot.endpoints["x"][0]


def test_probe_asks_below_the_base_path_and_returns_the_status() -> None:
    with ScriptedBackend(http_response(b"", "204 No Content")) as backend, probing(f"{backend.url}/v2") as (gateway, endpoint):
        assert gateway.probe(endpoint, "/health?deep=1", {"host": "h.example", "X-Key": "k"}) == 204
        (request,) = backend.wait_for_requests(1)
    assert request.line == "GET /v2/health?deep=1 HTTP/1.1"
    assert dict(request.headers) == {"Host": "h.example", "User-Agent": "rgate", "Connection": "close", "X-Key": "k"}
    assert endpoint.state.in_flight == 0, "it is not a request in flight"


def test_probe_without_a_target_only_connects() -> None:
    with ScriptedBackend() as backend, probing(backend.url) as (gateway, endpoint):
        assert gateway.probe(endpoint) == 0
    assert backend.requests == []


def hang(connection: ScriptedConnection) -> None:
    connection.read_request()
    connection.read_request()


def close(connection: ScriptedConnection) -> None:
    connection.read_request()


@pytest.mark.parametrize(
    ("script", "error"), [(hang, ResponseTimeout), (close, UpstreamClosed), (b"nonsense\r\n\r\n", BadResponse)]
)
def test_probe_without_an_answer_raises_what_a_request_would_end_in(script: object, error: type[GatewayError]) -> None:
    with (
        ScriptedBackend(script) as backend,  # type: ignore[arg-type]
        probing(backend.url) as (gateway, endpoint),
        pytest.raises(error),
    ):
        gateway.probe(endpoint, "/", seconds=0.1)


def test_probe_where_nobody_listens_is_refused() -> None:
    with closed_port_url() as nobody, probing(nobody) as (gateway, endpoint), pytest.raises(ConnectionRefused):
        gateway.probe(endpoint, "/")
