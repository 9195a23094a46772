"""Waiting for what other threads do: never for a time, always for a fact, and with a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

PATIENCE_SECONDS = 10.0

T = TypeVar("T")


def eventually(fact: Callable[[], T], what: str = "", within_seconds: float = PATIENCE_SECONDS) -> T:
    """The first true value of `fact()`. Fails when there is none in time."""
    deadline = monotonic() + within_seconds
    pause = threading.Event()
    while not (value := fact()):
        assert monotonic() < deadline, f"not within {within_seconds} s: {what or fact}"
        pause.wait(0.001)
    return value


def passed(event: threading.Event, what: str = "") -> None:
    """Wait for an event. Fails when it is not set in time."""
    assert event.wait(PATIENCE_SECONDS), f"not within {PATIENCE_SECONDS} s: {what or event}"
