"""The fixtures that the tests of forwarding share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rgate.http1.request import RequestParser
from rgate.testing import ScriptedBackend, http_response


@pytest.fixture(scope="module")
def backend() -> Iterator[ScriptedBackend]:
    def script(connection: Any) -> None:
        while (request := connection.read_request()) is not None:
            connection.send(http_response(b"" if request.line.startswith("HEAD ") else b"ok"))

    with ScriptedBackend(script) as running:
        yield running
        for request in running.requests:  # whatever a test has sent: what goes on is one strictly valid message
            RequestParser().parse(request.head.removesuffix(b"\r\n\r\n"))
