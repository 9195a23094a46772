"""Tunnels over TLS, to the client, to the backend, or both (RFC 8446 §6.1)."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rgate.testing import ScriptedBackend, ScriptedConnection

from ..support.certificates import authority
from ..support.forwarding import Forwarding
from ..support.raw_client import RawClient
from ..support.tls_client import SHOP, TLS, SecureClient
from ..support.waiting import DEADLINE_SECONDS, eventually, passed
from .tunnelling import HANDSHAKE, Holding, echo, gone, switching, tunnelling

MIB = 1024 * 1024


def over_tls(script: Callable[[ScriptedConnection], None]) -> Callable[[ScriptedConnection], None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(SHOP.both)

    def wrapped(connection: ScriptedConnection) -> None:
        connection.sock = context.wrap_socket(connection.sock, server_side=True)
        script(connection)

    return wrapped


class Kind:
    """The sides that use TLS."""

    def __init__(self, client: bool, backend: bool) -> None:
        self.client = client
        self.backend = backend

    @contextmanager
    def open(self, then: Callable[[ScriptedConnection], object], after: bytes = b"", early: bytes = b"") -> Iterator[Any]:
        """A gateway and a client with a tunnel to a backend that does `then`."""
        server = TLS if self.client else {}
        script = switching(then, after)
        with ScriptedBackend(over_tls(script) if self.backend else script) as backend:
            url = f"https://localhost:{backend.port}" if self.backend else backend.url
            with tunnelling(url, **server) as live, self.connect(live) as client:
                client.send(HANDSHAKE + early)
                response = client.response()
                assert response.status == 101, response
                yield live, client

    def connect(self, live: Forwarding) -> RawClient:
        return SecureClient(live.url) if self.client else RawClient(live.url)


KINDS = {"client": Kind(True, False), "backend": Kind(False, True), "both": Kind(True, True)}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the system's trust store contain the test CA."""
    monkeypatch.setenv("SSL_CERT_FILE", authority().file)


@each_kind
@pytest.mark.parametrize("size_bytes", [1, 16_384, 16_385, 65_536, 4 * MIB])
def test_bytes_go_both_ways_as_they_are(kind: Kind, size_bytes: int) -> None:
    whole = random.Random(17).randbytes(size_bytes)
    with kind.open(echo) as (_, client):
        for at in range(0, size_bytes, 100_000):  # by turns, as an SSLSocket is one thread's at a time
            client.send(whole[at : at + 100_000])
            assert client.read(len(whole[at : at + 100_000])) == whole[at : at + 100_000]


@each_kind
def test_large_answer_to_a_reader_that_begins_late_arrives_whole(kind: Kind) -> None:
    whole = random.Random(17).randbytes(8 * MIB)
    with kind.open(lambda connection: connection.send(whole)) as (live, client):
        eventually(lambda: any(side.unsent for side in live.server.tunnels._sides.values()), "the client holds it up")
        assert client.read(len(whole)) == whole
        client.close()
        gone(live)


@each_kind
def test_large_upload_to_a_backend_that_begins_late_arrives_whole(kind: Kind) -> None:
    whole = random.Random(17).randbytes(8 * MIB)
    go_on, arrived = threading.Event(), threading.Event()

    def take(connection: ScriptedConnection) -> None:
        go_on.wait(10)
        blocks = []
        left = len(whole)
        while left:
            blocks.append(connection.read_some())
            left -= len(blocks[-1])
        assert b"".join(blocks) == whole
        arrived.set()

    with kind.open(take) as (live, client):
        sending = threading.Thread(target=client.send, args=(whole,))
        sending.start()
        eventually(lambda: any(side.unsent for side in live.server.tunnels._sides.values()), "the backend holds it up")
        go_on.set()
        passed(arrived)
        sending.join()


@each_kind
def test_bytes_behind_both_heads_are_the_first_of_the_tunnel(kind: Kind) -> None:
    with kind.open(echo, b"from the backend,", b"from the client") as (_, client):
        assert client.read(32) == b"from the backend,from the client"


@each_kind
def test_client_that_ends_still_gets_everything(kind: Kind) -> None:
    """Its close_notify arrives in one packet with its last bytes."""
    whole = random.Random(17).randbytes(MIB)

    def answer(connection: ScriptedConnection) -> None:
        assert connection.read(10) == b"bye"
        connection.send(whole)

    with kind.open(answer) as (live, client):
        last_words(client, b"bye")
        assert client.read(len(whole)) == whole
        gone(live)


def last_words(client: RawClient, block: bytes) -> None:
    """Send the bytes and close_notify in one packet."""
    if isinstance(client, SecureClient):
        tls: Any = vars(client.tls)["_sslobj"]  # as SSLSocket.unwrap() does, but without waiting for the other end's goodbye
        client.sock.setblocking(False)
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        tls.write(block)
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.shutdown()
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        client.sock.settimeout(DEADLINE_SECONDS)
    else:
        client.send(block)
        client.half_close()


@each_kind
def test_backend_that_closes_closes_the_clients_connection(kind: Kind) -> None:
    with kind.open(lambda connection: connection.send(b"bye")) as (live, client):
        assert client.rest() == b"bye"
        assert not client.was_reset
        client.close()
        gone(live)


@each_kind
def test_backend_that_ends_still_gets_everything(kind: Kind) -> None:
    whole = random.Random(17).randbytes(MIB)
    received: list[bytes] = []

    def take(connection: ScriptedConnection) -> None:
        connection.send(b"that is all")
        if isinstance(connection.sock, ssl.SSLSocket):
            tls: Any = vars(connection.sock)["_sslobj"]
            connection.sock.setblocking(False)
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.shutdown()
            connection.sock.settimeout(DEADLINE_SECONDS)
        else:
            connection.sock.shutdown(socket.SHUT_WR)
        received.append(connection.read(len(whole)))

    with kind.open(take) as (live, client):
        assert client.rest() == b"that is all"
        client.send(whole)
        eventually(lambda: received == [whole], "the backend has it all")
        client.close()
        gone(live)


def test_client_that_ends_after_the_backend_has_said_all() -> None:
    """Both have closed; bytes still on their way to a slow backend must arrive."""
    whole = random.Random(17).randbytes(8 * MIB)
    go_on = threading.Event()
    received: list[bytes] = []

    def take(connection: ScriptedConnection) -> None:
        connection.sock.shutdown(socket.SHUT_WR)
        go_on.wait(10)
        blocks = []
        while block := connection.read_some():
            blocks.append(block)
        received.append(b"".join(blocks))

    with KINDS["client"].open(take) as (live, client):
        assert client.rest() == b""

        def send() -> None:
            client.send(whole)
            last_words(client, b"!")

        sending = threading.Thread(target=send)
        sending.start()
        eventually(lambda: live.server.tunnels._sides and any(s.unsent for s in live.server.tunnels._sides.values()))
        go_on.set()
        sending.join(10)
        eventually(lambda: received, "the backend has its end")
        assert received == [whole + b"!"]


@each_kind
def test_client_that_is_reset_closes_the_backends_connection(kind: Kind) -> None:
    ended = threading.Event()

    def wait(connection: ScriptedConnection) -> None:
        with contextlib.suppress(ssl.SSLError):  # a cut, and not an end
            assert connection.wait_closed()
        ended.set()

    with kind.open(wait) as (live, client):
        client.reset()
        gone(live)
        passed(ended)


@each_kind
def test_stop_closes_both_sides(kind: Kind) -> None:
    holding = Holding()
    with kind.open(holding) as (live, client):
        config = live.server.config.model_copy(update={"drain_seconds": 0.05})
        live.server.reconfigure(live.server.app, config, live.server.tls)
        live.server.stop()
        assert client.is_closed()
        gone(live)
        holding.let_go()
