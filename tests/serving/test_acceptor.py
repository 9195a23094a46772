"""Acceptor: who is being taken in while they close."""

from __future__ import annotations

import socket
import threading

from rgate.serving.acceptor import Acceptor
from rgate.serving.connection import Connection

from ..support.waiting import eventually, passed


class NoPoll:
    def register(self, fd: int, eventmask: int, /) -> None: ...

    def unregister(self, fd: int, /) -> None: ...


def test_doors_that_are_closed_tell_that_somebody_is_still_being_taken_in() -> None:
    held, go_on = threading.Event(), threading.Event()

    def take_in(kind: type[Connection], sock: socket.socket, peer: tuple[str, int]) -> None:
        held.set()
        passed(go_on)
        sock.close()

    listener = socket.create_server(("127.0.0.1", 0))
    fd = listener.fileno()
    doors = Acceptor(NoPoll(), take_in, 1.0, lambda: None)
    doors.add(listener, Connection)
    with socket.create_connection(listener.getsockname()):
        assert not doors.taking_in
        knocking = threading.Thread(target=doors.knock, args=(fd,))
        knocking.start()
        passed(held)
        doors.close()
        assert doors.taking_in, "the server would end, and with it a connection that nobody has served"
        go_on.set()
        knocking.join()
        eventually(lambda: not doors.taking_in)
        doors.knock(fd)
        assert not doors.taking_in
