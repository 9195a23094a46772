"""WebSocket as Autobahn's test suite puts it to an endpoint, in our own words: what is said through the gateway is, byte for
byte, what would be said without it (RFC 6455 §5 to §8). A tunnel has no opinion on frames, the bad ones included.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from rgate.testing import ScriptedBackend, ScriptedConnection

from ..support.forwarding import Forwarding
from ..support.raw_client import RawClient
from .tunnelling import ACCEPT, HANDSHAKE, echo, open_tunnel, switching, tunnelling

pytest.importorskip("websockets", reason="needs the websockets library")
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.server import ServerProtocol

MIB = 1024 * 1024
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """A frame as a client sends it, valid or not."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    size = len(payload)
    mask = 0x80 if masked else 0
    if size < 126:
        head = struct.pack("!BB", first, mask | size)
    elif size < 65_536:
        head = struct.pack("!BBH", first, mask | 126, size)
    else:
        head = struct.pack("!BBQ", first, mask | 127, size)
    if not masked:
        return head + payload
    key = b"\x11\x22\x33\x44"
    padding = -size % 4
    whole = int.from_bytes(payload + bytes(padding)) ^ int.from_bytes(key * ((size + padding) // 4))
    return head + key + whole.to_bytes(size + padding)[:size]


def message(opcode: int, *parts: bytes, between: bytes = b"") -> bytes:
    """A message in fragments, with other frames between them."""
    opcodes = [opcode, *[0] * (len(parts) - 1)]
    frames = [frame(code, part, fin=at == len(parts) - 1) for at, (code, part) in enumerate(zip(opcodes, parts, strict=True))]
    return between.join(frames)


def close(code: int | None = 1000, reason: bytes = b"") -> bytes:
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


END = close()
GREEK = "κόσμε".encode()
SIZES = (0, 1, 125, 126, 127, 128, 65_535, 65_536)

CASES: dict[str, bytes] = {
    **{f"1 text of {size}": frame(TEXT, b"*" * size) + END for size in SIZES},
    **{f"1 binary of {size}": frame(BINARY, b"\xfe" * size) + END for size in SIZES},
    "2 ping": frame(PING) + END,
    "2 ping with text": frame(PING, b"hello") + END,
    "2 ping with binary": frame(PING, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff") + END,
    "2 ping of 125": frame(PING, b"\xfe" * 125) + END,
    "2 ping of 126": frame(PING, b"\xfe" * 126) + END,
    "2 pong unasked": frame(PONG, b"hello") + frame(PING, b"there") + END,
    "2 ten pings": b"".join(frame(PING, b"payload-%d" % n) for n in range(10)) + END,
    **{
        f"3 reserved bits {rsv}": frame(TEXT, b"first") + frame(TEXT, b"second", rsv=rsv) + frame(PING) + END
        for rsv in range(1, 8)
    },
    **{
        f"4 opcode {code}": frame(TEXT, b"first") + frame(code, b"x") + frame(PING) + END
        for code in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    },
    "5 ping in fragments": message(PING, b"a", b"b") + END,
    "5 pong in fragments": message(PONG, b"a", b"b") + END,
    "5 text in fragments": message(TEXT, b"one", b"two") + END,
    "5 text in fragments with a ping between": message(TEXT, b"one", b"two", between=frame(PING, b"ping")) + END,
    "5 five fragments with pings between": message(TEXT, b"1", b"2", b"3", b"4", b"5", between=frame(PING, b"p")) + END,
    "5 empty fragments": message(BINARY, b"", b"", b"") + END,
    "5 continuation of nothing": frame(0, b"nothing") + frame(TEXT, b"hello") + END,
    "5 continuation of nothing, unfinished": frame(0, b"nothing", fin=False) + frame(TEXT, b"hello") + END,
    "5 text within a message": frame(TEXT, b"one", fin=False) + frame(TEXT, b"two") + END,
    "5 close within a message": frame(TEXT, b"one", fin=False) + END,
    "6 UTF-8": frame(TEXT, GREEK) + END,
    "6 UTF-8 in fragments, letter by letter": message(TEXT, *(GREEK[at : at + 1] for at in range(len(GREEK)))) + END,
    "6 UTF-8 of four bytes": frame(TEXT, "\U0010ffff\U00010000".encode()) + END,
    "6 UTF-8 that is broken": frame(TEXT, GREEK + b"\xed\xa0\x80edited") + END,
    "6 UTF-8 that is broken, in fragments": message(TEXT, GREEK, b"\xf4\x90\x80\x80", b"edited") + END,
    "6 UTF-8 that ends within a letter": frame(TEXT, GREEK[:-1]) + END,
    "6 UTF-8 that is overlong": frame(TEXT, b"\xc0\xaf") + END,
    "6 UTF-8 that is not a letter": frame(TEXT, b"\xff") + END,
    "7 close": END,
    "7 close without a code": close(None),
    "7 close of one byte": frame(CLOSE, b"x"),
    "7 close with a reason": close(1000, "bye ☕".encode()),
    "7 close with a reason of 123": close(1000, b"*" * 123),
    "7 close with a reason of 124": close(1000, b"*" * 124),
    "7 close with a reason that is broken": close(1000, b"\xce\xba\xed\xa0\x80"),
    "7 close twice": END + END,
    "7 close and then a message": END + frame(TEXT, b"late"),
    "7 close and then a ping": END + frame(PING, b"late"),
    **{
        f"7 close with {code}": close(code)
        for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
    },
    **{
        f"7 close with bad {code}": close(code)
        for code in (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65_535)
    },
    "7 message without a mask": frame(TEXT, b"hello", masked=False) + END,
    "9 text of 1 MiB": frame(TEXT, b"*" * MIB) + END,
    "9 binary of 16 MiB": frame(BINARY, b"\xfe" * (16 * MIB)) + END,
    "9 binary of 1 MiB in fragments of 64 bytes": message(BINARY, *[b"\xfe" * 64] * 16_384) + END,
    "9 binary of 16 MiB in fragments of 64 KiB": message(BINARY, *[b"\xfe" * 65_536] * 256) + END,
    "9 a thousand small messages": frame(TEXT, b"*" * 16) * 1_000 + END,
}  # fmt: skip


def frames_of(connection: ScriptedConnection) -> Iterator[bytes]:
    """Splits what a client sends into frames, independent of how it is divided into packets."""
    pending = bytearray()
    while block := connection.read_some():
        pending += block
        while len(pending) >= 2:
            size = pending[1] & 0x7F
            extra = {126: 2, 127: 8}.get(size, 0)
            if len(pending) < 2 + extra:
                break
            if extra:
                size = int.from_bytes(pending[2 : 2 + extra])
            whole = 2 + extra + (4 if pending[1] & 0x80 else 0) + size
            if len(pending) < whole:
                break
            yield bytes(pending[:whole])
            del pending[:whole]


def endpoint_of(connection: ScriptedConnection) -> None:
    """Echoes messages, and says the same however it is spoken to."""
    protocol = ServerProtocol(max_size=None)
    protocol.receive_data(connection.read_head())
    (request,) = protocol.events_received()
    assert isinstance(request, Request)
    protocol.send_response(protocol.accept(request))
    say(connection, protocol)
    parts: list[bytes] = []
    kind = TEXT
    for received in frames_of(connection):
        protocol.receive_data(received)
        for event in protocol.events_received():
            if isinstance(event, Frame) and event.opcode <= BINARY:
                kind = int(event.opcode) or kind
                parts.append(bytes(event.data))
                if event.fin:
                    whole, parts = b"".join(parts), []
                    _echo(protocol, kind, whole)
        say(connection, protocol)


def say(connection: ScriptedConnection, protocol: ServerProtocol) -> None:
    for said in protocol.data_to_send():
        if said:
            connection.send(said)
        else:
            connection.sock.shutdown(socket.SHUT_WR)


def _echo(protocol: ServerProtocol, kind: int, whole: bytes) -> None:
    if kind == BINARY:
        protocol.send_binary(whole)
        return
    try:
        whole.decode()
    except UnicodeDecodeError:
        protocol.fail(1007, "not UTF-8")
    else:
        protocol.send_text(whole)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with ScriptedBackend(endpoint_of) as running:
        yield running.url


@pytest.fixture(scope="module")
def live(endpoint: str) -> Iterator[Forwarding]:
    with tunnelling(endpoint) as running:
        yield running


def answer(url: str, said: bytes, step: int) -> bytes:
    """Everything an endpoint answers, until it closes."""
    with RawClient(url) as client:
        client.send(HANDSHAKE)
        assert client.response().value("Sec-WebSocket-Accept") == ACCEPT

        def say() -> None:
            try:
                for at in range(0, len(said), step):
                    client.send(said[at : at + step])
            except ConnectionError:
                pass  # it has heard enough

        saying = threading.Thread(target=say)
        saying.start()
        heard = client.rest()
        saying.join(20)
        return heard


@pytest.mark.parametrize("said", CASES.values(), ids=CASES)
def test_endpoint_says_through_the_gateway_what_it_says_without(live: Forwarding, endpoint: str, said: bytes) -> None:
    direct = answer(endpoint, said, len(said))
    assert answer(live.url, said, len(said)) == direct
    if len(said) < 1_000:
        assert answer(live.url, said, 1) == direct, "byte by byte"


def test_frames_arrive_as_they_were_sent_in_both_directions() -> None:
    """Every case in a row, behind a backend that gives back the bytes: not a mask, a bit or a border is touched."""
    whole = b"".join(CASES.values())
    with ScriptedBackend(switching(echo)) as backend, tunnelling(backend) as live, open_tunnel(live) as client:
        saying = threading.Thread(target=client.send, args=(whole,))
        saying.start()
        assert client.read(len(whole)) == whole
        saying.join()
