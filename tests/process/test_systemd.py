"""Notifications to systemd."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from rgate.process.systemd import notify, notify_main_pid, watchdog_wanted


@pytest.fixture(params=["a path", "an abstract name"])
def service_manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    name = f"{tmp_path}/notify" if request.param == "a path" else f"@{tmp_path}"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock:
        sock.bind(f"\0{name[1:]}" if name[0] == "@" else name)
        yield sock, {"NOTIFY_SOCKET": name}


def test_notify_sends_one_message(service_manager: tuple[socket.socket, dict[str, str]]) -> None:
    sock, environ = service_manager
    notify("READY=1", "STATUS=fine", environ=environ)
    assert sock.recv(100) == b"READY=1\nSTATUS=fine"


def test_process_that_has_named_its_successor_says_no_more(service_manager: tuple[socket.socket, dict[str, str]]) -> None:
    sock, environ = service_manager
    notify_main_pid(12, environ)
    notify("WATCHDOG=1", environ=environ)
    assert sock.recv(100) == b"MAINPID=12\nSTATUS="
    with pytest.raises(BlockingIOError):
        sock.recv(100, socket.MSG_DONTWAIT)


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_notify_without_anybody_who_wants_to_know_does_nothing(environ: dict[str, str]) -> None:
    notify("READY=1", environ=environ)


def test_notify_that_fails_is_said_and_does_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notify("READY=1", environ={"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    assert "cannot notify systemd of READY=1: " in caplog.text


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"WATCHDOG_USEC": "30000000"}, True),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, True),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, False),
    ],
)
def test_watchdog_is_wanted_of_this_process_only(environ: dict[str, str], wanted: bool) -> None:
    assert watchdog_wanted(environ) is wanted
