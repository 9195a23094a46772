"""The states of a connection: every transition of the table happens, and every other one is refused.

That no connection makes another one is checked in every test of the suite (see checked_states).
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from rgate.chain.exchange import RelayableBody, Tunnel
from rgate.config.models import ServerConfig
from rgate.http1.environ import CONNECTION_KEY
from rgate.serving.connection import PIPELINED_AT_ONCE, Connection
from rgate.serving.connection_state import TRANSITIONS, State
from rgate.serving.head_encoder import HeadEncoder
from rgate.serving.server import Server
from rgate.serving.settings import ServerSettings

from ..support.raw_client import RawClient
from ..support.serving import connection_of, echo, serving
from ..support.tls_client import TLS, SecureClient
from ..support.waiting import eventually
from . import checked_states
from .test_suspended import Suspending

S = State
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"GET / HTTP/1.1\r\nHost"
BODY = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc"
UPGRADE = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
NO_TLS = b"\x16\x03\x01\x00\x05hello"  # a record that is not a ClientHello

Pair = tuple[State, State]


class RelayedBody(RelayableBody):
    """A body of two blocks. The second comes when `more` is written to, which its reader waits for."""

    wait_seconds = 60.0
    complete = False

    def __init__(self) -> None:
        self.more, self._mine = socket.socketpair()
        self._mine.setblocking(False)
        self._blocks = [b"", b"two", b"one"]

    def __iter__(self) -> Iterator[bytes]:
        raise AssertionError("it is relayed")

    def fileno(self) -> int:
        return self._mine.fileno()

    def read_now(self, most_bytes: int, timed_out: bool = False) -> bytes | None:
        if len(self._blocks) == 2:
            try:
                self._mine.recv(1)
            except BlockingIOError:
                return None
        return self._blocks.pop()

    def count_waits(self, counting: AbstractContextManager[object]) -> None:
        raise AssertionError

    def close(self) -> None:
        self.more.close()
        self._mine.close()


class Relaying:
    """An app whose responses are relayed."""

    def __init__(self) -> None:
        self.bodies: list[RelayedBody] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.bodies.append(RelayedBody())
        start_response("200 OK", [("Content-Length", "6")])
        return self.bodies[-1]


def is_now(server: Server, client: RawClient, state: State) -> Connection:
    connection = connection_of(server, client)
    eventually(lambda: connection.state is state, f"it is {state}")
    return connection


@contextmanager
def held_back(server: Server, client: RawClient, *blocks: bytes) -> Iterator[Connection]:
    """Inside, the server has been told of `blocks`, and no thread has read them."""
    connection = connection_of(server, client)
    with connection.lock:
        client.send(*blocks)
        eventually(lambda: connection.events, "they have arrived")
    yield connection


def served_and_idle() -> None:
    with serving(echo) as server, RawClient(server.url) as client:
        assert client.get().status == 200
        is_now(server, client, S.IDLE)
        client.send(b"\r\n", HEAD)
        is_now(server, client, S.READING_HEAD)


def empty_lines() -> None:
    with serving(echo) as server, RawClient(server.url) as client:
        client.send(b"\r\n")
        eventually(lambda: (S.READING_HEAD, S.IDLE) in checked_states.seen)


def body_in_pieces() -> None:
    with serving(echo) as server, RawClient(server.url) as client:
        client.send(BODY)
        is_now(server, client, S.BUFFERING_BODY)
        client.send(b"def")
        assert client.response().status == 200


def pipelined(rest: bytes) -> Callable[[], None]:
    def scenario() -> None:
        with serving(echo) as server, RawClient(server.url) as client:
            client.send(GET * 2 + rest)
            for _ in range(2):
                assert client.response().status == 200
            is_now(server, client, S.READING_HEAD if rest == HEAD else S.BUFFERING_BODY)

    return scenario


def many_pipelined() -> None:
    with serving(echo) as server, RawClient(server.url) as client:
        client.send(GET * (PIPELINED_AT_ONCE + 1))
        for _ in range(PIPELINED_AT_ONCE + 1):
            assert client.response().status == 200


def expired(sent: bytes, status: int) -> Callable[[], None]:
    def scenario() -> None:
        with serving(echo) as server, RawClient(server.url) as client:
            client.send(sent)
            connection = is_now(server, client, S.BUFFERING_BODY if sent is BODY else S.READING_HEAD)
            eventually(connection.expire, "no thread works on it any more")
            eventually(lambda: connection.state is S.LINGERING)

    return scenario


def expired_idle() -> None:
    with serving(echo) as server, RawClient(server.url) as client:
        with held_back(server, client, b"\r\n") as connection:
            eventually(connection.expire, "no thread works on it any more")
        assert client.is_closed()


def closed_idle(sent: bytes, after: State) -> Callable[[], None]:
    def scenario() -> None:
        with serving(echo) as server, RawClient(server.url) as client:
            if sent:
                with held_back(server, client, sent) as connection:
                    connection.close_if_idle()
            else:
                idle = connection_of(server, client)

                def is_closing() -> bool:
                    idle.close_if_idle()  # as the server does again and again; a thread may still be working on it
                    return idle.state is not S.IDLE

                eventually(is_closing)
            eventually(lambda: (S.CLOSING_IDLE, after) in checked_states.seen)

    return scenario


def rejected() -> None:
    with serving(echo, max_connections_per_client=1) as server, RawClient(server.url) as first, RawClient(server.url) as second:
        assert first.get().status == 200
        assert second.response().status == 200  # this app's answer to a request that is rejected, too


def handshake() -> None:
    with serving(echo, **TLS) as server, SecureClient(server.url) as client:
        assert client.get().status == 200


def handshake_expired(sent: bytes = b"") -> None:
    with serving(echo, **TLS) as server, RawClient(server.url) as client:
        if sent:
            with held_back(server, client, sent) as connection:
                eventually(connection.expire, "no thread works on it any more")
        else:
            assert connection_of(server, client).expire()
        client.rest()


def handshake_refused(sent: bytes, close: bool = False) -> Callable[[], None]:
    def scenario() -> None:
        with serving(echo, **TLS) as server, RawClient(server.url) as client:
            if close:
                with held_back(server, client, sent) as connection:
                    connection.close_if_idle()
            else:
                client.send(sent)
            client.rest()

    return scenario


def suspended() -> None:
    app = Suspending()
    with serving(app) as server, RawClient(server.url) as client:
        client.send(GET)
        (response,) = eventually(lambda: app.suspended)
        is_now(server, client, S.SUSPENDED)
        response.resume()
        assert client.response().status == 200


def relayed(behind: bytes = b"", last: bool = False) -> Callable[[], None]:
    def scenario() -> None:
        app = Relaying()
        with serving(app, max_requests_per_connection=1 if last else 9) as server, RawClient(server.url) as client:
            client.send(GET + behind)
            for number in range(2 if behind else 1):
                eventually(lambda number=number: len(app.bodies) > number)
                is_now(server, client, S.RELAYED)
                app.bodies[number].more.send(b"!")
                assert client.response().body == b"onetwo"
            is_now(server, client, S.LINGERING if last else S.IDLE)

    return scenario


def tunnelled() -> None:
    backend, other = socket.socketpair()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[CONNECTION_KEY].upgrade(Tunnel("x", 60.0), backend, b"hello", backend.close)
        start_response("101 Switching Protocols", [])
        return []

    with serving(app) as server, other, RawClient(server.url) as client:
        client.send(UPGRADE)
        assert client.until(b"hello")
        is_now(server, client, S.TUNNELLED)


def relayed_101() -> None:
    """The head of a 101 that the client did not take at once."""
    with connection_alone() as connection:
        begun: list[bytes] = []
        connection.tunnel = SimpleNamespace(begin=begun.append)  # type: ignore[assignment]
        connection.response.upgraded = True
        connection._pipelined = b"first bytes"
        connection.lock.acquire()
        set_state(connection, S.RELAYED)
        connection.resume_relayed()
        assert (connection.state, begun) == (S.TUNNELLED, [b"first bytes"])


@contextmanager
def connection_alone() -> Iterator[Connection]:
    """A connection without a server."""
    owner: Any = SimpleNamespace(
        settings=ServerSettings(echo, ServerConfig()),
        shared=SimpleNamespace(base_environ={}, head_encoder=HeadEncoder(), streams=None),
        now=0.0,
        hand_over=lambda connection: None,
    )
    ours, theirs = socket.socketpair()
    with theirs, ours:
        yield Connection(owner, ours, ("127.0.0.1", 1))


def set_state(connection: Connection, state: State) -> None:
    """Without looking at the table."""
    checked_states._slot.__set__(connection, state)


SCENARIOS: dict[Callable[[], None], set[Pair]] = {
    served_and_idle: {(S.IDLE, S.READING_HEAD), (S.READING_HEAD, S.BUSY), (S.BUSY, S.IDLE)},
    empty_lines: {(S.READING_HEAD, S.IDLE)},
    body_in_pieces: {(S.READING_HEAD, S.BUFFERING_BODY), (S.BUFFERING_BODY, S.BUSY)},
    pipelined(HEAD): {(S.BUSY, S.BUSY), (S.BUSY, S.READING_HEAD)},
    pipelined(BODY): {(S.BUSY, S.BUFFERING_BODY)},
    many_pipelined: {(S.BUSY, S.YIELDED), (S.YIELDED, S.READING_HEAD)},
    expired(HEAD, 408): {(S.READING_HEAD, S.EXPIRED), (S.EXPIRED, S.BUSY), (S.BUSY, S.LINGERING)},
    expired(BODY, 408): {(S.BUFFERING_BODY, S.EXPIRED), (S.EXPIRED, S.BUSY)},
    expired_idle: {(S.IDLE, S.EXPIRED), (S.EXPIRED, S.IDLE)},
    closed_idle(b"", S.LINGERING): {(S.IDLE, S.CLOSING_IDLE), (S.CLOSING_IDLE, S.LINGERING)},
    closed_idle(b"\r\n" + HEAD, S.READING_HEAD): {(S.CLOSING_IDLE, S.READING_HEAD)},
    closed_idle(BODY, S.BUFFERING_BODY): {(S.CLOSING_IDLE, S.BUFFERING_BODY)},
    closed_idle(GET, S.BUSY): {(S.CLOSING_IDLE, S.BUSY)},
    rejected: {(S.IDLE, S.BUSY)},
    handshake: {(S.OPENING, S.IDLE)},
    handshake_expired: {(S.OPENING, S.EXPIRED)},
    lambda: handshake_expired(NO_TLS): {(S.EXPIRED, S.LINGERING)},
    handshake_refused(NO_TLS): {(S.OPENING, S.LINGERING)},
    handshake_refused(NO_TLS, close=True): {(S.OPENING, S.CLOSING_IDLE), (S.CLOSING_IDLE, S.LINGERING)},
    handshake_refused(GET): {(S.OPENING, S.BUSY)},
    suspended: {(S.BUSY, S.SUSPENDED), (S.SUSPENDED, S.BUSY)},
    relayed(): {(S.BUSY, S.RELAYED), (S.RELAYED, S.BUSY), (S.BUSY, S.IDLE)},
    relayed(GET): {(S.RELAYED, S.BUSY), (S.BUSY, S.YIELDED)},
    relayed(last=True): {(S.RELAYED, S.BUSY), (S.BUSY, S.LINGERING)},
    relayed_101: {(S.RELAYED, S.BUSY), (S.BUSY, S.TUNNELLED)},
    tunnelled: {(S.BUSY, S.TUNNELLED)},
}

EVERY_PAIR = [(before, after) for before in State for after in State]


@pytest.fixture(autouse=True)
def only_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rgate.serving.connection.LINGER_SECONDS", 0.3)
    checked_states.seen.clear()


@pytest.mark.parametrize(("scenario", "expected"), SCENARIOS.items(), ids=range(len(SCENARIOS)))
def test_transition_happens(scenario: Callable[[], None], expected: set[Pair]) -> None:
    scenario()
    assert expected <= checked_states.seen


def test_every_transition_of_the_table_has_a_scenario() -> None:
    closing = {(before, S.CLOSED) for before in State if before is not S.CLOSED}  # see test_close_is_legal_in_every_state
    assert {pair for pairs in SCENARIOS.values() for pair in pairs} | closing == {
        (before, after) for before, after in EVERY_PAIR if after in TRANSITIONS[before]
    }


def test_every_state_can_be_reached() -> None:
    reached, new = set(), {S.IDLE, S.OPENING}
    while new:
        reached |= new
        new = {after for state in new for after in TRANSITIONS[state]} - reached
    assert reached == set(State)


@pytest.mark.parametrize("state", [state for state in State if state is not S.CLOSED], ids=str)
def test_close_is_legal_in_every_state(state: State) -> None:
    with connection_alone() as connection, connection.lock:
        set_state(connection, state)
        connection.close()
        assert checked_states.seen == {(state, S.CLOSED)}


@pytest.mark.parametrize(("before", "after"), EVERY_PAIR, ids=str)
def test_transition_is_checked(before: State, after: State) -> None:
    with connection_alone() as connection, connection.lock:
        set_state(connection, before)
        if after in TRANSITIONS[before]:
            connection.state = after
            return
        with pytest.raises(AssertionError):
            connection.state = after
        assert connection.state is before
    checked_states.illegal.clear()


def test_state_is_not_changed_without_the_lock() -> None:
    with connection_alone() as connection, pytest.raises(AssertionError, match="without the lock"):
        connection.state = S.READING_HEAD
    checked_states.illegal.clear()


def test_thread_does_not_spin_for_a_client_that_is_told_408(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection's own shutdown of its reading half looks like an end of the client that is still to be read."""
    calls = 0
    discard = Connection._discard

    def count(connection: Connection) -> bool:
        nonlocal calls
        calls += 1
        return discard(connection)

    monkeypatch.setattr(Connection, "_discard", count)
    with serving(echo) as server, RawClient(server.url) as client:
        client.send(HEAD)
        connection = is_now(server, client, S.READING_HEAD)
        eventually(connection.expire, "no thread works on it any more")
        assert client.response().status == 200  # from this app, which answers everything
        is_now(server, client, S.LINGERING)
        threading.Event().wait(0.1)
        assert calls < 5
