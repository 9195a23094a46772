"""Max-Forwards of an OPTIONS request counts the gateways on its way (RFC 9110 7.6.2)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rgate.testing import ScriptedBackend, http_response

from ..support.forwarding import forwarding
from ..support.raw_client import RawClient


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    with ScriptedBackend(http_response(b"ok")) as running:
        yield running


@pytest.mark.parametrize(
    ("said", "passed_on"), [("7", ["6"]), ("1", ["0"]), ("x", ["x"]), ("-1", ["-1"]), ("9" * 40, ["9" * 40])]
)
def test_options_with_hops_left_is_passed_on_with_one_less(backend: ScriptedBackend, said: str, passed_on: list[str]) -> None:
    with forwarding(backend) as live, RawClient(live.url) as client:
        for _ in range(2):
            assert client.get("/x", f"Max-Forwards: {said}", method="OPTIONS").body == b"ok"
    assert [request.values("Max-Forwards") for request in backend.requests] == [passed_on, passed_on]


def test_options_with_no_hop_left_is_answered_here(backend: ScriptedBackend) -> None:
    with forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get("/x?y", "Max-Forwards: 0", method="OPTIONS").status == 204
        assert client.get("*", method="OPTIONS").status == 204
    assert not backend.requests


def test_other_methods_do_not_count(backend: ScriptedBackend) -> None:
    with forwarding(backend) as live, RawClient(live.url) as client:
        assert client.get("/x", "Max-Forwards: 0").body == b"ok"
    assert backend.requests[0].values("Max-Forwards") == ["0"]
