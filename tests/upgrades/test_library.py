"""WebSocket as real endpoints speak it, by the websockets library on both ends (RFC 6455 §5 to §7, RFC 7692)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ..support.forwarding import Forwarding
from ..support.waiting import DEADLINE_SECONDS, eventually
from .tunnelling import gone, tunnelling

pytest.importorskip("websockets", reason="needs the websockets library")
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.frames import CloseCode
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import Server, ServerConnection, serve

MIB = 1024 * 1024


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


@contextmanager
def backend(talk: Callable[[ServerConnection], None] = echo, **options: Any) -> Iterator[Server]:
    with serve(talk, "127.0.0.1", 0, max_size=None, **options) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(DEADLINE_SECONDS)


@contextmanager
def through_gateway(talk: Callable[[ServerConnection], None] = echo, **options: Any) -> Iterator[Forwarding]:
    with backend(talk, **options) as server, tunnelling(f"http://127.0.0.1:{server.socket.getsockname()[1]}") as live:
        yield live


def connected(live: Forwarding, **options: Any) -> ClientConnection:
    connection: ClientConnection = connect(live.url.replace("http:", "ws:") + "/chat", max_size=None, proxy=None, **options)
    return connection


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize(
    "message",
    ["", "hello", "żółć ☕", b"", bytes(range(256)), b"x" * 125, b"x" * 126, b"x" * 65_535, b"x" * 65_536, "y" * MIB, b"z" * MIB],
    ids=lambda message: f"{type(message).__name__} of {len(message)}",
)
def test_message_comes_back_as_it_was(message: str | bytes, compression: str | None) -> None:
    with through_gateway() as live, connected(live, compression=compression) as connection:
        connection.send(message)
        assert connection.recv(DEADLINE_SECONDS) == message
        assert bool(connection.protocol.extensions) == bool(compression)


@pytest.mark.parametrize("fragments", [["one ", "two ", "three"], [b"\0", b"", b"\1\2"], ["x" * 70_000] * 5])
def test_fragments_make_one_message(fragments: list[Any]) -> None:
    with through_gateway() as live, connected(live) as connection:
        connection.send(fragments)
        assert connection.recv(DEADLINE_SECONDS) == fragments[0][:0].join(fragments)


def test_ping_is_answered_by_the_other_end_from_both_sides() -> None:
    answered: list[bool] = []

    def talk(connection: ServerConnection) -> None:
        answered.append(connection.ping(b"from the backend").wait(DEADLINE_SECONDS))
        echo(connection)

    with through_gateway(talk) as live, connected(live) as connection:
        assert connection.ping(b"from the client").wait(DEADLINE_SECONDS)
        eventually(lambda: answered == [True])


def test_messages_keep_their_order_in_both_directions_at_once() -> None:
    count = 500
    received: list[str] = []

    def talk(connection: ServerConnection) -> None:
        def send() -> None:
            for number in range(count):
                connection.send(f"down {number}")

        sending = threading.Thread(target=send)
        sending.start()
        received.extend(str(connection.recv(DEADLINE_SECONDS)) for _ in range(count))
        sending.join(DEADLINE_SECONDS)

    with through_gateway(talk) as live, connected(live) as connection:
        for number in range(count):
            connection.send(f"up {number}")
        assert [connection.recv(DEADLINE_SECONDS) for _ in range(count)] == [f"down {number}" for number in range(count)]
        eventually(lambda: received == [f"up {number}" for number in range(count)])


def test_close_of_the_client_reaches_the_backend_with_its_code() -> None:
    seen: list[ConnectionClosed] = []

    def talk(connection: ServerConnection) -> None:
        try:
            connection.recv()
        except ConnectionClosed as error:
            seen.append(error)

    with through_gateway(talk) as live, connected(live) as connection:
        connection.close(CloseCode.POLICY_VIOLATION, "enough")
        gone(live)
        eventually(lambda: seen)
    assert seen[0].rcvd is not None and (seen[0].rcvd.code, seen[0].rcvd.reason) == (1008, "enough")


def test_close_of_the_backend_reaches_the_client_with_its_code() -> None:
    def talk(connection: ServerConnection) -> None:
        connection.send("last words")
        connection.close(CloseCode.SERVICE_RESTART, "later")

    with through_gateway(talk) as live, connected(live) as connection:
        assert connection.recv(DEADLINE_SECONDS) == "last words"
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(DEADLINE_SECONDS)
        gone(live)
    assert closed.value.rcvd is not None and (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, "later")


def test_loss_of_the_client_is_a_loss_for_the_backend() -> None:
    seen: list[BaseException] = []

    def talk(connection: ServerConnection) -> None:
        try:
            connection.recv()
        except ConnectionClosedOK:
            pass
        except ConnectionClosedError as error:
            seen.append(error)

    with through_gateway(talk) as live, connected(live) as connection:
        connection.socket.shutdown(socket.SHUT_RDWR)
        gone(live)
        eventually(lambda: seen, "the backend is told")


def test_subprotocol_and_headers_are_settled_between_the_ends() -> None:
    def talk(connection: ServerConnection) -> None:
        assert connection.request is not None
        connection.send(connection.request.headers["Cookie"])

    with (
        through_gateway(talk, subprotocols=["v2", "v1"]) as live,
        connected(live, subprotocols=["v1", "v3"], additional_headers={"Cookie": "a=1; b=2"}) as connection,
    ):
        assert connection.subprotocol == "v1"
        assert connection.recv(DEADLINE_SECONDS) == "a=1; b=2"


def test_refusal_of_the_backend_is_the_clients_answer() -> None:
    def refuse(connection: ServerConnection, request: Any) -> Any:
        return connection.respond(403, "not you\n")

    with through_gateway(process_request=refuse) as live:
        with pytest.raises(InvalidStatus) as refused, connected(live):
            pass
        assert (refused.value.response.status_code, refused.value.response.body) == (403, b"not you\n")
