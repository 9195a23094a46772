"""Signals, as calls."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from rgate.process.signals import TERMINATING, handle_signals

from ..support.waiting import passed


def test_until_signalled_without_a_signal_changes_nothing() -> None:
    before = [signal.getsignal(number) for number in TERMINATING]
    with handle_signals(lambda: pytest.fail("stopped"), lambda: pytest.fail("ended")):
        pass
    assert [signal.getsignal(number) for number in TERMINATING] == before
    assert not [thread for thread in threading.enumerate() if thread.name == "rgate-signals"]


def test_second_signal_calls_on_kill_and_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped, exited = threading.Event(), threading.Event()
    calls: list[object] = []

    def exit_process(code: int) -> None:
        calls.append(code)
        exited.set()

    monkeypatch.setattr(os, "_exit", exit_process)
    with handle_signals(stopped.set, lambda: calls.append("at once")):
        os.kill(os.getpid(), signal.SIGINT)
        passed(stopped)
        os.kill(os.getpid(), signal.SIGTERM)
        passed(exited)
    assert calls == ["at once", 128 + signal.SIGTERM]


def test_until_signalled_others_come_as_often_as_they_like() -> None:
    calls: list[str] = []
    came = threading.Semaphore(0)

    def note(what: str) -> None:
        calls.append(what)
        came.release()

    with handle_signals(lambda: note("stop"), lambda: None, others={signal.SIGUSR2: lambda: note("other")}):
        for number in (signal.SIGUSR2, signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR2):
            os.kill(os.getpid(), number)
            assert came.acquire(timeout=10)
    assert calls == ["other", "other", "stop", "other"]
