"""Acceptor: connections that are being accepted while it closes."""

from __future__ import annotations

import socket
import threading

from rgate.serving.acceptor import Acceptor
from rgate.serving.connection import Connection

from ..support.waiting import eventually, passed


class NoPoll:
    def register(self, fd: int, eventmask: int, /) -> None: ...

    def unregister(self, fd: int, /) -> None: ...


def test_closed_acceptor_tells_that_a_connection_is_still_being_accepted() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def on_accept(connection_class: type[Connection], sock: socket.socket, peer: tuple[str, int]) -> None:
        entered.set()
        passed(go_on)
        sock.close()

    listener = socket.create_server(("127.0.0.1", 0))
    fd = listener.fileno()
    acceptor = Acceptor(NoPoll(), on_accept, 1.0, lambda: None)
    acceptor.add(listener, Connection)
    with socket.create_connection(listener.getsockname()):
        assert not acceptor.accepting
        thread = threading.Thread(target=acceptor.accept_ready, args=(fd,))
        thread.start()
        passed(entered)
        acceptor.close()
        assert acceptor.accepting, "otherwise the server would stop before it has served this connection"
        go_on.set()
        thread.join()
        eventually(lambda: not acceptor.accepting)
        acceptor.accept_ready(fd)
        assert not acceptor.accepting
