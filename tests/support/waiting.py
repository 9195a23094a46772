"""Waiting for another thread or process: for a fact, never for a time, and with a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

DEADLINE_SECONDS = 10.0
"""A fact in this process, or a response of a gateway that runs, fails the test when it is not there by then."""

PROCESS_DEADLINE_SECONDS = 90.0
"""The same for a process that starts, reloads or ends, on a machine that runs other tests at the same time."""

T = TypeVar("T")


def eventually(fact: Callable[[], T], what: str = "", within_seconds: float = DEADLINE_SECONDS) -> T:
    """Return the first true value of `fact()`, asked every millisecond. Fails with `what` when there is none in time."""
    deadline = monotonic() + within_seconds
    pause = threading.Event()
    while not (value := fact()):
        assert monotonic() < deadline, f"not within {within_seconds:g} s: {what or fact}"
        pause.wait(0.001)
    return value


def passed(event: threading.Event, what: str = "") -> None:
    """Wait for an event. Fails with `what` when it is not set in time."""
    assert event.wait(DEADLINE_SECONDS), f"not within {DEADLINE_SECONDS:g} s: {what or event}"
