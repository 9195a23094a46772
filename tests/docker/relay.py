"""A way to the engine that a test can cut and restore, as a restarted daemon or socket proxy does, or silence, as a lost one."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path


class EngineRelay:
    """Relays a Unix socket of its own to the engine's socket, once `restore()` has been called.

    `address` is for `docker.host` or DOCKER_HOST and stays the same. `cut()` ends every connection and listens no more.
    `silence()` leaves the connections there are open and lets nothing through them any more; new ones are relayed.
    """

    def __init__(self, engine_socket: str, own_socket: Path) -> None:
        self.address = f"unix://{own_socket}"
        self._engine_socket = engine_socket
        self._own_socket = own_socket
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._silent: frozenset[socket.socket] = frozenset()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def restore(self) -> None:
        assert self._listener is None, "the relay is not cut"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._own_socket))
        self._listener.listen()
        self._start(self._accept, self._listener)

    def cut(self) -> None:
        if self._listener is None:
            return
        self._own_socket.unlink()
        with self._lock:
            ends = [self._listener, *self._open]
            self._listener = None
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits on it; close() would not
        for thread in self._threads:
            thread.join(timeout=10)
        self._threads.clear()

    def silence(self) -> None:
        with self._lock:
            self._silent = frozenset(self._open)

    def _start(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                engine = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                with contextlib.suppress(OSError):
                    engine.connect(self._engine_socket)
                    with self._lock:
                        if self._listener is listener:
                            self._open |= {client, engine}
                            self._start(self._relay, client, engine)
                            continue
                client.close()
                engine.close()

    def _relay(self, client: socket.socket, engine: socket.socket) -> None:
        answers = threading.Thread(target=self._pass_on, args=(engine, client), daemon=True)
        answers.start()
        self._pass_on(client, engine)
        answers.join()
        with self._lock:
            self._open -= {client, engine}
        client.close()
        engine.close()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        """Relay one direction to its end, and pass the end on."""
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if source not in self._silent:
                    sink.sendall(piece)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
