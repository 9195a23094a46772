"""Worker processes: as many as cores, one port, each replaced when it ends unasked or gets on no more.

The supervisor makes everything that must outlive a worker (the listening sockets) and everything that can be shared
(imports, the config, the composed gateway), then forks. Each worker has a listening socket of its own on the same port
(SO_REUSEPORT), which spreads connections evenly; the supervisor keeps them open, so what waits in the queue of a worker
that died is served by the one that takes its place.

What a worker and its supervisor say to each other, apart from what siblings ask of each other, is one word:

    up      the worker serves          stop     the gateway ends: serve who is connected, then end
    beat    it still gets on           retire   the same, but the sockets are served on by others

or `reload NUMBER`, with which a worker wants all of them to take up the config as it is now.
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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from .. import log
from ..errors import RgateError
from ..runtime.worker_channel import encode_arg
from ..serving.listeners import Listeners
from .rolling_reload import PreforkGateway, RollingReload
from .upgrade import UPGRADE_SECONDS, UpgradeProcess
from .worker_requests import Finish, WorkerRequests

if TYPE_CHECKING:
    from ..config.models import ServerConfig

__all__ = ["Supervisor"]

# A worker that ends within this time of its start is started again ever more slowly.
SETTLED_SECONDS: Final = 10.0
BACKOFF_SECONDS: Final = 0.5
BACKOFF_LIMIT_SECONDS: Final = 10.0
KILL_AFTER_SECONDS: Final = 5.0  # beyond the drain
START_SECONDS: Final = 60.0  # beyond worker_timeout_seconds, for what a worker does before it serves
ABORT_SECONDS: Final = 2.0  # for a hung worker to say where it hangs
BEAT_SECONDS: Final = 1.0  # of the supervisor itself
MAX_ANSWER: Final = 8_000  # characters; more would not be read in a terminal either
_log = logging.getLogger("rgate.process")

WorkerMain = Callable[[int, bool, socket.socket], int]


@dataclass
class _Worker:
    """One place for a worker: its listening socket stays, the process in it may change."""

    index: int
    pid: int = 0
    channel: socket.socket | None = None
    unread: bytes = b""
    started: float = 0.0
    starts: int = 0
    up: bool = False
    hung_at: float = 0.0  # when it counts as hung, unless there is another beat
    aborted: bool = False
    failures: int = 0
    start_at: float = 0.0


class Supervisor:
    """Runs `main(index, first_time, channel)` in `processes` forked processes, and keeps them running.

    `on_up` is called once, when all serve; `on_beat` about once a second; `on_stop` with the successor's process number
    when one has taken over, or None. `blueprint` is what the processes are forked with, and can be made anew when the config
    has changed; without it there is no reload. Before any thread is started in this process, call run() from the main
    thread: it forks. (A thread that writes the log comes and goes; it holds nothing that a fork would need.)
    """

    def __init__(
        self,
        main: WorkerMain,
        listeners: Listeners,
        config: ServerConfig,
        *,
        on_up: Callable[[], object] = lambda: None,
        on_beat: Callable[[], object] | None = None,
        on_stop: Callable[[int | None], object] = lambda pid: None,
        blueprint: PreforkGateway | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._main = main
        self._listeners = listeners
        self._config = config
        self._on_up, self._on_beat, self._on_stop = on_up, on_beat, on_stop
        self._clock = clock
        self._workers = [_Worker(index) for index in range(config.processes)]
        self._selector = selectors.DefaultSelector()
        self._questions = WorkerRequests(lambda index, line: self._send(self._workers[index], line))
        self._blueprint = blueprint
        self._reloading = RollingReload(blueprint, self._present, self._ask_to_reload, self._say_refused) if blueprint else None
        self._reload_wanted = False
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._signals = 0
        self._upgrade_wanted = False
        self._successor: UpgradeProcess | None = None
        self._successor_until = 0.0
        self._all_up = False
        self._stopping = False
        self._kill_at = 0.0

    def run(self) -> int:
        """Supervise until a signal ends it; the exit code. SIGTERM and SIGINT drain; a second one ends the workers at once.
        SIGUSR2 starts a successor, and drains when that serves; SIGHUP takes up a changed config."""
        self._selector.register(self._wake_receiver, selectors.EVENT_READ)
        noted = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR2, signal.SIGHUP)
        before = {number: signal.signal(number, self._note) for number in noted}
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
                code = self._reap() or code
                if not self._stopping:
                    self._end_hung()
                    self._upgrade()
                    self._reload()
                if (self._signals or code) and not self._stopping:
                    self._begin_stop()
                if self._stopping and not any(worker.pid for worker in self._workers):
                    return code
                if self._signals > 1 or (self._kill_at and self._clock() > self._kill_at):
                    self._kill_all()
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            self._wake_receiver.close()
            self._wake_sender.close()

    def _note(self, number: int, frame: object) -> None:
        # Only count here: a signal handler must not take locks. The wake-up socket ends the wait.
        if number == signal.SIGUSR2:
            self._upgrade_wanted = True
        elif number == signal.SIGHUP:
            self._reload_wanted = True
        elif number != signal.SIGCHLD:
            self._signals += 1

    def _start(self, worker: _Worker) -> None:
        worker.starts += 1
        first = worker.starts == 1
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            self._become(worker, first, ours, theirs)
        theirs.close()
        worker.pid, worker.channel, worker.unread, worker.started = pid, ours, b"", self._clock()
        worker.up = worker.aborted = False
        worker.hung_at = worker.started + START_SECONDS + self._config.worker_timeout_seconds
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _become(self, worker: _Worker, first: bool, ours: socket.socket, theirs: socket.socket) -> None:
        """The child: forget what is the supervisor's, do the work, and never return."""
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor passes it on
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # and so may others
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            faulthandler.enable(2)  # for when it is ended because it hangs
            ours.close()
            self._selector.close()
            for other in self._workers:
                if other is not worker and other.channel is not None:
                    other.channel.close()
            code = self._main(worker.index, first, theirs)
        except BaseException:
            _log.exception("worker %d failed", worker.index)
        finally:
            logging.shutdown()  # which atexit would do
            log.end()
            os._exit(code)

    def _wait(self) -> None:
        waits = [worker.hung_at for worker in self._workers if worker.pid]
        waits += [worker.start_at for worker in self._workers if not worker.pid and not self._stopping]
        waits += [until for until in (self._kill_at, self._successor_until) if until]
        if self._reloading is not None and not self._stopping and (look := self._reloading.next_look) is not None:
            waits.append(look)
        waits += [self._clock() + BEAT_SECONDS] if self._on_beat is not None else []
        began = self._clock()
        timeout = max(0.0, min(waits) - began) if waits else None
        events = self._selector.select(timeout)
        overslept = self._clock() - began - (timeout or 0.0)
        if timeout is not None and overslept > BEAT_SECONDS:  # the whole container was paused, perhaps
            for worker in self._workers:
                worker.hung_at += overslept
        if self._on_beat is not None:
            self._on_beat()
        for key, _ in events:
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._wake_receiver.recv(1_024)
            elif isinstance(key.data, _Worker):
                self._read(key.data)
            else:
                self._conclude_upgrade()

    def _read(self, worker: _Worker) -> None:
        assert worker.channel is not None
        try:
            block = worker.channel.recv(4_096)
        except OSError:
            block = b""
        if not block:
            self._forget(worker)
            return
        *lines, worker.unread = (worker.unread + block).split(b"\n")
        for line in lines:
            match line.decode("ascii", "replace").split():
                case ["beat"] if not worker.aborted:
                    worker.hung_at = self._clock() + self._config.worker_timeout_seconds
                case ["ask", number, *question]:
                    others = [index for index in self._present() if index != worker.index]
                    done = partial(self._answer, worker, number, "")
                    if not self._questions.ask(others, " ".join(question), done):
                        done()
                case ["done", number, *answer]:
                    self._questions.answered(worker.index, number, "".join(answer))
                case ["reload", number] if self._reloading is not None:
                    self._reloading.want(partial(self._answer, worker, number))
                case ["up"]:
                    self._is_up(worker)

    def _is_up(self, worker: _Worker) -> None:
        worker.up = True
        worker.hung_at = self._clock() + self._config.worker_timeout_seconds
        if not self._all_up and all(each.up for each in self._workers):
            self._all_up = True
            self._on_up()

    def _present(self) -> list[int]:
        return [worker.index for worker in self._workers if worker.channel is not None]

    def _answer(self, worker: _Worker, number: str, answer: str, *_: object) -> None:
        self._send(worker, f"done {number} {encode_arg(answer[:MAX_ANSWER])}")

    def _ask_to_reload(self, index: int, answered: Finish) -> bool:
        return self._questions.ask([index], "reload", answered)

    def _say_refused(self, problems: str) -> None:
        self._questions.ask(self._present(), f"refused {encode_arg(problems[:MAX_ANSWER])}")

    def _reload(self) -> None:
        wanted, self._reload_wanted = self._reload_wanted, False
        if self._reloading is None or self._blueprint is None:
            return
        if wanted:
            self._reloading.want()
        self._reloading.go_on()
        self._config = self._blueprint.gateway.config.server

    def _send(self, worker: _Worker, line: str) -> bool:
        try:
            assert worker.channel is not None
            worker.channel.sendall(line.encode() + b"\n", socket.MSG_DONTWAIT)  # one that hangs does not read
        except (OSError, AssertionError):
            return False
        return True

    def _forget(self, worker: _Worker) -> None:
        """Its channel is gone; what others wait for from it will not come."""
        if worker.channel is not None:
            self._selector.unregister(worker.channel)
            worker.channel.close()
            worker.channel = None
        self._questions.lost(worker.index)

    def _reap(self) -> int:
        """Take note of workers that have ended; the exit code of one that cannot start at all."""
        code = 0
        for worker in self._workers:
            if not worker.pid:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if not pid:
                continue
            self._forget(worker)
            worker.pid = 0
            if self._stopping or self._signals:
                continue
            how = os.waitstatus_to_exitcode(status)
            if how == 2 and worker.starts == 1:  # it has said why, and would not get further the next time
                code = 2
                continue
            lasted = self._clock() - worker.started
            worker.failures = 0 if lasted > SETTLED_SECONDS else worker.failures + 1
            pause = min(BACKOFF_LIMIT_SECONDS, BACKOFF_SECONDS * 2.0 ** (worker.failures - 2)) if worker.failures > 1 else 0.0
            worker.start_at = self._clock() + pause
            said = f"signal {signal.Signals(-how).name}" if how < 0 else f"exit code {how}"
            when = f"in {pause:g} s" if pause else "now"
            level = logging.ERROR if how else logging.INFO  # 0: somebody has sent it a signal to end, and it did in order
            _log.log(level, "worker %d (pid %d) ended with %s; another takes its place %s", worker.index, pid, said, when)
        return code

    def _end_hung(self) -> None:
        """End workers that get on no more. One that runs still says where it hangs; one that is stopped does not."""
        now = self._clock()
        for worker in self._workers:
            if not worker.pid or now < worker.hung_at:
                continue
            if not worker.aborted:
                silent = self._config.worker_timeout_seconds if worker.up else now - worker.started
                _log.error("worker %d (pid %d) has hung for %.0f s, and is ended", worker.index, worker.pid, silent)
            os.kill(worker.pid, signal.SIGKILL if worker.aborted else signal.SIGABRT)
            worker.aborted = True
            worker.hung_at = now + ABORT_SECONDS

    def _upgrade(self) -> None:
        """Start the next gateway when that is wanted; it may take its time, but not for ever."""
        wanted = self._upgrade_wanted and self._all_up
        if wanted:
            self._upgrade_wanted = False
        if wanted and self._successor is None:
            try:
                self._successor = successor = UpgradeProcess(self._listeners)
            except RgateError as error:
                _log.error("no upgrade: %s", error)
                return
            self._successor_until = self._clock() + UPGRADE_SECONDS
            self._selector.register(successor, selectors.EVENT_READ, successor)
            _log.info("process %d is starting, to take over", successor.pid)
        elif self._successor_until and self._clock() >= self._successor_until:
            self._conclude_upgrade(in_time=False)

    def _conclude_upgrade(self, in_time: bool = True) -> None:
        successor, self._successor, self._successor_until = self._successor, None, 0.0
        assert successor is not None
        self._selector.unregister(successor)
        try:
            successor.conclude(in_time)
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
