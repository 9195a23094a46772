"""SuspendedResponse: a response that begins later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from rgate import ClientClosed, Exchange, SuspendedResponse
from rgate.http1.environ import CONNECTION_KEY
from rgate.testing import make_environ, make_exchange


class Begun:
    """What the request goes on with."""

    def __init__(self, *blocks: bytes) -> None:
        self.in_time: list[bool] = []
        self.ended = 0
        self.closed = False
        self._blocks = iter(blocks or (b"one", b"two"))

    def __call__(self, in_time: bool) -> Begun:
        self.in_time.append(in_time)
        return self

    def __iter__(self) -> Iterator[bytes]:
        return self._blocks

    def close(self) -> None:
        self.closed = True

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def exchange() -> Exchange:
    return make_exchange()


@pytest.fixture
def begun() -> Begun:
    return Begun()


@pytest.fixture
def suspended(exchange: Exchange, begun: Begun) -> SuspendedResponse:
    return SuspendedResponse(make_environ(exchange=exchange), 5, begun, begun.end)


def resumed(exchange: Exchange, body: Iterable[bytes]) -> list[bytes]:
    exchange.suspended = None  # as the server does
    return list(body)


def test_it_stands_in_the_exchange(exchange: Exchange, suspended: SuspendedResponse) -> None:
    assert exchange.suspended is suspended


@pytest.mark.parametrize(("resume", "in_time"), [(SuspendedResponse.resume, True), (SuspendedResponse.expire, False)])
def test_woken_it_goes_on_once(
    resume: Any, in_time: bool, exchange: Exchange, suspended: SuspendedResponse, begun: Begun
) -> None:
    told: list[str] = []
    suspended.when_resumed(lambda: told.append("woken"))
    resume(suspended)
    suspended.resume()
    suspended.expire()
    assert told == ["woken"]
    assert resumed(exchange, suspended) == [b"one", b"two"]
    suspended.close()
    assert (begun.in_time, begun.ended, begun.closed) == ([in_time], 1, True)


def test_woken_before_the_server_attends_it_is_told_of_at_once(suspended: SuspendedResponse) -> None:
    told: list[str] = []
    suspended.resume()
    suspended.when_resumed(lambda: told.append("woken"))
    assert told == ["woken"]


def test_abandoned_by_its_client_it_does_not_go_on(exchange: Exchange, suspended: SuspendedResponse, begun: Begun) -> None:
    suspended.cancel()
    with pytest.raises(ClientClosed):
        resumed(exchange, suspended)
    assert (begun.in_time, begun.ended) == ([], 1)


def test_read_by_somebody_who_does_not_wait_it_goes_on_as_if_its_time_were_over(
    suspended: SuspendedResponse, begun: Begun
) -> None:
    assert list(suspended) == [b"one", b"two"]
    assert begun.in_time == [False]


def test_parked_again_it_yields_nothing_and_then_what_comes(exchange: Exchange) -> None:
    environ = make_environ(exchange=exchange)
    second = Begun()
    first = SuspendedResponse(environ, 5, lambda in_time: SuspendedResponse(environ, 5, second))
    exchange.suspended = None
    assert next(first) == b""
    assert exchange.suspended is not None and exchange.suspended is not first
    assert resumed(exchange, first) == [b"one", b"two"]


def test_closed_it_never_goes_on(exchange: Exchange, suspended: SuspendedResponse, begun: Begun) -> None:
    suspended.close()
    assert resumed(exchange, suspended) == []
    assert (begun.in_time, begun.ended) == ([], 1)


def test_only_rgates_own_server_lets_a_request_wait() -> None:
    assert not SuspendedResponse.can_wait(make_environ())
    assert SuspendedResponse.can_wait({**make_environ(), CONNECTION_KEY: object()})
