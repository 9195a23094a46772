"""Listeners: which sockets are made, inherited, closed, and given to worker processes."""

from __future__ import annotations

import re
import socket
from contextlib import closing

import pytest

from rgate.config.models import ServerConfig
from rgate.process.socket_activation import InheritedSockets
from rgate.serving.listeners import BindError, Listeners
from rgate.serving.sockets import listen


def config(redirect_port: int | None = None, **values: object) -> ServerConfig:
    tls = {"tls": {"certificate": "x", "redirect_port": redirect_port}} if redirect_port is not None else {}
    return ServerConfig(**{"port": 0, **values, **tls})  # type: ignore[arg-type]


def test_open_makes_one_socket_for_each_process_on_one_port() -> None:
    with closing(Listeners.open(config(), 3)) as listeners:
        assert len(listeners.main) == 3
        assert len({it.getsockname() for it in listeners.main}) == 1
        assert (listeners.redirect, listeners.externally_owned) == ((), False)


def test_open_with_a_redirect_has_a_second_port() -> None:
    with closing(Listeners.open(config(redirect_port=0))) as listeners:
        (redirect,) = listeners.redirect
        assert redirect.getsockname() != listeners.main[0].getsockname()


@pytest.mark.parametrize("processes", [1, 2])
def test_open_leaves_nothing_open_when_one_port_is_taken(processes: int) -> None:
    with listen("127.0.0.1", 0) as taken, listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
        free.close()
        words = f"port {taken.getsockname()[1]}: the port is taken"
        with pytest.raises(BindError, match=re.escape(words)):
            Listeners.open(config(port=port, redirect_port=taken.getsockname()[1]), processes)
        listen("127.0.0.1", port).close()


def test_open_prefers_inherited_sockets() -> None:
    inherited = InheritedSockets((listen("127.0.0.1", 0),), externally_owned=True)
    with closing(Listeners.open(config(port=1), 2, inherited)) as listeners:
        assert (listeners.main, listeners.redirect, listeners.externally_owned) == (inherited.main, (), True)


def test_open_closes_an_unneeded_inherited_redirect_socket_and_makes_a_missing_one() -> None:
    main, redirect = listen("127.0.0.1", 0), listen("127.0.0.1", 0)
    with closing(Listeners.open(config(), 1, InheritedSockets((main,), (redirect,)))) as listeners:
        assert (listeners.redirect, redirect.fileno()) == ((), -1)
        with closing(Listeners.open(config(redirect_port=0), 1, InheritedSockets((main.dup(),)))) as others:
            assert len(others.redirect) == 1


@pytest.mark.parametrize(
    ("sockets", "processes", "shares"),
    [(2, 2, ["0", "1"]), (1, 3, ["0", "0", "0"]), (2, 3, ["0", "1", "0"]), (3, 2, ["02", "1"]), (4, 1, ["0123"])],
)
def test_every_worker_has_a_socket_and_every_socket_a_worker(sockets: int, processes: int, shares: list[str]) -> None:
    common = socket.socket()
    listeners = Listeners(tuple(socket.socket() for _ in range(sockets)), (common,), externally_owned=True)
    with closing(listeners):
        for index, expected in enumerate(shares):
            share = listeners.for_worker(index, processes)
            assert "".join(str(listeners.main.index(it)) for it in share.main) == expected
            assert (share.redirect, share.externally_owned) == ((common,), True)
