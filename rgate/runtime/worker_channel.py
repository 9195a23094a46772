"""The worker processes of one gateway, as each of them sees the others.

A worker can ask all its siblings to do something and wait until they have, and the supervisor to have the config read again.
That is all that workers say to each other: everything else they share is the listening port, the config and the database.

    worker ── ask "stats.flush" ──→ supervisor ──→ every other worker: runs its action, answers
    worker ←── done ───────────────────┘

Messages are lines on a socket pair between the supervisor and each worker: `ask NUMBER TOPIC [ARGUMENT]` and
`done NUMBER [ANSWER]`, both ways, and `reload NUMBER` to the supervisor. Argument and answer are percent-encoded, so that any
text is one word.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias
from urllib.parse import quote, unquote

from ..log import exception_key

__all__ = ["WorkerChannel", "decode_arg", "encode_arg"]

Action: TypeAlias = Callable[[str], object]

SLOW: Final = "reload"  # the one topic whose action takes long, and so has a thread of its own
_log = logging.getLogger("rgate.runtime")


def encode_arg(text: str) -> str:
    """Any text as one word of ASCII, or none."""
    return quote(text, safe="")


def decode_arg(word: str) -> str:
    """What as_word() was given."""
    return unquote(word)


class WorkerChannel:
    """What a plugin uses to reach the other worker processes. With one process there are none, and broadcast() returns at once.

    `on_command(topic, action)` says what this process does when a sibling asks for `topic`; `broadcast(topic, argument)` has all
    siblings do it and returns when they have, or after `timeout_seconds`. Thread-safe. Actions run in one thread and should
    be quick.

    Every gateway of a process has its own actions; those of `before` count until take_over().
    """

    def __init__(self, before: WorkerChannel | None = None) -> None:
        self._actions: dict[str, Action] = {}
        self._on_connect: list[Callable[[], object]] = []
        self._link: _Link = before._link if before else _Link(self._actions)

    def on_command(self, topic: str, action: Action) -> None:
        """Run `action(argument)` whenever a sibling asks for `topic` (a word). The argument is "" unless it gives one."""
        self._actions[topic] = action

    def broadcast(self, topic: str, argument: str = "", timeout_seconds: float = 0.5) -> bool:
        """Have every sibling run its action for `topic` with `argument`, any text. False when not all have answered in time."""
        return self._link.ask(f"ask {{}} {topic} {encode_arg(argument)}", timeout_seconds) is not None

    def reload(self, timeout_seconds: float) -> str | None:
        """Have the supervisor, and then every worker, read the config again: why it is refused, "" when it is in force, None
        when that is not known in time."""
        return self._link.ask("reload {}", timeout_seconds)

    def on_connect(self, action: Callable[[], object]) -> None:
        """Have `action()` called, in a thread of its own, as soon as siblings can be asked; never when they can be by now."""
        self._on_connect.append(action)

    def take_over(self) -> None:
        """From now on the actions of this gateway count, and no others."""
        self._link.actions = self._actions

    def notify_supervisor(self, word: str) -> None:
        """Tell the supervisor something about this process."""
        self._link.send(word)

    def connect(
        self,
        channel: socket.socket,
        on_lost: Callable[[], object] = lambda: None,
        on_told: Mapping[str, Callable[[], object]] = MappingProxyType({}),
    ) -> None:
        """Begin to listen on the channel to the supervisor. `on_lost` is called when the supervisor is gone, and `on_told` has
        what to do when it says a certain word."""
        self._link.connect(channel, on_lost, on_told)
        for action in self._on_connect:
            threading.Thread(target=action, name="rgate-siblings-begin", daemon=True).start()


class _Link:
    """The channel to the supervisor: one for all gateways of a process."""

    def __init__(self, actions: Mapping[str, Action]) -> None:
        self.actions = actions
        self._channel: socket.socket | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._on_told: Mapping[str, Callable[[], object]] = {}
        self._number = 0
        self._lock = threading.Lock()
        self._sending = threading.Lock()

    def ask(self, question: str, timeout_seconds: float) -> str | None:
        """The answer to a question, whose number goes where {} stands; "" without a supervisor, None when it is late."""
        channel = self._channel
        if channel is None:
            return ""
        waiting = _Waiting()
        with self._lock:
            self._number += 1
            number = str(self._number)
            self._waiting[number] = waiting
        try:
            self.send(question.format(number))
            return waiting.answer if waiting.done.wait(timeout_seconds) else None
        finally:
            self._waiting.pop(number, None)

    def connect(self, channel: socket.socket, on_lost: Callable[[], object], on_told: Mapping[str, Callable[[], object]]) -> None:
        self._on_told = on_told
        self._channel = channel
        threading.Thread(target=self._listen, args=(channel, on_lost), name="rgate-siblings", daemon=True).start()

    def send(self, line: str) -> None:
        channel = self._channel
        try:
            if channel is not None:
                with self._sending:  # a long answer may take several writes
                    channel.sendall(line.rstrip().encode() + b"\n")
        except OSError as error:
            _log.debug("the supervisor is gone: %s", error)

    def _listen(self, channel: socket.socket, on_lost: Callable[[], object]) -> None:
        with channel.makefile("r", encoding="ascii") as lines:
            try:
                for line in lines:
                    self._take(line.split())
            except (OSError, ValueError) as error:
                _log.debug("the supervisor is gone: %s", error)
        self._channel = None
        on_lost()

    def _take(self, words: list[str]) -> None:
        match words:
            case ["done", number, *answer]:
                if (waiting := self._waiting.get(number)) is not None:
                    waiting.answer = decode_arg("".join(answer))
                    waiting.done.set()
            case ["ask", number, topic, *argument]:
                asked = (number, topic, decode_arg("".join(argument)))
                if topic == SLOW:
                    threading.Thread(target=self._act, args=asked, name=f"rgate-{topic}", daemon=True).start()
                else:
                    self._act(*asked)
            case [word] if word in self._on_told:
                self._on_told[word]()
            case _:
                _log.error("cannot understand the supervisor: %r", words)

    def _act(self, number: str, topic: str, argument: str) -> None:
        action = self.actions.get(topic)
        answer: object = None
        try:
            if action is not None:
                answer = action(argument)
        except BaseException as error:
            _log.exception("a sibling's request for %r failed", topic, extra={"dedup_key": (topic, *exception_key(error))})
        self.send(f"done {number} {encode_arg(answer) if isinstance(answer, str) else ''}")


class _Waiting:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.answer = ""
