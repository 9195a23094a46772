"""ConnectProbe: which connections are open, refused, or neither."""

from __future__ import annotations

import socket
import threading
from contextlib import closing

import pytest

from rgate import Address
from rgate.plugins.docker.probes import ConnectProbe, Outcome

from ...support.waiting import eventually, passed


def outcome_of(host: str, port: int, before_reading: threading.Event | None = None) -> Outcome:
    probe = ConnectProbe(Address("http", host, port))
    if before_reading:
        passed(before_reading)
    return probe.outcome()


@pytest.mark.parametrize("family, host", [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_connection_to_a_server_that_waits_for_a_request_is_open(family: int, host: str) -> None:
    with socket.create_server((host, 0), family=family) as server:
        assert eventually(lambda: outcome_of(host, server.getsockname()[1]) is Outcome.OPEN)


def test_connection_to_a_server_that_speaks_first_is_open() -> None:
    sent = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"hello")
                sent.set()

        greeting = threading.Thread(target=greet)
        greeting.start()
        assert outcome_of("127.0.0.1", server.getsockname()[1], sent) is Outcome.OPEN
        greeting.join()


def test_connection_that_is_taken_and_dropped_does_not_stand() -> None:
    dropped = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drop() -> None:
            server.accept()[0].close()
            dropped.set()

        dropping = threading.Thread(target=drop)
        dropping.start()
        assert outcome_of("127.0.0.1", server.getsockname()[1], dropped) is Outcome.UNCLEAR
        dropping.join()


@pytest.mark.parametrize("family, host", [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_connection_that_is_refused_does_not_stand(family: int, host: str) -> None:
    with closing(socket.socket(family)) as unused:
        unused.bind((host, 0))
        assert outcome_of(host, unused.getsockname()[1]) is Outcome.REFUSED


def test_connection_of_which_nothing_is_heard_is_unclear() -> None:
    with closing(socket.socket()) as full, closing(socket.socket()) as queued:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        queued.connect(full.getsockname())  # takes the only place in the queue; the kernel drops what comes after it
        assert outcome_of("127.0.0.1", full.getsockname()[1]) is Outcome.UNCLEAR


def test_connection_to_a_name_that_is_none_does_not_stand() -> None:
    assert outcome_of("no-such-host.invalid", 80) is Outcome.UNCLEAR
