"""The other worker processes, as one of them sees them.

A worker can have all other workers run a command and wait until they have, and ask the supervisor for a reload. Workers say
nothing else to each other; what else they share is the listening port, the config and the database.

    worker ── ask "stats.flush" ──→ supervisor ──→ every other worker: runs its command, replies
    worker ←── done ───────────────────┘

Messages are lines on a socket pair between the supervisor and each worker: `ask NUMBER TOPIC [ARGUMENT]` and
`done NUMBER [REPLY]`, both ways, and `reload NUMBER` to the supervisor. Argument and reply are percent-encoded, so that any
text is one word. Words without a number are listed in rgate.process.supervisor.
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

__all__ = ["WorkerChannel", "Workers", "decode_arg", "encode_arg"]

Command: TypeAlias = Callable[[str], object]

SLOW_COMMANDS: Final = frozenset(["reload"])  # each call has a thread of its own, rgate-TOPIC
_log = logging.getLogger("rgate.runtime")


def encode_arg(text: str) -> str:
    """Any text as one word of ASCII; "" stays empty."""
    return quote(text, safe="")


def decode_arg(word: str) -> str:
    """The reverse of encode_arg()."""
    return unquote(word)


class Workers:
    """The other worker processes, as plugins of one gateway see them. Thread-safe.

    Commands count while the gateway is the current one of this process. With one process there are no other workers, and
    broadcast() returns at once.
    """

    def __init__(self, channel: WorkerChannel) -> None:
        self.commands: dict[str, Command] = {}
        self.connect_callbacks: list[Callable[[], object]] = []
        self._channel = channel

    def on_command(self, topic: str, command: Command) -> None:
        """Run `command(argument)` whenever another worker broadcasts `topic` (a word). Without an argument it is "".
        Commands run in one thread and should be quick; a str that they return is the reply."""
        self.commands[topic] = command

    def broadcast(self, topic: str, argument: str = "", timeout_seconds: float = 0.5) -> bool:
        """Have every other worker run its command for `topic` with `argument`, which may be any text. Returns when all have, or
        after `timeout_seconds`; False if not all have by then."""
        return self._channel.broadcast(topic, argument, timeout_seconds)

    def on_connect(self, callback: Callable[[], object]) -> None:
        """Have `callback()` called once, in a thread of its own, as soon as other workers can be reached. It is not called if
        they could be before, or if another gateway is current by then."""
        self.connect_callbacks.append(callback)


class WorkerChannel:
    """The channel of this process to the supervisor, and so to the other workers. One per process; thread-safe.

    `current` returns the Workers of the current gateway, or None; their commands are run beside those of the process itself.
    """

    def __init__(self, current: Callable[[], Workers | None] = lambda: None) -> None:
        self._current = current
        self._commands: dict[str, Command] = {}
        self._channel: socket.socket | None = None
        self._pending: dict[str, _PendingReply] = {}
        self._on_notice: Mapping[str, Callable[[], object]] = {}
        self._number = 0
        self._lock = threading.Lock()  # of `_number` and `_pending`
        self._sending = threading.Lock()  # of the socket, for writing: a long reply may take several writes

    def on_command(self, topic: str, command: Command) -> None:
        """Like Workers.on_command(), but for the process, whichever gateway is current."""
        self._commands[topic] = command

    def broadcast(self, topic: str, argument: str = "", timeout_seconds: float = 0.5) -> bool:
        """See Workers.broadcast()."""
        return self._request(f"ask {{}} {topic} {encode_arg(argument)}", timeout_seconds) is not None

    def reload(self, timeout_seconds: float) -> str | None:
        """Have the supervisor, and then every worker, read the config again. Returns the problems ("": the config
        is active), or None when the outcome is not known in time."""
        return self._request("reload {}", timeout_seconds)

    def notify_supervisor(self, word: str) -> None:
        """Send the supervisor a word about this process."""
        self._send(word)

    def connect(
        self,
        channel: socket.socket,
        on_lost: Callable[[], object] = lambda: None,
        on_notice: Mapping[str, Callable[[], object]] = MappingProxyType({}),
    ) -> None:
        """Start to listen on the socket to the supervisor, in a thread `rgate-workers`. `on_lost` is called when the supervisor
        is gone, and `on_notice` has the calls for single words from it."""
        self._on_notice = on_notice
        self._channel = channel
        threading.Thread(target=self._listen, args=(channel, on_lost), name="rgate-workers", daemon=True).start()
        workers = self._current()
        for callback in workers.connect_callbacks if workers is not None else ():
            threading.Thread(target=callback, name="rgate-workers-connect", daemon=True).start()

    def _request(self, message: str, timeout_seconds: float) -> str | None:
        """The reply to a message, with a number in place of {}. "" without a supervisor, None when it is too late."""
        if self._channel is None:
            return ""
        pending = _PendingReply()
        with self._lock:
            self._number += 1
            number = str(self._number)
            self._pending[number] = pending
        try:
            self._send(message.format(number))
            return pending.reply if pending.done.wait(timeout_seconds) else None
        finally:
            self._pending.pop(number, None)

    def _send(self, line: str) -> None:
        channel = self._channel
        try:
            if channel is not None:
                with self._sending:
                    channel.sendall(line.rstrip().encode() + b"\n")
        except OSError as error:
            _log.debug("the supervisor is gone: %s", error)

    def _listen(self, channel: socket.socket, on_lost: Callable[[], object]) -> None:
        with channel.makefile("r", encoding="ascii") as lines:
            try:
                for line in lines:
                    self._dispatch(line.split())
            except (OSError, ValueError) as error:
                _log.debug("the supervisor is gone: %s", error)
        self._channel = None
        on_lost()

    def _dispatch(self, words: list[str]) -> None:
        match words:
            case ["done", number, *reply]:
                if (pending := self._pending.get(number)) is not None:
                    pending.reply = decode_arg("".join(reply))
                    pending.done.set()
            case ["ask", number, topic, *argument]:
                asked = (number, topic, decode_arg("".join(argument)))
                if topic in SLOW_COMMANDS:
                    threading.Thread(target=self._run_command, args=asked, name=f"rgate-{topic}", daemon=True).start()
                else:
                    self._run_command(*asked)
            case [word] if word in self._on_notice:
                self._on_notice[word]()
            case _:
                _log.error("unknown message from the supervisor: %r", words)

    def _run_command(self, number: str, topic: str, argument: str) -> None:
        workers = self._current()
        command = self._commands.get(topic) or (workers.commands.get(topic) if workers is not None else None)
        reply: object = None
        try:
            if command is not None:
                reply = command(argument)
        except BaseException as error:
            _log.exception("the command %r of another worker failed", topic, extra={"dedup_key": (topic, *exception_key(error))})
        self._send(f"done {number} {encode_arg(reply) if isinstance(reply, str) else ''}")


class _PendingReply:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.reply = ""
