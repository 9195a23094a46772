"""SuspendedResponse: a response that begins later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from rgate import ClientClosed, Exchange, SuspendedResponse
from rgate.http1.environ import CONNECTION_KEY
from rgate.testing import make_environ, make_exchange


class Begun:
    """The rest of the request: a callback for on_resume, and the body that it returns."""

    def __init__(self, *blocks: bytes) -> None:
        self.in_time: list[bool] = []
        self.stopped_waiting = 0
        self.closed = False
        self._blocks = iter(blocks or (b"one", b"two"))

    def __call__(self, in_time: bool) -> Begun:
        self.in_time.append(in_time)
        return self

    def __iter__(self) -> Iterator[bytes]:
        return self._blocks

    def close(self) -> None:
        self.closed = True

    def on_close(self) -> None:
        self.stopped_waiting += 1


@pytest.fixture
def exchange() -> Exchange:
    return make_exchange()


@pytest.fixture
def begun() -> Begun:
    return Begun()


@pytest.fixture
def suspended(exchange: Exchange, begun: Begun) -> SuspendedResponse:
    return SuspendedResponse(make_environ(exchange=exchange), 5, begun, begun.on_close)


def resumed(exchange: Exchange, body: Iterable[bytes]) -> list[bytes]:
    exchange.suspended = None  # as the server does
    return list(body)


def test_exchange_has_it(exchange: Exchange, suspended: SuspendedResponse) -> None:
    assert exchange.suspended is suspended


@pytest.mark.parametrize(("resume", "in_time"), [(SuspendedResponse.resume, True), (SuspendedResponse.expire, False)])
def test_resumed_or_expired_it_continues_once(
    resume: Any, in_time: bool, exchange: Exchange, suspended: SuspendedResponse, begun: Begun
) -> None:
    called: list[str] = []
    suspended.when_resumed(lambda: called.append("resumed"))
    resume(suspended)
    suspended.resume()
    suspended.expire()
    assert called == ["resumed"]
    assert resumed(exchange, suspended) == [b"one", b"two"]
    suspended.close()
    assert (begun.in_time, begun.stopped_waiting, begun.closed) == ([in_time], 1, True)


def test_resumed_before_the_server_listens_it_calls_the_server_at_once(suspended: SuspendedResponse) -> None:
    called: list[str] = []
    suspended.resume()
    suspended.when_resumed(lambda: called.append("resumed"))
    assert called == ["resumed"]


def test_cancelled_it_does_not_continue(exchange: Exchange, suspended: SuspendedResponse, begun: Begun) -> None:
    suspended.cancel()
    with pytest.raises(ClientClosed):
        resumed(exchange, suspended)
    assert (begun.in_time, begun.stopped_waiting) == ([], 1)


def test_read_at_once_it_continues_as_after_its_timeout(suspended: SuspendedResponse, begun: Begun) -> None:
    assert list(suspended) == [b"one", b"two"]
    assert begun.in_time == [False]


def test_suspended_again_it_yields_empty_blocks_until_it_is_resumed(exchange: Exchange) -> None:
    environ = make_environ(exchange=exchange)
    second = Begun()
    first = SuspendedResponse(environ, 5, lambda in_time: SuspendedResponse(environ, 5, second))
    exchange.suspended = None
    assert next(first) == b""
    assert exchange.suspended is not None and exchange.suspended is not first
    assert resumed(exchange, first) == [b"one", b"two"]


def test_closed_it_never_continues(exchange: Exchange, suspended: SuspendedResponse, begun: Begun) -> None:
    suspended.close()
    assert resumed(exchange, suspended) == []
    assert (begun.in_time, begun.stopped_waiting) == ([], 1)


def test_only_rgates_own_server_can_suspend_a_request() -> None:
    assert not SuspendedResponse.can_wait(make_environ())
    assert SuspendedResponse.can_wait({**make_environ(), CONNECTION_KEY: object()})
