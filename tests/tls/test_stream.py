"""TLSStream alone, on a pair of sockets: what it gives is what was sent, however the bytes come."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from rgate.config.models import TLSConfig
from rgate.tls.server_context import ServerTLS
from rgate.tls.stream import PlaintextReceived, TLSStream

from ..support.certificates import authority
from ..support.tls_client import SHOP, MemoryClient
from .records import APPLICATION_DATA, Sealer, logging_context

CONTEXT = ServerTLS(TLSConfig(certificate=SHOP.certificate, key=SHOP.key)).context
SIZE = 65_536


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def sock(pair: tuple[socket.socket, socket.socket]) -> socket.socket:
    """The test's end."""
    return pair[0]


@pytest.fixture
def stream(pair: tuple[socket.socket, socket.socket]) -> TLSStream:
    """The server's end, before the handshake."""
    return TLSStream(pair[1], CONTEXT)


def connect(sock: socket.socket, stream: TLSStream, client: MemoryClient | None = None) -> MemoryClient:
    """The handshake, as it usually goes."""
    client = client or MemoryClient()
    sock.sendall(client.to_send())
    assert not stream.do_handshake(SIZE)
    client.take(sock.recv(SIZE))
    while not client.do_handshake():
        client.take(sock.recv(SIZE))
    sock.sendall(client.to_send())
    assert stream.do_handshake(SIZE)
    return client


def received(stream: TLSStream) -> bytes:
    """All that can be had without waiting."""
    whole = b""
    while True:
        try:
            block = stream.recv(SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return whole
        whole += block
        if not block:
            return whole


def hello() -> bytes:
    return MemoryClient().to_send()


def test_handshake_goes_on_at_every_split_of_the_client_hello() -> None:
    for at in range(1, len(hello())):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(10)
            client, stream = MemoryClient(), TLSStream(theirs, CONTEXT)
            whole = client.to_send()
            for part in (whole[:at], whole[at:]):
                ours.sendall(part)
                assert not stream.do_handshake(SIZE)
            client.take(ours.recv(SIZE))
            assert client.do_handshake(), f"split at {at}"


def test_handshake_and_first_bytes_come_one_by_one(sock: socket.socket, stream: TLSStream) -> None:
    client = MemoryClient()
    for byte in client.to_send():
        sock.sendall(bytes([byte]))
        assert not stream.do_handshake(SIZE)
    client.take(sock.recv(SIZE))
    assert client.do_handshake()
    client.tls.write(b"hello")
    seen = b""
    for byte in client.to_send():
        sock.sendall(bytes([byte]))
        if stream.handshake_done:
            seen += received(stream)
        else:
            stream.do_handshake(SIZE)
    assert seen == b"hello"


def test_bytes_that_come_with_the_end_of_the_handshake_are_kept(sock: socket.socket, stream: TLSStream) -> None:
    client = MemoryClient()
    sock.sendall(client.to_send())
    stream.do_handshake(SIZE)
    client.take(sock.recv(SIZE))
    assert client.do_handshake()
    client.tls.write(b"hello")
    sock.sendall(client.to_send())
    assert stream.do_handshake(SIZE)
    assert received(stream) == b"hello"


def test_records_are_read_at_every_split(sock: socket.socket, stream: TLSStream) -> None:
    client = connect(sock, stream)
    for at in range(1, 60):
        client.tls.write(b"first")
        client.tls.write(b"second")
        whole = client.to_send()
        sock.sendall(whole[:at])
        before = received(stream)
        sock.sendall(whole[at:])
        assert before + received(stream) == b"firstsecond", f"split at {at}"


def test_nothing_is_held_back_when_the_socket_is_empty(sock: socket.socket, stream: TLSStream) -> None:
    client = connect(sock, stream)
    for number in range(50):
        client.tls.write(b"%02d" % number * 500)
    sock.sendall(client.to_send())
    whole = stream.recv(SIZE)
    assert stream.tls.pending() == 0
    while stream.has_more:
        whole += stream.recv(SIZE)
    assert len(whole) == 50_000


def test_more_than_one_recv_is_told(sock: socket.socket, stream: TLSStream) -> None:
    client = connect(sock, stream)
    client.tls.write(b"x" * 500)
    client.tls.write(b"y" * 500)
    sock.sendall(client.to_send())
    assert stream.recv(1_000) == b"x" * 500
    assert stream.has_more
    assert stream.recv(1_000) == b"y" * 500
    assert not stream.has_more


def test_end_that_comes_with_bytes_is_told_after_them(sock: socket.socket, stream: TLSStream) -> None:
    client = connect(sock, stream)
    client.tls.write(b"bye")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    sock.sendall(client.to_send())
    assert stream.recv(SIZE) == b"bye"
    assert stream.has_more
    assert stream.recv(SIZE) == b""
    assert not stream.has_more


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384, 16_385, 65_536, 300_000])
def test_what_is_sent_arrives(sock: socket.socket, stream: TLSStream, size: int) -> None:
    client = connect(sock, stream)
    whole = bytes(range(256)) * (size // 256 + 1)

    def send() -> None:
        stream.sendall(whole[:size])
        stream.shutdown(socket.SHUT_WR)

    sending = threading.Thread(target=send)
    sending.start()
    arrived = b""
    while block := client.read_over(sock):
        arrived += block
    sending.join()
    assert arrived == whole[:size]


def test_send_takes_what_the_socket_takes(sock: socket.socket, stream: TLSStream) -> None:
    client = connect(sock, stream)
    whole = bytes(range(256)) * 8_192
    left, arrived, refused = memoryview(whole), b"", 0
    while len(arrived) < len(whole):
        if left:
            try:
                left = left[stream.send(left) :]
                continue
            except BlockingIOError:
                refused += 1
        arrived += client.read_over(sock)
    assert arrived == whole
    assert refused, "the socket has taken all at once, so this test shows nothing"


@pytest.mark.parametrize("parts", [False, True])
def test_what_send_has_not_taken_is_sent_once(sock: socket.socket, stream: TLSStream, parts: bool) -> None:
    client = connect(sock, stream)
    whole = bytes(range(256)) * 8_192
    left = whole
    with pytest.raises(BlockingIOError):
        while left:
            sent = stream.sendmsg((left[:10], left[10:]), (), socket.MSG_DONTWAIT) if parts else stream.send(left)
            left = left[sent:]

    def send() -> None:
        if parts:
            stream.sendmsg((left[:10], left[10:]))
        else:
            stream.sendall(left)
        stream.shutdown(socket.SHUT_WR)

    sending = threading.Thread(target=send)
    sending.start()
    arrived = b""
    while block := client.read_over(sock):
        arrived += block
    sending.join()
    assert arrived == whole


def test_half_close_leaves_the_other_direction_open(sock: socket.socket, stream: TLSStream) -> None:
    client = connect(sock, stream)
    stream.shutdown(socket.SHUT_WR)
    assert client.read_over(sock) == b""
    client.tls.write(b"still here")
    sock.sendall(client.to_send())
    assert stream.recv(SIZE) == b"still here"


def test_goodbye_is_none_after_half_a_record(sock: socket.socket, stream: TLSStream) -> None:
    connect(sock, stream)
    stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    stream.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        stream.sendall(b"x" * 4_000_000)
    stream.send_close_notify()
    stream.close()
    size = 0
    while block := sock.recv(SIZE):
        size += len(block)
    assert size % (16_384 + 22), "what has been sent ends with a record, so this test shows nothing"


def test_broken_record_is_an_error_and_the_client_is_told(sock: socket.socket, stream: TLSStream) -> None:
    client = connect(sock, stream)
    client.tls.write(b"hello")
    record = client.to_send()
    sock.sendall(record[:-1] + bytes([record[-1] ^ 1]))
    with pytest.raises(ssl.SSLError):
        stream.recv(SIZE)
    stream.send_close_notify()
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
        client.read_over(sock)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x00\x05hello",
        b"\x00" * 100,
        b"\x80\x2e\x01\x03\x01" + b"\x00" * 60,
        b"\x17\x03\x03\x00\x01x",
        b"\xff" * 20_000,
    ],
    ids=["no handshake", "zeros", "SSL 2", "data first", "noise"],
)
def test_garbage_is_no_handshake(sock: socket.socket, stream: TLSStream, garbage: bytes) -> None:
    sock.sendall(garbage)
    with pytest.raises(ssl.SSLError):
        stream.do_handshake(SIZE)


@pytest.mark.parametrize(
    "line", [b"GET / HTTP/1.1\r\n", b"DELETE /x HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n", b"\r\nGET / HTTP/1.1\r\n"]
)
def test_plain_http_is_told_from_garbage(sock: socket.socket, stream: TLSStream, line: bytes) -> None:
    sock.sendall(line)
    with pytest.raises(PlaintextReceived) as caught:
        stream.do_handshake(SIZE)
    assert caught.value.args[0] == line


def test_handshake_that_never_ends_is_cut(sock: socket.socket, stream: TLSStream) -> None:
    claimed = b"\x16\x03\x01\x40\x00\x01\x01\xff\xff" + b"\x00" * (16_384 - 4)
    with pytest.raises(ssl.SSLError):
        for _ in range(40):
            sock.sendall(claimed)
            while stream.do_handshake(SIZE) or stream.has_more:
                pass


def test_client_that_leaves_within_the_handshake_is_gone(sock: socket.socket, stream: TLSStream) -> None:
    sock.sendall(hello()[:100])
    assert not stream.do_handshake(SIZE)
    sock.close()
    with pytest.raises(ConnectionError):
        stream.do_handshake(SIZE)


def flooding(tmp_path: Path, sock: socket.socket, stream: TLSStream) -> Sealer:
    client = MemoryClient(context=logging_context(authority().client_context(), tmp_path / "keys"))
    connect(sock, stream, client)
    cipher = client.tls.cipher()
    assert cipher is not None
    return Sealer(tmp_path / "keys", cipher[0])


def test_key_update_now_and_then_is_fine(tmp_path: Path, sock: socket.socket, stream: TLSStream) -> None:
    sealer = flooding(tmp_path, sock, stream)
    for _ in range(300):
        sock.sendall(sealer.key_update() + sealer.seal(APPLICATION_DATA, b"hello"))
        assert stream.recv(SIZE) == b"hello"
        stream.sendall(b"hello")
        assert sock.recv(SIZE)


FLOODS: dict[str, Callable[[Sealer], bytes]] = {
    "key updates": Sealer.key_update,
    "empty records": lambda sealer: sealer.seal(APPLICATION_DATA, b""),
    "key updates and bytes": lambda sealer: sealer.key_update() + sealer.seal(APPLICATION_DATA, b"x"),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_flood_of_records_that_say_nothing_is_cut(kind: str, tmp_path: Path, sock: socket.socket, stream: TLSStream) -> None:
    sealer = flooding(tmp_path, sock, stream)
    sent = 0
    with pytest.raises(ssl.SSLError):
        while sent < 10 * SIZE:
            block = b"".join(FLOODS[kind](sealer) for _ in range(100))
            sock.sendall(block)
            sent += len(block)
            received(stream)
    assert sent < SIZE
    assert stream._outgoing.pending < 2 * 4_096, "an answer for each is kept"


def test_session_is_taken_up_again_and_knows_its_client() -> None:
    tls = ServerTLS(
        TLSConfig(certificate=SHOP.both, client_certificates={"ca": authority().file, "require": True})  # type: ignore[arg-type]
    )
    context = authority().client_context(authority().issue("alice@example.org", common_name="Alice"))
    session = None
    for round_ in range(2):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(10)
            stream = TLSStream(theirs, tls.context)
            client = MemoryClient(context=context)
            if session is not None:
                client = MemoryClient.__new__(MemoryClient)
                client.incoming, client.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                client.tls = context.wrap_bio(client.incoming, client.outgoing, server_hostname="localhost", session=session)
                client.do_handshake()
            connect(ours, stream, client)
            stream.sendall(b"hello")
            assert client.read_over(ours) == b"hello"
            session = client.tls.session
            assert client.tls.session_reused is (round_ == 1)
            subject = (stream.tls.getpeercert() or {})["subject"]
            assert (("commonName", "Alice"),) in subject


def peer(sock: socket.socket, go_on: threading.Event | None = None, unwrap: bool = False) -> threading.Thread:
    """A server at the other end, of Python's own kind, that says hello."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(SHOP.both)

    def run() -> None:
        with context.wrap_socket(sock, server_side=True) as secure:
            if go_on is not None:
                go_on.wait(10)
            secure.sendall(b"hello")
            if unwrap:
                secure.unwrap()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_client_reads_to_the_end_that_tls_has(pair: tuple[socket.socket, socket.socket]) -> None:
    stream = TLSStream(pair[1], authority().client_context(), "localhost")
    thread = peer(pair[0], unwrap=True)
    stream.connect(monotonic() + 10)
    assert stream.recv(SIZE) == b"hello"
    assert stream.recv(SIZE) == b""
    stream.send_close_notify()
    thread.join()


def test_client_takes_a_cut_for_no_end(pair: tuple[socket.socket, socket.socket]) -> None:
    stream = TLSStream(pair[1], authority().client_context(), "localhost")
    thread = peer(pair[0])
    stream.connect(monotonic() + 10)
    assert stream.recv(SIZE) == b"hello"
    with pytest.raises(ConnectionError, match="close_notify"):
        stream.recv(SIZE)
    assert stream.readable
    thread.join()


def test_session_tickets_are_nothing_that_has_come(pair: tuple[socket.socket, socket.socket]) -> None:
    stream = TLSStream(pair[1], authority().client_context(), "localhost")
    go_on = threading.Event()
    thread = peer(pair[0], go_on)
    stream.connect(monotonic() + 10)
    pair[1].recv(1, socket.MSG_PEEK)  # the socket is readable
    assert not stream.readable
    go_on.set()
    pair[1].recv(1, socket.MSG_PEEK)
    assert (stream.readable, stream.has_buffered_plaintext) == (True, True)
    assert stream.recv(SIZE) == b"hello"
    assert (stream.has_buffered_plaintext,) == (False,)
    thread.join()


def test_client_waits_for_a_handshake_no_longer_than_it_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    stream = TLSStream(pair[1], authority().client_context(), "localhost")
    with pytest.raises(TimeoutError):
        stream.connect(monotonic() + 0.02)
