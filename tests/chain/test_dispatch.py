"""RouteDispatch: candidates for a request, and its route's chain."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from rgate import EndpointQueue, Exchange, NoEndpoint
from rgate.chain.dispatch import RouteDispatch
from rgate.errors import InternalError
from rgate.testing import make_endpoint, make_environ, make_exchange, respond_with


class Table:
    """An endpoint table that is its own snapshot."""

    def __init__(self, **endpoints: Any) -> None:
        self.snapshot = self
        self.endpoints = endpoints


def dispatch(table: Table, exchange: Exchange) -> Iterable[bytes]:
    app = RouteDispatch(table, {"/": respond_with(b"routed")}, EndpointQueue())  # type: ignore[arg-type]
    return app(make_environ(exchange=exchange), lambda *_: lambda _: None)


def test_dispatch_hands_over_with_the_endpoints_of_the_current_snapshot() -> None:
    endpoint = make_endpoint()
    exchange = make_exchange(candidates=())
    assert dispatch(Table(orders=(endpoint,)), exchange) == [b"routed"]
    assert exchange.candidates == (endpoint,)


@pytest.mark.parametrize("table", [Table(), Table(orders=())])
def test_dispatch_without_endpoints_raises_no_endpoint(table: Table) -> None:
    with pytest.raises(NoEndpoint, match="orders"):
        dispatch(table, make_exchange())


def test_dispatch_without_a_route_is_a_fault_of_the_chain() -> None:
    exchange = make_exchange()
    exchange.route = None
    with pytest.raises(InternalError, match="router"):
        dispatch(Table(), exchange)
