"""Connections to containers that have just started: which of them stand."""

from __future__ import annotations

import socket
import threading
from contextlib import closing

import pytest

from rgate import Address
from rgate.plugins.docker_labels.arrivals import Connection
from tests.waiting import eventually, passed


def try_it(host: str, port: int, before_judging: threading.Event | None = None) -> bool:
    trial = Connection(Address("http", host, port))
    if before_judging:
        passed(before_judging)
    return trial.stands()


@pytest.mark.parametrize("family, host", [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_connection_to_a_server_that_waits_for_a_request_stands(family: int, host: str) -> None:
    with socket.create_server((host, 0), family=family) as server:
        assert eventually(lambda: try_it(host, server.getsockname()[1]))


def test_connection_to_a_server_that_speaks_first_stands() -> None:
    sent = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"hello")
                sent.set()

        greeting = threading.Thread(target=greet)
        greeting.start()
        assert try_it("127.0.0.1", server.getsockname()[1], sent)
        greeting.join()


def test_connection_that_is_taken_and_dropped_does_not_stand() -> None:
    dropped = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drop() -> None:
            server.accept()[0].close()
            dropped.set()

        dropping = threading.Thread(target=drop)
        dropping.start()
        assert not try_it("127.0.0.1", server.getsockname()[1], dropped)
        dropping.join()


def test_connection_that_is_refused_does_not_stand() -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        assert not try_it("127.0.0.1", unused.getsockname()[1])


def test_connection_to_a_name_that_is_none_does_not_stand() -> None:
    assert not try_it("no-such-host.invalid", 80)
