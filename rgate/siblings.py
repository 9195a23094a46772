"""The worker processes of one gateway, as each of them sees the others.

A worker can ask all its siblings to do something and wait until they have. That is all that workers say to each other:
everything else they share is the listening port, the config and the database.

    worker ── ask "stats.flush" ──→ supervisor ──→ every other worker: runs its action, answers
    worker ←── done ───────────────────┘

Messages are lines on a socket pair between the supervisor and each worker: `ask NUMBER TOPIC [ARGUMENT]` and `done NUMBER`,
both ways. The argument is percent-encoded, so that any text is one word.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from urllib.parse import quote, unquote

__all__ = ["Siblings"]

_log = logging.getLogger("rgate.siblings")


class Siblings:
    """What a plugin uses to reach the other worker processes. With one process there are none, and ask() returns at once.

    `answer(topic, action)` says what this process does when a sibling asks for `topic`; `ask(topic, argument)` has all
    siblings do it and returns when they have, or after `timeout_seconds`. Thread-safe. Actions run in one thread and should
    be quick.
    """

    def __init__(self) -> None:
        self._actions: dict[str, Callable[[str], object]] = {}
        self._channel: socket.socket | None = None
        self._waiting: dict[str, threading.Event] = {}
        self._number = 0
        self._lock = threading.Lock()
        self.on_lost: Callable[[], object] = lambda: None

    def answer(self, topic: str, action: Callable[[str], object]) -> None:
        """Run `action(argument)` whenever a sibling asks for `topic` (a word). The argument is "" unless it gives one."""
        self._actions[topic] = action

    def ask(self, topic: str, argument: str = "", timeout_seconds: float = 0.5) -> bool:
        """Have every sibling run its action for `topic` with `argument`, any text. False when not all have answered in time."""
        channel = self._channel
        if channel is None:
            return True
        done = threading.Event()
        with self._lock:
            self._number += 1
            number = str(self._number)
            self._waiting[number] = done
        try:
            self._send(f"ask {number} {topic} {quote(argument, safe='')}".rstrip())
            return done.wait(timeout_seconds)
        finally:
            self._waiting.pop(number, None)

    def connect(self, channel: socket.socket) -> None:
        """Begin to listen on the channel to the supervisor. `on_lost` is called when the supervisor is gone."""
        self._channel = channel
        threading.Thread(target=self._listen, args=(channel,), name="rgate-siblings", daemon=True).start()

    def _send(self, line: str) -> None:
        channel = self._channel
        try:
            if channel is not None:
                channel.sendall(line.encode() + b"\n")
        except OSError as error:
            _log.debug("the supervisor is gone: %s", error)

    def _listen(self, channel: socket.socket) -> None:
        with channel.makefile("r", encoding="ascii") as lines:
            try:
                for line in lines:
                    self._take(line.split())
            except (OSError, ValueError) as error:
                _log.debug("the supervisor is gone: %s", error)
        self._channel = None
        self.on_lost()

    def _take(self, words: list[str]) -> None:
        match words:
            case ["done", number]:
                if (done := self._waiting.get(number)) is not None:
                    done.set()
            case ["ask", number, topic, *argument]:
                action = self._actions.get(topic)
                try:
                    if action is not None:
                        action(unquote("".join(argument)))
                except BaseException:
                    _log.exception("a sibling's request for %r failed", topic)
                self._send(f"done {number}")
            case _:
                _log.error("cannot understand the supervisor: %r", words)
