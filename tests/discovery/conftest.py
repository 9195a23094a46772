from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from rgate.discovery import EndpointTable


@pytest.fixture
def running() -> Iterator[Callable[[EndpointTable], EndpointTable]]:
    """Starts the sources of a table, and stops them after the test."""
    started: list[EndpointTable] = []

    def start(table: EndpointTable) -> EndpointTable:
        started.append(table)
        table.discovery.start(table)
        return table

    yield start
    for each in started:
        each.discovery.stop()
