"""How a tunnel relays bytes, half-closes and resets (RFC 6455 §7)."""

from __future__ import annotations

import random
import socket
import threading
from typing import Any

import pytest

from rgate.serving import tunnels
from rgate.testing import ScriptedBackend, ScriptedConnection

from ..support.raw_client import RawClient
from ..support.waiting import eventually, passed
from .tunnelling import HANDSHAKE, SWITCHED, Holding, echo, gone, in_flight, open_tunnel, switch, switching, tunnelling

MIB = 1024 * 1024


def some_bytes(size_bytes: int) -> bytes:
    return random.Random(17).randbytes(size_bytes)


@pytest.mark.parametrize("size_bytes", [1, 125, 65_535, 65_536, 65_537, 4 * MIB])
def test_bytes_go_both_ways_as_they_are(size_bytes: int) -> None:
    whole = some_bytes(size_bytes)
    with ScriptedBackend(switching(echo)) as backend, tunnelling(backend) as live, open_tunnel(live) as client:
        sending = threading.Thread(target=client.send, args=(whole,))
        sending.start()
        assert client.read(size_bytes) == whole
        sending.join()


def test_bytes_behind_both_heads_are_the_first_of_the_tunnel() -> None:
    with (
        ScriptedBackend(switching(echo, b"from the backend,")) as backend,
        tunnelling(backend) as live,
        RawClient(live.url) as client,
    ):
        client.send(HANDSHAKE + b"from the client")
        assert client.response().status == 101
        assert client.read(32) == b"from the backend,from the client"


def test_large_bytes_behind_both_heads_arrive_whole() -> None:
    whole = some_bytes(60_000)

    def check(connection: ScriptedConnection) -> None:
        assert connection.read(len(whole)) == whole

    with ScriptedBackend(switching(check, whole)) as backend, tunnelling(backend) as live, RawClient(live.url) as client:
        client.send(HANDSHAKE + whole)
        assert client.response().status == 101
        assert client.rest() == whole


def test_bytes_sent_before_the_switch_wait_for_it() -> None:
    seen, go_on = threading.Event(), threading.Event()

    def script(connection: ScriptedConnection) -> None:
        connection.read_request()
        seen.set()
        go_on.wait(10)
        connection.send(SWITCHED)
        echo(connection)

    with ScriptedBackend(script) as backend, tunnelling(backend) as live, RawClient(live.url) as client:
        client.send(HANDSHAKE)
        passed(seen)
        client.send(b"too early")
        assert client.is_silent()
        go_on.set()
        assert client.response().status == 101
        assert client.read(9) == b"too early"


def test_client_that_closes_closes_the_backends_connection() -> None:
    seen: list[bytes] = []
    backend = ScriptedBackend(switching(lambda connection: seen.append(connection.read(6))))
    with backend, tunnelling(backend) as live:
        with open_tunnel(live) as client:
            client.send(b"bye")
        gone(live)
        assert seen == [b"bye"]


def test_backend_that_closes_closes_the_clients_connection() -> None:
    with ScriptedBackend(switching(lambda connection: connection.send(b"bye"))) as backend, tunnelling(backend) as live:
        with open_tunnel(live) as client:
            assert client.rest() == b"bye"
            assert not client.was_reset
        gone(live)


def test_client_that_half_closes_still_gets_everything() -> None:
    whole = some_bytes(3 * MIB)

    def answer(connection: ScriptedConnection) -> None:
        assert connection.read(100) == b"that is all", "the backend should see the end"
        connection.send(whole)

    with ScriptedBackend(switching(answer)) as backend, tunnelling(backend) as live, open_tunnel(live) as client:
        client.send(b"that is all")
        client.half_close()
        assert client.rest() == whole
        assert not client.was_reset


def test_backend_that_half_closes_still_gets_everything() -> None:
    whole = some_bytes(3 * MIB)
    received: list[bytes] = []

    def take(connection: ScriptedConnection) -> None:
        connection.send(b"that is all")
        connection.sock.shutdown(socket.SHUT_WR)
        received.append(connection.read(4 * MIB))

    with ScriptedBackend(switching(take)) as backend, tunnelling(backend) as live, open_tunnel(live) as client:
        assert client.rest() == b"that is all"
        client.send(whole)
        client.close()
        gone(live)
        eventually(lambda: received, "the backend has read it all")
    assert received == [whole]


def test_client_that_is_reset_closes_the_backends_connection() -> None:
    ended = threading.Event()

    def wait(connection: ScriptedConnection) -> None:
        assert connection.wait_closed()
        ended.set()

    with ScriptedBackend(switching(wait)) as backend, tunnelling(backend) as live, open_tunnel(live) as client:
        client.reset()
        gone(live)
        passed(ended)


def test_backend_that_is_reset_closes_the_clients_connection() -> None:
    with (
        ScriptedBackend(switching(ScriptedConnection.reset)) as backend,
        tunnelling(backend) as live,
        open_tunnel(live) as client,
    ):
        assert client.is_closed()
        gone(live)


@pytest.mark.parametrize("full", ["client", "backend"])
def test_reset_of_a_blocked_side_is_detected(full: str) -> None:
    """It is not being read, so only epoll can report the reset."""
    holding = Holding()
    with ScriptedBackend(switching(holding)) as backend, tunnelling(backend) as live, open_tunnel(live) as client:
        sender = client.sock if full == "backend" else holding.connection.sock
        sender.setblocking(False)
        fill(sender)
        if full == "backend":
            client.reset()
        else:
            holding.connection.reset()
        gone(live)
        holding.let_go()


def test_client_gets_the_last_bytes_of_a_backend_that_has_closed() -> None:
    """The closed backend resets its connection when the client sends; the client's must not be reset before it has read."""
    whole = some_bytes(50_000)
    with ScriptedBackend(switching(lambda connection: connection.send(whole))) as backend, tunnelling(backend) as live:
        with open_tunnel(live) as client:
            eventually(lambda: live.server.tunnels._ending, "the backend's half-close is received")
            for _ in range(20):
                client.send(b"are you still there? " * 100)
            assert client.rest() == whole
            assert not client.was_reset
        gone(live)


def test_half_close_that_is_never_answered_ends_the_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnels, "HALF_CLOSED_SECONDS", 0.05)
    holding = Holding()
    with ScriptedBackend(switching(holding)) as backend, tunnelling(backend) as live, open_tunnel(live) as client:
        assert holding.connection
        client.half_close()
        gone(live)
        assert client.is_closed()
        holding.let_go()


def test_backend_that_continues_to_send_to_a_closed_client_is_disconnected() -> None:
    """A backend that ignores half-closes must not keep the tunnel of a disconnected client open."""
    go_on, stopped = threading.Event(), threading.Event()

    def talk(connection: ScriptedConnection) -> None:
        connection.send(b"hello")
        go_on.wait(10)
        try:
            while True:
                connection.send(b"la" * 1_000)
        finally:
            stopped.set()

    with ScriptedBackend(switching(talk)) as backend, tunnelling(backend) as live:
        with open_tunnel(live) as client:
            assert client.read(5) == b"hello"
        go_on.set()
        passed(stopped, "the backend's connection is closed")
        gone(live)


def test_tunnel_that_waits_for_a_slow_backend_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once both directions to a client are closed, epoll reports it continuously."""
    turns = 0
    advance = tunnels.Tunnels._advance

    def counted(self: tunnels.Tunnels, *arguments: Any) -> None:
        nonlocal turns
        turns += 1
        advance(self, *arguments)

    monkeypatch.setattr(tunnels.Tunnels, "_advance", counted)
    holding = Holding()
    with ScriptedBackend(switching(holding)) as backend, tunnelling(backend) as live, open_tunnel(live) as client:
        holding.connection.sock.shutdown(socket.SHUT_WR)
        assert client.is_closed()
        side = next(side for side in live.server.tunnels._sides.values() if side.name == "client")
        sent, held_up = 0, 0
        pause = threading.Event()
        while held_up < 3:  # for good, and with room for the client's end behind it
            held_up = held_up + 1 if side.other.unsent else 0
            if side.received == sent and not held_up:
                client.send(b"x" * 16_384)
                sent += 16_384
            pause.wait(0.02 if held_up else 0.0001)
        client.close()
        eventually(lambda: side.mask is None, "epoll no longer watches the client")
        before = turns
        pause.wait(0.1)
        assert turns - before < 20
        assert len(holding.connection.read(sent)) == sent
        gone(live)
        holding.let_go()


def fill(sock: socket.socket) -> int:
    """Send until the socket stays full; returns the number of bytes."""
    sent = 0
    pause = threading.Event()
    for _ in range(20):
        try:
            while True:
                sent += sock.send(b"x" * 65_536)
        except BlockingIOError:
            pause.wait(0.01)
    return sent


def test_backend_that_does_not_read_holds_up_the_client_in_bounded_memory() -> None:
    holding = Holding()
    with ScriptedBackend(switching(holding)) as backend, tunnelling(backend) as live, open_tunnel(live) as client:
        backend_side = holding.connection
        client.sock.setblocking(False)
        sent = fill(client.sock)
        assert sent < 16 * MIB, "more than sockets hold: it must be in memory"
        held = [len(side.unsent) for side in live.server.tunnels._sides.values()]
        assert max(held) <= tunnels.BLOCK_BYTES, held
        backend_side.send(b"and back")
        assert client.sock.recv(1) == b"a" if is_readable(client.sock) else False, "the other direction must go on"
        assert backend_side.read(sent) == b"x" * sent
        holding.let_go()


def test_client_that_does_not_read_holds_up_the_backend_in_bounded_memory() -> None:
    holding = Holding()
    with ScriptedBackend(switching(holding)) as backend, tunnelling(backend) as live, open_tunnel(live) as client:
        backend_side = holding.connection
        backend_side.sock.setblocking(False)
        sent = fill(backend_side.sock)
        assert sent < 16 * MIB, "more than sockets hold: it must be in memory"
        held = [len(side.unsent) for side in live.server.tunnels._sides.values()]
        assert max(held) <= tunnels.BLOCK_BYTES, held
        assert client.read(sent) == b"x" * sent
        holding.let_go()


def is_readable(sock: socket.socket) -> bool:
    def readable() -> bool:
        try:
            return bool(sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False

    return eventually(readable, "something comes")


def test_hundreds_of_idle_tunnels_hold_no_threads() -> None:
    count = 500
    connections: list[ScriptedConnection] = []
    listener = socket.create_server(("127.0.0.1", 0), backlog=count)

    def accept() -> None:
        for number in range(count):
            connection = ScriptedConnection(listener.accept()[0], number, lambda request: None)
            connection.read_head()
            connection.send(SWITCHED)
            connections.append(connection)

    backend = threading.Thread(target=accept)
    backend.start()
    few = {"threads": 2, "max_in_flight": 1, "max_slow_clients": 1}
    with tunnelling(f"http://127.0.0.1:{listener.getsockname()[1]}", **few) as live:
        clients = [RawClient(live.url) for _ in range(count)]
        try:
            for client in clients:
                switch(client)
            backend.join(10)
            eventually(lambda: len(live.server.tunnels) == in_flight(live) == count, "all are open")
            names = [thread.name for thread in threading.enumerate()]
            assert names.count("rgate-tunnels") == 1
            assert names.count("rgate-worker") <= 4, names
            for at in (0, count // 2, count - 1):
                clients[at].send(b"%d" % at)
                assert connections[at].read(len(str(at))) == b"%d" % at
        finally:
            for client in clients:
                client.close()
            for connection in connections:
                connection.close()
            listener.close()
        eventually(lambda: not live.server.tunnels, "all are over")


def test_thread_of_tunnels_starts_with_the_first() -> None:
    def names() -> list[str]:
        return [thread.name for thread in threading.enumerate()]

    with ScriptedBackend(switching(echo)) as backend, tunnelling(backend) as live:
        assert "rgate-tunnels" not in names()
        with open_tunnel(live):
            eventually(lambda: "rgate-tunnels" in names())
    assert "rgate-tunnels" not in names()
