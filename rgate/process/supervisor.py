"""Worker processes: as many as cores, one port, each replaced when it ends unexpectedly or hangs.

The supervisor makes everything that must outlive a worker (the listening sockets) and everything that can be shared
(imports, the config, the composed gateway), then forks. Each worker has a listening socket of its own on the same port
(SO_REUSEPORT), which spreads connections evenly. The supervisor keeps them open, so connections in the queue of a worker
that died are served by its replacement.

A worker and its supervisor exchange lines over a socket pair. Single words:

    up      the worker serves                stop     the gateway ends: serve connected clients, then end
    beat    heartbeat, about once a second   retire   the same, but another process serves the sockets

`ask`, `done` and `reload`, each with a number, are described in rgate.runtime.worker_channel.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from .. import log
from ..errors import RgateError
from ..runtime.worker_channel import decode_arg, encode_arg
from ..serving.listeners import Listeners
from .reload import OnReply, WorkersReload
from .upgrade import UPGRADE_SECONDS, UpgradeProcess

if TYPE_CHECKING:
    from ..config.models import ServerConfig

__all__ = ["Supervisor", "WorkerRequests"]

SETTLED_SECONDS: Final = 10.0  # a worker that ends sooner is restarted with increasing pauses
BACKOFF_SECONDS: Final = 0.5
BACKOFF_LIMIT_SECONDS: Final = 10.0
KILL_AFTER_SECONDS: Final = 5.0  # beyond the drain
START_SECONDS: Final = 60.0  # beyond worker_timeout_seconds, for what a worker does before it serves
ABORT_SECONDS: Final = 2.0  # for a hung worker to log where it hangs
HEARTBEAT_SECONDS: Final = 1.0  # of the supervisor itself
MAX_REPLY: Final = 8_000  # characters; more would not be read in a terminal either
_log = logging.getLogger("rgate.process")

WorkerMain = Callable[[int, bool, socket.socket], int]


class WorkerRequests:
    """Requests to workers over their channels, until all of them have replied.

    `send(worker, line)` writes to a worker's channel; False if it cannot.
    """

    def __init__(self, send: Callable[[int, str], bool]) -> None:
        self._send = send
        self._number = 0
        self._pending: dict[str, _Request] = {}

    def send(self, workers: Iterable[int], command: str, on_reply: OnReply = lambda reply: None) -> bool:
        """Have workers run a command. Calls `on_reply` when all have replied, with the last reply that is not empty, or None if
        one has ended first. Returns False, and calls nothing, when no worker can be reached."""
        self._number += 1
        number = str(self._number)
        request = _Request(on_reply)
        request.waiting_for |= {worker for worker in workers if self._send(worker, f"ask {number} {command}")}
        if request.waiting_for:
            self._pending[number] = request
        return bool(request.waiting_for)

    def on_reply(self, worker: int, number: str, reply: str) -> None:
        """Note the reply of a worker, one word."""
        if (request := self._pending.get(number)) is not None and worker in request.waiting_for:
            request.reply = decode_arg(reply) or request.reply
            self._replied(number, request, worker)

    def on_worker_exit(self, worker: int) -> None:
        """Note that a worker has ended, so that it will not reply."""
        for number, request in list(self._pending.items()):
            if worker in request.waiting_for:
                request.reply = None
                self._replied(number, request, worker)

    def _replied(self, number: str, request: _Request, worker: int) -> None:
        request.waiting_for.discard(worker)
        if not request.waiting_for:
            del self._pending[number]
            request.on_reply(request.reply)


class _Request:
    def __init__(self, on_reply: OnReply) -> None:
        self.on_reply = on_reply
        self.waiting_for: set[int] = set()
        self.reply: str | None = ""


@dataclass
class _WorkerSlot:
    """A listening socket, and the worker process that serves it, which may be replaced."""

    index: int
    pid: int = 0  # 0: there is no process
    channel: socket.socket | None = None
    unread: bytes = b""
    started: float = 0.0
    starts: int = 0
    ready: bool = False
    heartbeat_deadline: float = 0.0  # when it counts as hung, unless there is another heartbeat
    aborted: bool = False
    failures: int = 0
    start_at: float = 0.0


class Supervisor:
    """Runs `worker_main(index, first_time, channel)` in `config.processes` forked processes, and keeps them running.

    `on_ready` is called once, when all serve; `on_heartbeat` about once a second; `on_stop` with the process number of the
    successor that has taken over, or None. `reloads` is set by the caller; without it the config is not read again. Call run()
    from the main thread before this process has started any thread, because it forks. (The thread that writes the log
    comes and goes, and holds nothing that a fork would need.)
    """

    def __init__(
        self,
        worker_main: WorkerMain,
        listeners: Listeners,
        config: ServerConfig,
        *,
        on_ready: Callable[[], object] = lambda: None,
        on_heartbeat: Callable[[], object] | None = None,
        on_stop: Callable[[int | None], object] = lambda pid: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reloads: WorkersReload | None = None
        self._worker_main = worker_main
        self._listeners = listeners
        self._config = config
        self._on_ready, self._on_heartbeat, self._on_stop = on_ready, on_heartbeat, on_stop
        self._clock = clock
        self._workers = [_WorkerSlot(index) for index in range(config.processes)]
        self._selector = selectors.DefaultSelector()
        self._requests = WorkerRequests(lambda index, line: self._send(self._workers[index], line))
        self._reload_requested = False
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._signals = 0
        self._last_signal = 0
        self._upgrade_requested = False
        self._successor: UpgradeProcess | None = None
        self._successor_deadline = 0.0
        self._all_ready = False
        self._stopping = False
        self._kill_at = 0.0

    def connected_workers(self) -> list[int]:
        """The workers that can be reached."""
        return [worker.index for worker in self._workers if worker.channel is not None]

    def ask(self, worker: int, command: str, on_reply: OnReply) -> bool:
        """Have one worker run a command; see WorkerRequests.send()."""
        return self._requests.send([worker], command, on_reply)

    def broadcast(self, topic: str, argument: str) -> None:
        """Have all workers run a command, and do not wait for them."""
        self._requests.send(self.connected_workers(), f"{topic} {encode_arg(argument[:MAX_REPLY])}")

    def run(self) -> int:
        """Supervise until a signal ends it; the exit code. SIGTERM and SIGINT drain; a second one kills the workers, and the exit
        code is then 128 plus its number. SIGUSR2 starts a successor, and drains when that serves. SIGHUP reloads the config."""
        self._selector.register(self._wake_receiver, selectors.EVENT_READ)
        noted = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR2, signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in noted}
        wakeup = signal.set_wakeup_fd(self._wake_sender.fileno(), warn_on_full_buffer=False)
        gc.collect()
        gc.freeze()  # what is shared stays shared: the collector would write into every page
        code = 0
        try:
            while True:
                if not self._stopping:
                    for worker in self._workers:
                        if not worker.pid and self._clock() >= worker.start_at:
                            self._start(worker)
                self._wait()
                code = self._reap_workers() or code
                if not self._stopping:
                    self._kill_unresponsive()
                    self._upgrade()
                    self._reload()
                if (self._signals or code) and not self._stopping:
                    self._begin_stop()
                if self._stopping and not any(worker.pid for worker in self._workers):
                    return 128 + self._last_signal if self._signals > 1 else code
                if self._signals > 1 or (self._kill_at and self._clock() > self._kill_at):
                    self._kill_all()
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            self._wake_receiver.close()
            self._wake_sender.close()

    def _on_signal(self, number: int, frame: object) -> None:
        # Only count here: a signal handler must not take locks. The wake-up socket ends the wait.
        if number == signal.SIGUSR2:
            self._upgrade_requested = True
        elif number == signal.SIGHUP:
            self._reload_requested = True
        elif number != signal.SIGCHLD:
            self._signals += 1
            self._last_signal = number

    def _start(self, worker: _WorkerSlot) -> None:
        worker.starts += 1
        first = worker.starts == 1
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            self._run_child(worker, first, ours, theirs)
        theirs.close()
        worker.pid, worker.channel, worker.unread, worker.started = pid, ours, b"", self._clock()
        worker.ready = worker.aborted = False
        worker.heartbeat_deadline = worker.started + START_SECONDS + self._config.worker_timeout_seconds
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _run_child(self, worker: _WorkerSlot, first: bool, ours: socket.socket, theirs: socket.socket) -> None:
        """In the child: give up what belongs to the supervisor, run `worker_main`, and never return."""
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the supervisor handles it
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # and so may others
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            faulthandler.enable(2)  # for when it is killed because it hangs
            ours.close()
            self._selector.close()
            for other in self._workers:
                if other is not worker and other.channel is not None:
                    other.channel.close()
            code = self._worker_main(worker.index, first, theirs)
        except BaseException:
            _log.exception("worker %d failed", worker.index)
        finally:
            logging.shutdown()  # which atexit would do
            log.flush()
            os._exit(code)

    def _wait(self) -> None:
        waits = [worker.heartbeat_deadline for worker in self._workers if worker.pid]
        waits += [worker.start_at for worker in self._workers if not worker.pid and not self._stopping]
        waits += [until for until in (self._kill_at, self._successor_deadline) if until]
        if self.reloads is not None and not self._stopping and (check_at := self.reloads.next_check_at) is not None:
            waits.append(check_at)
        waits += [self._clock() + HEARTBEAT_SECONDS] if self._on_heartbeat is not None else []
        began = self._clock()
        timeout = max(0.0, min(waits) - began) if waits else None
        events = self._selector.select(timeout)
        overslept = self._clock() - began - (timeout or 0.0)
        if timeout is not None and overslept > HEARTBEAT_SECONDS:  # the whole container was paused, perhaps
            for worker in self._workers:
                worker.heartbeat_deadline += overslept
        if self._on_heartbeat is not None:
            self._on_heartbeat()
        for key, _ in events:
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._wake_receiver.recv(1_024)
            elif isinstance(key.data, _WorkerSlot):
                self._read(key.data)
            else:
                self._conclude_upgrade()

    def _read(self, worker: _WorkerSlot) -> None:
        assert worker.channel is not None
        try:
            block = worker.channel.recv(4_096)
        except OSError:
            block = b""
        if not block:
            self._close_channel(worker)
            return
        *lines, worker.unread = (worker.unread + block).split(b"\n")
        for line in lines:
            match line.decode("ascii", "replace").split():
                case ["beat"] if not worker.aborted:
                    worker.heartbeat_deadline = self._clock() + self._config.worker_timeout_seconds
                case ["ask", number, *command]:
                    others = [index for index in self.connected_workers() if index != worker.index]
                    done = partial(self._reply, worker, number, "")
                    if not self._requests.send(others, " ".join(command), done):
                        done()
                case ["done", number, *reply]:
                    self._requests.on_reply(worker.index, number, "".join(reply))
                case ["reload", number] if self.reloads is not None:
                    self.reloads.request(partial(self._reply, worker, number))
                case ["up"]:
                    self._on_worker_ready(worker)

    def _on_worker_ready(self, worker: _WorkerSlot) -> None:
        worker.ready = True
        worker.heartbeat_deadline = self._clock() + self._config.worker_timeout_seconds
        if not self._all_ready and all(each.ready for each in self._workers):
            self._all_ready = True
            self._on_ready()

    def _reply(self, worker: _WorkerSlot, number: str, reply: str, *_: object) -> None:
        self._send(worker, f"done {number} {encode_arg(reply[:MAX_REPLY])}")

    def _reload(self) -> None:
        requested, self._reload_requested = self._reload_requested, False
        if self.reloads is None:
            return
        if requested:
            self.reloads.request()
        self.reloads.poll()
        self._config = self.reloads.config

    def _send(self, worker: _WorkerSlot, line: str) -> bool:
        try:
            assert worker.channel is not None
            worker.channel.sendall(line.encode() + b"\n", socket.MSG_DONTWAIT)  # one that hangs does not read
        except (OSError, AssertionError):
            return False
        return True

    def _close_channel(self, worker: _WorkerSlot) -> None:
        """Its channel is gone; requests that wait for its reply get none."""
        if worker.channel is not None:
            self._selector.unregister(worker.channel)
            worker.channel.close()
            worker.channel = None
        self._requests.on_worker_exit(worker.index)

    def _reap_workers(self) -> int:
        """Note which workers have ended. Returns the exit code of one that cannot start at all."""
        code = 0
        for worker in self._workers:
            if not worker.pid:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if not pid:
                continue
            self._close_channel(worker)
            worker.pid = 0
            if self._stopping or self._signals:
                continue
            how = os.waitstatus_to_exitcode(status)
            if how == 2 and worker.starts == 1:  # it has logged why, and would fail again
                code = 2
                continue
            lasted = self._clock() - worker.started
            worker.failures = 0 if lasted > SETTLED_SECONDS else worker.failures + 1
            pause = min(BACKOFF_LIMIT_SECONDS, BACKOFF_SECONDS * 2.0 ** (worker.failures - 2)) if worker.failures > 1 else 0.0
            worker.start_at = self._clock() + pause
            said = f"signal {signal.Signals(-how).name}" if how < 0 else f"exit code {how}"
            when = f"in {pause:g} s" if pause else "now"
            level = logging.ERROR if how else logging.INFO  # 0: it was sent SIGTERM, and drained
            _log.log(level, "worker %d (pid %d) ended with %s; another takes its place %s", worker.index, pid, said, when)
        return code

    def _kill_unresponsive(self) -> None:
        """Kill workers without a heartbeat. SIGABRT has one that still runs print where it hangs; a stopped one does not."""
        now = self._clock()
        for worker in self._workers:
            if not worker.pid or now < worker.heartbeat_deadline:
                continue
            if not worker.aborted:
                silent = self._config.worker_timeout_seconds if worker.ready else now - worker.started
                _log.error("worker %d (pid %d) has hung for %.0f s, and is killed", worker.index, worker.pid, silent)
            os.kill(worker.pid, signal.SIGKILL if worker.aborted else signal.SIGABRT)
            worker.aborted = True
            worker.heartbeat_deadline = now + ABORT_SECONDS

    def _upgrade(self) -> None:
        """Start a successor if one is requested; give up on one that is not ready after UPGRADE_SECONDS."""
        requested = self._upgrade_requested and self._all_ready
        if requested:
            self._upgrade_requested = False
        if requested and self._successor is None:
            try:
                self._successor = successor = UpgradeProcess(self._listeners)
            except RgateError as error:
                _log.error("no upgrade: %s", error)
                return
            self._successor_deadline = self._clock() + UPGRADE_SECONDS
            self._selector.register(successor, selectors.EVENT_READ, successor)
            _log.info("process %d is starting, to take over", successor.pid)
        elif self._successor_deadline and self._clock() >= self._successor_deadline:
            self._conclude_upgrade(in_time=False)

    def _conclude_upgrade(self, in_time: bool = True) -> None:
        successor, self._successor, self._successor_deadline = self._successor, None, 0.0
        assert successor is not None
        self._selector.unregister(successor)
        try:
            successor.finish(in_time)
        except RgateError as error:
            _log.error("no upgrade: %s; this gateway goes on", error)
        else:
            self._begin_stop(successor.pid)

    def _begin_stop(self, successor: int | None = None) -> None:
        if self._successor is not None:
            self._conclude_upgrade(in_time=False)
        self._stopping = True
        for worker in self._workers:
            self._send(worker, "stop" if successor is None else "retire")
        self._listeners.close()  # so that the workers' own are the last ones
        delay = self._config.shutdown_delay_seconds if successor is None else 0.0
        self._kill_at = self._clock() + delay + self._config.drain_seconds + KILL_AFTER_SECONDS
        self._on_stop(successor)

    def _kill_all(self) -> None:
        for worker in self._workers:
            if worker.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
