"""TLS on one socket: takes and gives what a plain socket would.

OpenSSL works in memory here, and the socket is ours. That is what lets TLS connections share the epoll, the polls and the
timeouts of plain ones: recv() decrypts all that has come, so that when the socket has nothing to read, there is nothing to
read; reading never writes, so it never has to wait for that; and waiting is the kernel's business.
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

# So much may come without a byte of plaintext, which is nearly two records; more is a flood of messages that make us
# work and say nothing. And so many answers to KeyUpdate (RFC 8446 §4.6.3; OpenSSL has one for each) may wait for the next
# write: about 150, where honest clients want one for every 24 million records.
SILENT_BYTES: Final = 32_768
ANSWERS_BYTES: Final = 4_096


# What a request line begins with; a ClientHello begins with 22, its record's type (RFC 8446 §5.1).
_TEXT_START: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz\r\n")


class PlaintextReceived(Exception):
    """The client does not speak TLS but, it seems, plain HTTP. The argument is what it has sent."""


class TLSStream:
    """One end of a TLS connection on `sock`: the client's, of a server called `server_name`, or the server's without one.

    It begins with the handshake: shake_hands() is called, whenever something has come, until it is true; or connect().
    Then recv(), send(), sendall(), sendmsg(), shutdown() and close() are those of a socket, which stays blocking or not as
    it is. After recv(), `has_more` says that there may be more of which no poll will tell: as much has been taken from the
    socket as was asked for, or the end has come with the last bytes. One thread at a time, but for shutdown() of more than
    the sending side. Raises OSError, of which ssl.SSLError is a kind.
    """

    __slots__ = (
        "_accepted",
        "_broken",
        "_client",
        "_closing",
        "_ended",
        "_handshake_bytes",
        "_incoming",
        "_outgoing",
        "_ready",
        "_silent",
        "_unsent",
        "has_more",
        "is_open",
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
        self._silent = 0
        self._ready = b""  # decrypted already
        self._unsent = b""  # records that the socket has not taken yet
        self._accepted = 0  # how many plain bytes are in them
        self._ended = self._closing = self._broken = False
        self.is_open = False
        self.has_more = False

    def fileno(self) -> int:
        return self.sock.fileno()

    def setsockopt(self, *arguments: Any) -> None:
        self.sock.setsockopt(*arguments)

    def setblocking(self, blocking: bool) -> None:
        self.sock.setblocking(blocking)

    def do_handshake(self, size: int) -> bool:
        """Go on with the handshake as far as it goes without waiting; true when it is done.

        With `unsent` it must be called again when the socket takes more, too. Raises PlaintextReceived for plain HTTP,
        ssl.SSLError when there will be no connection (say_goodbye() tells the other end why), OSError when that is gone.
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
        self.is_open = True
        self._ready, self._ended = self._decrypt(b"")
        return True

    def connect(self, until: float) -> None:
        """The whole handshake of a client, by a time of the monotonic clock. Raises TimeoutError and what shake_hands() does."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        poll = select.poll()
        while not self.do_handshake(RECEIVE_BYTES):
            poll.register(self.sock, select.POLLIN | select.POLLOUT if self._unsent else select.POLLIN)
            if not poll.poll(max(0.0, until - monotonic()) * 1_000):
                raise TimeoutError("the TLS handshake took too long")

    @property
    def has_come(self) -> bool:
        """Whether recv() has something to give, or to raise, without waiting. That the socket is readable does not say so:
        servers send session tickets, too."""
        if not self._ready:
            try:
                self._ready = self.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                return True
        return True

    @property
    def holds(self) -> bool:
        """Whether something has been decrypted that recv() has not given yet. Never, but for has_come()."""
        return bool(self._ready)

    @property
    def at_end(self) -> bool:
        """Whether the last byte that the other end sends has come, so that recv() waits for nothing any more."""
        return self._ended

    @property
    def unsent(self) -> bool:
        """Whether the socket has not taken all that should be out by now."""
        return bool(self._unsent)

    def flush(self) -> None:
        """Send what is unsent, as far as the socket takes it."""
        with contextlib.suppress(BlockingIOError):
            self._flush()

    def recv(self, size: int, flags: int = 0) -> bytes:
        """What has come: all of it, which may be more than `size`. b"" at the end.

        A client raises ConnectionError when the end is none: a response may end with the connection (RFC 9112 §9.8). A
        request never does, so a server need not tell a cut from an end.
        """
        if self._ready or self._ended:
            block, self._ready = self._ready, b""
            self.has_more = bool(block) and self._ended
            return block
        while True:
            self.has_more = False
            block = self.sock.recv(size, flags)
            self.has_more = len(block) == size
            if not self.is_open:
                return block  # there is no connection; what still comes is only to be got rid of
            if not block:
                if self._client:
                    raise ConnectionError("cut off, without the end that TLS has for it")
                return block
            block, self._ended = self._decrypt(block)
            if block or self._ended:
                self.has_more = self.has_more or (self._ended and bool(block))
                return block

    def send(self, block: bytes | memoryview, flags: int = 0) -> int:
        """Send some of `block` without waiting. Raises BlockingIOError; then the same bytes must be given once more."""
        if not self._accepted:
            self._flush()
            block = block[: 4 * RECORD_BYTES]
            self._unsent, self._accepted = self._encrypt(block), len(block)
        self._flush()
        accepted, self._accepted = self._accepted, 0
        return accepted

    def sendall(self, block: bytes) -> None:
        """Send all of it. What send() has been given and has not taken must be the beginning of it."""
        if self._accepted:
            block = block[self._accepted :]
        records = self._unsent + self._encrypt(block)
        self._unsent, self._accepted = b"", 0
        self._broken = True  # if this breaks off within a record, nothing that follows can be read
        self.sock.sendall(records)
        self._broken = False

    def sendmsg(self, parts: Sequence[bytes], ancillary: tuple[()] = (), flags: int = 0) -> int:
        """Send all of the parts; how many bytes they were. With MSG_DONTWAIT it does what send() does."""
        block = b"".join(parts)
        if flags & socket.MSG_DONTWAIT:
            return self.send(block)
        self.sendall(block)
        return len(block)

    def shutdown(self, how: int) -> None:
        """End one direction or both. SHUT_WR alone says so to the other end, which may go on (RFC 8446 §6.1)."""
        if how == socket.SHUT_WR:
            self.send_close_notify()
        self.sock.shutdown(how)

    def send_close_notify(self) -> None:
        """Tell the other end that this is the end, and not a cut; or after an error, what was wrong. Never waits or raises."""
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
        """Send without waiting. Raises BlockingIOError when something is left."""
        if self._outgoing.pending:
            self._unsent += self._outgoing.read()
        while self._unsent:
            self._unsent = self._unsent[self.sock.send(self._unsent, socket.MSG_DONTWAIT) :]

    def _encrypt(self, block: bytes | memoryview) -> bytes:
        write, taken = self.tls.write, self._outgoing.read
        if len(block) <= RECORD_BYTES:
            if block:
                write(block)
            return taken()
        # Record by record, so that OpenSSL's buffer, which never shrinks, stays small.
        records = []
        view = memoryview(block)
        for at in range(0, len(block), RECORD_BYTES):
            write(view[at : at + RECORD_BYTES])
            records.append(taken())
        return b"".join(records)

    def _decrypt(self, block: bytes) -> tuple[bytes, bool]:
        """The plain bytes in it, and whether they are the last."""
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
            except ssl.SSLZeroReturnError:  # the end, when we have said our own before
                return b"".join(plain), True
            except ssl.SSLWantReadError:
                pass
        self._silent = 0 if plain else self._silent + len(block)
        if self._silent > SILENT_BYTES or self._outgoing.pending > ANSWERS_BYTES:
            raise ssl.SSLError("a flood of TLS messages that say nothing")
        return plain[0] if len(plain) == 1 else b"".join(plain), False
