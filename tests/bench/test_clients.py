"""The clients that account for every request, against backends that behave well and badly."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from bench.clients import KINDS, Clients, Outcome
from rgate.testing import ScriptedBackend, ScriptedConnection, http_response

from ..support.waiting import eventually


def well(connection: ScriptedConnection) -> None:
    while request := connection.read_request():
        connection.send(http_response(json.dumps({"path": request.line.split()[1], "instance": "one"}).encode()))


def respond_with(response: bytes) -> Callable[[ScriptedConnection], None]:
    def script(connection: ScriptedConnection) -> None:
        while connection.read_request():
            connection.send(response)

    return script


def resetting(connection: ScriptedConnection) -> None:
    connection.read_request()
    connection.reset()


def ending(connection: ScriptedConnection) -> None:
    connection.read_request()


def breaking_off(connection: ScriptedConnection) -> None:
    connection.read_request()
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf")


def first(backend: ScriptedBackend, kind: str = "GET") -> Outcome:
    port = int(backend.url.rpartition(":")[2])
    with Clients(port, "/x", 100, [kind]) as clients:
        return eventually(lambda: clients.outcomes)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_request_that_is_answered_well_is_good_and_says_by_whom(kind: str) -> None:
    with ScriptedBackend(well) as backend:
        told = first(backend, kind)
    assert (told.kind, str(told), told.who, told.good) == (kind, "ok", "one", True)


@pytest.mark.parametrize(
    "script, answer",
    [
        (respond_with(http_response(b'{"reason": "refused"}', status="503 Service Unavailable")), "503 refused"),
        (respond_with(http_response(b'{"path": "/x?n=another"}')), "200 not_mine"),
        (respond_with(http_response(b"no JSON")), "200 not_json"),
        (respond_with(b"garbage\r\n\r\n"), "lost not_http"),
        (resetting, "lost reset"),
        (ending, "lost closed"),
        (breaking_off, "lost truncated"),
    ],
    ids=["fault", "another's", "no JSON", "no HTTP", "reset", "end", "half"],
)
def test_request_that_is_not_answered_well_is_told_with_the_reason(
    script: Callable[[ScriptedConnection], None], answer: str
) -> None:
    with ScriptedBackend(script) as backend:
        told = first(backend)
    assert (str(told), told.good) == (answer, False)
