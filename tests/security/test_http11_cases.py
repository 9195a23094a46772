"""Every case of http11_cases.py, sent to a whole gateway before a backend that does what RFC 9110 wants of a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from rgate.testing import ScriptedBackend

from ..support.forwarding import Forwarding, forwarding
from ..support.raw_client import RawClient
from .http11_cases import CASES, NEXT, Case
from .strict import Request, StrictBackend


def origin(request: Request) -> bytes:
    """Echoes what it is sent, knows a few methods, and WebSocket of version 13 only."""
    method = request.line.partition(" ")[0]
    status, headers, body = "200 OK", "Content-Type: text/plain\r\n", request.body
    if method == "OPTIONS":
        return b"HTTP/1.1 204 No Content\r\nAllow: GET, HEAD, OPTIONS, POST\r\n\r\n"
    if method not in ("GET", "HEAD", "POST"):
        status = "405 Method Not Allowed" if method == "DELETE" else "501 Not Implemented"
        headers += "Allow: GET, HEAD, OPTIONS, POST\r\n"
    elif "Upgrade" in request.values("Connection"):
        status = "426 Upgrade Required"
        headers += "Sec-WebSocket-Version: 13\r\n"
    head = f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode()
    return head if method == "HEAD" else head + body


@pytest.fixture(scope="module")
def strict() -> StrictBackend:
    return StrictBackend(origin)


@pytest.fixture(scope="module")
def live(strict: StrictBackend) -> Iterator[Forwarding]:
    with ScriptedBackend(strict) as backend, forwarding(backend) as running:
        yield running


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_case_of_a_public_probe_is_answered_as_the_rfcs_want(live: Forwarding, strict: StrictBackend, case: Case) -> None:
    whole, invalid = len(strict.requests), len(strict.invalid)
    with RawClient(live.url) as client:
        for step, status in zip(case.steps, case.statuses, strict=False):
            with suppress(ConnectionError):  # what comes after a refusal need not be taken
                client.send(step)
            method = step.lstrip().partition(b" ")[0].decode("latin-1")
            response = client.response(method)
            while response.status == 100:
                assert b"Expect: 100-continue" in step and b"HTTP/1.1" in step, "an interim response that nobody asked for"
                response = client.response(method)
            assert response.status == status, response
        if case.closes:
            with suppress(ConnectionError):
                client.send(NEXT)  # which must not be answered any more
            assert client.is_closed(), "more than one answer, or the connection goes on"
        elif case.statuses:
            assert client.get("/after").status == 200, "the connection should have stayed"
        else:
            client.send(*case.steps)
            client.half_close()
            rest = client.rest()
            assert not rest or rest.startswith(b"HTTP/1.1 400 "), f"what is not whole is answered: {rest!r}"
    assert not strict.invalid[invalid:], "the backend was sent something that is not valid"
    reached = [request.line for request in strict.requests[whole:] if "/after" not in request.line]
    assert not [line for line in reached if "hidden" in line], "a request that was hidden in another one came through"
    if case.closes and case.statuses[-1] >= 400:
        assert len(reached) == len(case.statuses) - 1, f"a backend got what was refused: {reached}"
    if case.statuses:
        assert case.body is None or response.body == case.body
        for name in case.has:
            assert response.value(name) is not None, f"no {name}"
        for name in case.lacks:
            assert response.value(name) is None, f"{name} should not be there"
