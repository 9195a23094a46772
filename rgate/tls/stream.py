"""TLS on one socket, with the methods of a plain socket.

OpenSSL works on buffers in memory here, and the socket belongs to the caller. So TLS connections can share epoll, poll and the
kernel's timeouts with plain ones: recv() decrypts everything that has arrived, so when the socket is not readable there is
nothing to read; reading never writes, so it never waits for the socket to become writable; and only the kernel waits.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

__all__ = ["PlaintextReceived", "TLSStream"]

RECEIVE_BYTES: Final = 65_536
RECORD_BYTES: Final = 16_384  # the most that one record carries (RFC 8446 §5.1)
HANDSHAKE_BYTES: Final = 262_144  # OpenSSL allows a ClientHello of 131,396 bytes and certificates of 102,400

# At most so many bytes may arrive without a byte of plaintext (nearly two records); more is a flood of empty messages that cost
# CPU time. And at most so many bytes of answers to KeyUpdate (RFC 8446 §4.6.3; OpenSSL writes one for each) may wait for the
# next write: about 150 answers, while regular clients send one KeyUpdate for every 24 million records.
MAX_BYTES_WITHOUT_PLAINTEXT: Final = 32_768
MAX_ANSWER_BYTES: Final = 4_096


# The first byte of a request line; that of a ClientHello is 22, the type of its record (RFC 8446 §5.1).
_TEXT_START: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz\r\n")


class PlaintextReceived(Exception):
    """The client seems to send plain HTTP instead of TLS. The argument is what it has sent."""


class TLSStream:
    """One end of a TLS connection on `sock`: the client's end, of a server called `server_name`, or without one the server's.

    It begins with the handshake: call do_handshake(), whenever something has arrived, until it returns true; or connect(). Then
    recv(), send(), sendall(), sendmsg(), shutdown() and close() are those of a socket, which stays blocking or non-blocking as it
    is. Methods raise OSError, of which ssl.SSLError is a subclass. One thread at a time may use it, except for a shutdown() that
    includes the receiving side, which any thread may call to wake the one that is blocked.

    has_more        after recv() and do_handshake(): there may be more to read that poll() does not report, because the socket
                    has given as much as was asked for, or because the end has arrived with the last bytes
    handshake_done  the handshake is complete
    """

    __slots__ = (
        "_accepted",
        "_broken",
        "_bytes_without_plaintext",
        "_client",
        "_closing",
        "_ended",
        "_handshake_bytes",
        "_incoming",
        "_outgoing",
        "_ready",
        "_unsent",
        "handshake_done",
        "has_more",
        "sock",
        "tls",
    )

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_name: str | None = None) -> None:
        self.sock = sock
        self._client = server_name is not None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, not self._client, server_name)
        self._handshake_bytes = 0
        self._bytes_without_plaintext = 0
        self._ready = b""  # decrypted already
        self._unsent = b""  # records that the socket has not accepted yet
        self._accepted = 0  # the number of plaintext bytes in them
        self._ended = self._closing = self._broken = False
        self.handshake_done = False
        self.has_more = False

    def fileno(self) -> int:
        return self.sock.fileno()

    def setsockopt(self, *arguments: Any) -> None:
        self.sock.setsockopt(*arguments)

    def setblocking(self, blocking: bool) -> None:
        self.sock.setblocking(blocking)

    def do_handshake(self, size: int) -> bool:
        """Continue the handshake as far as possible without waiting; returns true when it is complete.

        While `wants_write` is true, call it again when the socket becomes writable, too. Raises PlaintextReceived for plain HTTP,
        ssl.SSLError when the handshake has failed (send_close_notify() tells the peer why), OSError when the peer has left.
        """
        self.flush()
        self.has_more = False
        try:
            block = self.sock.recv(size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        if not block:
            raise ConnectionError("closed within the TLS handshake")
        if not self._handshake_bytes and not self._client and block[0] in _TEXT_START:
            raise PlaintextReceived(block)
        self.has_more = len(block) == size
        self._handshake_bytes += len(block)
        if self._handshake_bytes > HANDSHAKE_BYTES:
            raise ssl.SSLError("the handshake takes too many bytes")
        self._incoming.write(block)
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self.flush()
            return False
        self.flush()
        self.handshake_done = True
        self._ready, self._ended = self._decrypt(b"")
        return True

    def connect(self, until: float) -> None:
        """Complete a client's handshake by a time of the monotonic clock. Raises TimeoutError and as do_handshake() does."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        poll = select.poll()
        while not self.do_handshake(RECEIVE_BYTES):
            poll.register(self.sock, select.POLLIN | select.POLLOUT if self._unsent else select.POLLIN)
            if not poll.poll(max(0.0, until - monotonic()) * 1_000):
                raise TimeoutError("the TLS handshake took too long")

    @property
    def readable(self) -> bool:
        """Whether recv() would return or raise without waiting. The socket may be readable while this is false: servers also send
        session tickets. May decrypt, so only the thread that reads may ask."""
        if not self._ready:
            try:
                self._ready = self.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                return True
        return True

    @property
    def has_buffered_plaintext(self) -> bool:
        """Whether recv() has decrypted bytes to return. Only after `readable` was true."""
        return bool(self._ready)

    @property
    def eof_received(self) -> bool:
        """Whether the peer has ended its side (close_notify), so that recv() never waits again."""
        return self._ended

    @property
    def wants_write(self) -> bool:
        """Whether encrypted bytes wait for the socket to become writable."""
        return bool(self._unsent)

    def flush(self) -> None:
        """Send the bytes that wait, as far as the socket accepts them without waiting."""
        with contextlib.suppress(BlockingIOError):
            self._flush()

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Everything that has arrived, which may be more than `size` bytes; b"" at the end.

        On the client's side a connection that ends without close_notify raises ConnectionError, because a response may end with
        the connection (RFC 9112 §9.8). A request never does, so a server does not distinguish the two.
        """
        if self._ready or self._ended:
            block, self._ready = self._ready, b""
            self.has_more = bool(block) and self._ended
            return block
        while True:
            self.has_more = False
            block = self.sock.recv(size, flags)
            self.has_more = len(block) == size
            if not self.handshake_done:
                return block  # the handshake has failed; the caller only discards what still arrives
            if not block:
                if self._client:
                    raise ConnectionError("closed without a TLS close_notify")
                return block
            block, self._ended = self._decrypt(block)
            if block or self._ended:
                self.has_more = self.has_more or (self._ended and bool(block))
                return block

    def send(self, block: bytes | memoryview, flags: int = 0) -> int:
        """Send some of `block` without waiting and return how much. After BlockingIOError pass the same bytes again."""
        if not self._accepted:
            self._flush()
            block = block[: 4 * RECORD_BYTES]
            self._unsent, self._accepted = self._encrypt(block), len(block)
        self._flush()
        accepted, self._accepted = self._accepted, 0
        return accepted

    def sendall(self, block: bytes) -> None:
        """Send all of `block`. If send() has raised BlockingIOError, `block` must begin with the bytes passed to it."""
        if self._accepted:
            block = block[self._accepted :]
        records = self._unsent + self._encrypt(block)
        self._unsent, self._accepted = b"", 0
        self._broken = True  # after a partial record the peer can read nothing that follows
        self.sock.sendall(records)
        self._broken = False

    def sendmsg(self, parts: Sequence[bytes], ancillary: tuple[()] = (), flags: int = 0) -> int:
        """Send all parts and return their size. With MSG_DONTWAIT it behaves like send()."""
        block = b"".join(parts)
        if flags & socket.MSG_DONTWAIT:
            return self.send(block)
        self.sendall(block)
        return len(block)

    def shutdown(self, how: int) -> None:
        """End one direction or both. SHUT_WR alone sends close_notify; the peer may go on sending (RFC 8446 §6.1)."""
        if how == socket.SHUT_WR:
            self.send_close_notify()
        self.sock.shutdown(how)

    def send_close_notify(self) -> None:
        """Send close_notify, or after an error the alert that names it. Never waits or raises."""
        if self._broken or self._closing:
            return
        self._closing = True
        with contextlib.suppress(OSError):
            self.tls.unwrap()
        with contextlib.suppress(OSError):
            self._flush()

    def close(self) -> None:
        self.sock.close()

    def _flush(self) -> None:
        """Send without waiting. Raises BlockingIOError when bytes are left."""
        if self._outgoing.pending:
            self._unsent += self._outgoing.read()
        while self._unsent:
            self._unsent = self._unsent[self.sock.send(self._unsent, socket.MSG_DONTWAIT) :]

    def _encrypt(self, block: bytes | memoryview) -> bytes:
        write, read_records = self.tls.write, self._outgoing.read
        if len(block) <= RECORD_BYTES:
            if block:
                write(block)
            return read_records()
        # Record by record, so that OpenSSL's buffer, which never shrinks, stays small.
        records = []
        view = memoryview(block)
        for at in range(0, len(block), RECORD_BYTES):
            write(view[at : at + RECORD_BYTES])
            records.append(read_records())
        return b"".join(records)

    def _decrypt(self, block: bytes) -> tuple[bytes, bool]:
        """Decrypt `block`; returns the plaintext, and whether the peer has ended its side."""
        incoming, read = self._incoming, self.tls.read
        plain: list[bytes] = []
        for at in range(0, len(block) or 1, RECORD_BYTES):
            incoming.write(block if len(block) <= RECORD_BYTES else block[at : at + RECORD_BYTES])
            try:
                while incoming.pending:
                    part = read(RECORD_BYTES)
                    if not part:
                        return b"".join(plain), True
                    plain.append(part)
            except ssl.SSLZeroReturnError:  # close_notify of the peer, after our own
                return b"".join(plain), True
            except ssl.SSLWantReadError:
                pass
        self._bytes_without_plaintext = 0 if plain else self._bytes_without_plaintext + len(block)
        if self._bytes_without_plaintext > MAX_BYTES_WITHOUT_PLAINTEXT or self._outgoing.pending > MAX_ANSWER_BYTES:
            raise ssl.SSLError("a flood of TLS messages without plaintext")
        return plain[0] if len(plain) == 1 else b"".join(plain), False
