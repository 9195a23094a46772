"""Messages between worker processes, from both ends of the channel."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from rgate.runtime.worker_channel import WorkerChannel, Workers, encode_arg

from ..support.waiting import DEADLINE_SECONDS


@pytest.fixture
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_SECONDS)
    with ours, theirs:
        yield ours, theirs


def test_broadcast_without_other_workers_returns_at_once() -> None:
    assert WorkerChannel().broadcast("anything", timeout_seconds=0)


def test_broadcast_waits_until_the_supervisor_says_done(channel: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = channel
    workers = WorkerChannel()
    workers.connect(theirs)
    answers: list[bool] = []
    asking = threading.Thread(target=lambda: answers.append(workers.broadcast("stats.flush", timeout_seconds=DEADLINE_SECONDS)))
    asking.start()
    assert ours.recv(100) == b"ask 1 stats.flush\n"
    assert not answers
    ours.sendall(b"done 1\n")
    asking.join(DEADLINE_SECONDS)
    assert answers == [True]


def test_broadcast_without_a_reply_in_time_says_so(channel: tuple[socket.socket, socket.socket]) -> None:
    workers = WorkerChannel()
    workers.connect(channel[1])
    assert not workers.broadcast("stats.flush", timeout_seconds=0.01)


def test_command_runs_and_then_says_done(channel: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = channel
    workers = WorkerChannel()
    asked: list[str] = []
    workers.on_command("stats.flush", asked.append)
    workers.connect(theirs)
    ours.sendall(b"ask 7 stats.flush\n")
    assert ours.recv(100) == b"done 7\n"
    assert asked == [""]


@pytest.mark.parametrize("argument", ["", "http://127.0.0.1:9000", "two words", "100 % ünïcode\n"])
def test_argument_is_any_text_and_arrives_as_it_was(channel: tuple[socket.socket, socket.socket], argument: str) -> None:
    supervisor, worker = channel
    workers = WorkerChannel()
    workers.connect(worker)
    workers.broadcast("drain", argument, timeout_seconds=0)
    asked = supervisor.recv(1_000)
    assert asked.startswith(b"ask 1 drain") and asked.count(b"\n") == 1
    arrived: list[str] = []
    workers.on_command("drain", arrived.append)
    supervisor.sendall(asked)
    assert supervisor.recv(100) == b"done 1\n"
    assert arrived == [argument]


@pytest.mark.parametrize("topic", ["unknown", "failing"])
def test_command_that_fails_still_says_done(channel: tuple[socket.socket, socket.socket], topic: str) -> None:
    ours, theirs = channel
    workers = WorkerChannel()
    workers.on_command("failing", lambda _: 1 / 0)
    workers.connect(theirs)
    ours.sendall(f"ask 8 {topic}\n".encode())
    assert ours.recv(100) == b"done 8\n"


def test_loss_of_the_supervisor_is_reported(channel: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = channel
    workers = WorkerChannel()
    lost = threading.Event()
    workers.connect(theirs, on_lost=lost.set)
    ours.shutdown(socket.SHUT_RDWR)
    assert lost.wait(DEADLINE_SECONDS)
    assert workers.broadcast("stats.flush", timeout_seconds=0)


def test_words_go_both_ways(channel: tuple[socket.socket, socket.socket]) -> None:
    supervisor, worker = channel
    workers = WorkerChannel()
    stopped = threading.Event()
    workers.connect(worker, on_notice={"stop": stopped.set})
    workers.notify_supervisor("up")
    assert supervisor.recv(100) == b"up\n"
    supervisor.sendall(b"stop\n")
    assert stopped.wait(DEADLINE_SECONDS)


def test_reload_returns_the_supervisors_reply(channel: tuple[socket.socket, socket.socket]) -> None:
    supervisor, worker = channel
    workers = WorkerChannel()
    workers.connect(worker)
    answers: list[str | None] = []
    asking = threading.Thread(target=lambda: answers.append(workers.reload(DEADLINE_SECONDS)))
    asking.start()
    assert supervisor.recv(100) == b"reload 1\n"
    supervisor.sendall(b"done 1 " + encode_arg("config.yml:3: port: no number\nand more").encode() + b"\n")
    asking.join(DEADLINE_SECONDS)
    assert answers == ["config.yml:3: port: no number\nand more"]


def test_reload_without_a_reply_in_time_is_not_known(channel: tuple[socket.socket, socket.socket]) -> None:
    workers = WorkerChannel()
    workers.connect(channel[1])
    assert workers.reload(timeout_seconds=0.01) is None


def test_reply_of_a_command_that_is_text_is_sent_back(channel: tuple[socket.socket, socket.socket]) -> None:
    supervisor, worker = channel
    workers = WorkerChannel()
    workers.on_command("reload", lambda argument: f"no: {argument}")
    workers.connect(worker)
    supervisor.sendall(b"ask 3 reload all%20of%20it\n")
    assert supervisor.recv(100) == b"done 3 no%3A%20all%20of%20it\n"


def test_commands_are_those_of_the_process_and_of_the_current_gateway(channel: tuple[socket.socket, socket.socket]) -> None:
    supervisor, worker = channel
    current: list[Workers] = []
    process = WorkerChannel(lambda: current[0] if current else None)
    before, after = Workers(process), Workers(process)
    process.on_command("reload", lambda _: "process")
    before.on_command("reload", lambda _: "not asked")
    before.on_command("who", lambda _: "before")
    after.on_command("who", lambda _: "after")
    process.connect(worker)
    for workers, reply in ((before, b"before"), (after, b"after")):
        current[:] = [workers]
        supervisor.sendall(b"ask 1 who\n")
        assert supervisor.recv(100) == b"done 1 " + reply + b"\n"
        supervisor.sendall(b"ask 2 reload\n")
        assert supervisor.recv(100) == b"done 2 process\n"


def test_connect_calls_the_current_gateway_once(channel: tuple[socket.socket, socket.socket]) -> None:
    connected = threading.Event()
    process = WorkerChannel(lambda: workers)
    workers = Workers(process)
    workers.on_connect(connected.set)
    assert not connected.is_set()
    process.connect(channel[1])
    assert connected.wait(DEADLINE_SECONDS)
