"""docs/security.md says every limit as it is."""

from __future__ import annotations

import re
from typing import Any

import pytest

from rgate.config import models
from rgate.errors import GatewayError
from rgate.forwarding import connecting, forwarder, upload, upstream
from rgate.forwarding import connection as upstream_connection
from rgate.http1 import client_address as client
from rgate.http1 import proxy_protocol, request
from rgate.http1.chunked import ChunkedDecoder
from rgate.serving import acceptor, connection, slow_clients

from ..meta.source import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
UNITS = {"bytes": "bytes", "seconds": "seconds", "headers": "headers", "requests_per_connection": "requests"}
UNITS |= {
    "connections": "connections",
    "connections_per_client": "connections",
    "in_flight": "threads",
    "queued": "requests",
    "slow_clients": "threads",
    "slow_clients_per_client": "threads",
}


def rows(heading: str, columns: int) -> list[list[str]]:
    """The rows of the tables below a heading that have so many columns."""
    match = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match is not None, f"docs/security.md has no heading {heading!r}"
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in match[1].splitlines() if line.startswith("|")]
    return [line for line in lines if len(line) == columns and not line[0].startswith("---")][1:]


def limits(model: type[Any], prefix: str = "") -> dict[str, Any]:
    """The options of a model that limit something, with their defaults."""
    return {
        f"{prefix}{name}": field.default
        for name, field in model.__pydantic_fields__.items()
        if name.startswith("max_") or name.endswith("_seconds")
    }


EXPECTED = {
    **limits(models.ServerConfig),
    **limits(models.Route, "routes[]."),
    **limits(models.Timeouts, "routes[].timeouts."),
}


def test_page_has_every_limit_and_no_other() -> None:
    assert {row[0].strip("`") for row in rows("Limits", 5)} == set(EXPECTED)


@pytest.mark.parametrize("row", rows("Limits", 5), ids=lambda row: row[0].strip("`"))
def test_page_says_default_unit_and_answer_of_a_limit(row: list[str]) -> None:
    key, default, unit, counts, over = row
    name = key.strip("`")
    assert default == ("" if EXPECTED[name] is None else f"{EXPECTED[name]:g}" if EXPECTED[name] < 1_000 else str(EXPECTED[name]))
    suffix = next(suffix for suffix in sorted(UNITS, key=len, reverse=True) if name.endswith(suffix))
    assert unit == UNITS[suffix]
    assert counts and over
    statuses = {error.status for error in subclasses(GatewayError)}
    assert {int(status) for status in re.findall(r"\b[45]\d\d\b", over)} <= statuses


def subclasses(kind: type[GatewayError]) -> set[type[GatewayError]]:
    return {kind}.union(*(subclasses(below) for below in kind.__subclasses__()))


FIXED = {
    "a method": request.MAX_METHOD_BYTES,
    "a line of the chunked coding, with its extensions": ChunkedDecoder.MAX_LINE_BYTES,
    "excess of chunk extensions over their chunks, in a body": ChunkedDecoder.MAX_EXCESS_BYTES,
    "excess of the framing of all chunks over their payload, in a request's body": ChunkedDecoder.MAX_FRAMING_BYTES,
    "empty lines before a request": connection.MAX_EMPTY_LINES,
    "trailers of a message": ChunkedDecoder.MAX_TRAILER_BYTES,
    "interim responses before a response": upstream_connection.MAX_INTERIM_RESPONSES,
    "a PROXY header": proxy_protocol.MAX_HEADER_BYTES,
    "entries of `X-Forwarded-For` that are read, from the right": client.MAX_HOPS,
    "unsent data in the kernel, on each connection": acceptor.NOTSENT_LOWAT_BYTES,
    "reading from a client that has its answer but goes on sending": connection.LINGER_SECONDS,
    "the same, in bytes": connection.LINGER_BYTES,
    "reading from a client whose idle connection is being closed": connection.IDLE_LINGER_SECONDS,
    "an idle connection to a backend": upstream.MAX_IDLE_SECONDS,
    "a request to a backend, head and body": forwarder.READ_BYTES,
    "connections to one endpoint that are being made at a time": connecting.MAX_CONNECTING,
    "waiting for a backend's 100 (Continue)": upload.CONTINUE_SECONDS,
}


def test_page_says_fixed_limits_as_they_are() -> None:
    said = {what: float(limit.split()[0].replace(",", "")) for what, limit, _ in rows("Limits", 3)}
    assert said == FIXED
    assert acceptor.NOTSENT_LOWAT_BYTES == upstream_connection.UNSENT_BYTES
    assert (
        f"at most {connecting.HOLD_SECONDS * 1000:g} ms, and while packets are lost as few as {connecting.MIN_CONNECTING} are"
        in PAGE
    )
    assert f"requests for at least {slow_clients.GRACE_SECONDS:g} seconds)" in PAGE


def test_page_says_how_to_report_and_whom_to_trust() -> None:
    for heading in ("Threat model", "What is trusted, and why", "Limits", "How to report"):
        assert f"\n## {heading}\n" in PAGE
