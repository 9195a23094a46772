"""Signals, as calls in a thread of their own: a signal handler must not take a lock that the interrupted code may hold."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

__all__ = ["TERMINATING", "handle_signals"]

TERMINATING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def handle_signals(
    stop: Callable[[], object],
    on_kill: Callable[[], object],
    signals: Sequence[signal.Signals] = TERMINATING,
    others: Mapping[signal.Signals, Callable[[], object]] | None = None,
) -> Iterator[None]:
    """While inside, the first of `signals` calls `stop`; the second calls `on_kill`, and then ends the process.

    Each of `others` calls its function whenever it arrives. All calls come from the thread `rgate-signals`, and should be quick.
    """
    others = others or {}
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def watch() -> None:
        stopping = False
        while number := receiver.recv(1):
            if number[0] in others:
                others[signal.Signals(number[0])]()
            elif number[0] in signals and not stopping:
                stopping = True
                stop()
            elif number[0] in signals:
                on_kill()
                os._exit(128 + number[0])

    watcher = threading.Thread(target=watch, name="rgate-signals", daemon=True)
    watcher.start()
    before = {number: signal.signal(number, lambda *_: None) for number in (*signals, *others)}
    wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        sender.close()
        watcher.join(1)
        receiver.close()
