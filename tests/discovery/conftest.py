from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from rgate.discovery import EndpointTable


@pytest.fixture
def running() -> Iterator[Callable[[EndpointTable], EndpointTable]]:
    """Starts a table, and stops it after the test."""
    started: list[EndpointTable] = []

    def start(table: EndpointTable) -> EndpointTable:
        started.append(table)
        table.start()
        return table

    yield start
    for each in started:
        each.stop()
