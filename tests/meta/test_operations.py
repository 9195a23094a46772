"""docs/operations.md tells of every reason that a client can get, with its status."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rgate import errors
from rgate.errors import GatewayError
from rgate.testing import make_gateway

DOCUMENT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
ROWS = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", DOCUMENT, re.MULTILINE))
WITHOUT_STATUS = {"no_route": "as in `default_response`", "truncated": "connection cut"}


def faults(kind: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield below
            yield from faults(below)


@pytest.mark.parametrize("fault", sorted(set(faults()), key=lambda fault: fault.__name__))
def test_every_reason_is_documented_with_its_status(fault: type[GatewayError]) -> None:
    wanted = WITHOUT_STATUS.get(fault.reason, str(fault.status))
    assert ROWS.get(fault.reason) == wanted, f"docs/operations.md, What the client gets: `{fault.reason}` | {wanted}"


def test_no_reason_is_documented_that_is_gone() -> None:
    assert ROWS.keys() == {fault.reason for fault in faults()}


PATHS = make_gateway({"plugins": {"admin": {"allow": ["127.0.0.1"]}}}).local_routes.keys() - {"/stats"}


@pytest.mark.parametrize("path", sorted(PATHS))
def test_every_admin_path_is_documented(path: str) -> None:
    """In the table of "Health and readiness": what is there, and what it is good for."""
    assert re.search(rf"^\| `{re.escape(path)}` \|", DOCUMENT, re.MULTILINE), (
        f"docs/operations.md, Health and readiness: `{path}`"
    )


def test_no_admin_path_is_documented_that_is_gone() -> None:
    documented = set(re.findall(r"^\| `(/-/\w+)` \|", DOCUMENT, re.MULTILINE))
    assert documented == PATHS
