"""When a config is read again, in one process or in the supervisor of several, and what is logged about it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeAlias

from ..log import configure
from ..runtime.runtime import CONFIG_NOTICE, gc_freeze, problems_of, refusal
from . import systemd

if TYPE_CHECKING:
    from ..config.models import ServerConfig
    from ..runtime.gateway import Gateway
    from ..runtime.reload import ConfigFile
    from ..runtime.runtime import Runtime

__all__ = ["REPLY_SECONDS", "RETRY_SECONDS", "OnReply", "ReloadThread", "ReloadTrigger", "WorkersReload"]

RETRY_SECONDS: Final = 10.0
REPLY_SECONDS: Final = 30.0  # for the first worker, and then for all others together
_log = logging.getLogger("rgate.process")

OnReply: TypeAlias = Callable[[str | None], object]  # called with a worker's reply; None: it has ended first


class ReloadTrigger:
    """Decides when to reload without a request, and reports every reload to the log and to systemd.

    Call is_due() at `next_check_at` (seconds of `clock`, monotonic), on_start() before every reload and on_finished() after it.
    A config that is refused is tried again every RETRY_SECONDS, because what was missing (a certificate, a plugin, a database)
    may have appeared where no file changed. A refusal is logged once, and again when the problems are others.
    """

    def __init__(self, source: ConfigFile, clock: Callable[[], float] = monotonic) -> None:
        self._source = source
        self._clock = clock
        self._logged_problems = ""
        self._retry_at = 0.0

    @property
    def next_check_at(self) -> float:
        """When to call is_due() next."""
        next_look = self._source.watch.next_poll_at
        return min(next_look, self._retry_at) if self._logged_problems else next_look

    def is_due(self) -> bool:
        """Whether the files have changed, or were refused RETRY_SECONDS ago."""
        now = self._clock()
        changed = now >= self._source.watch.next_poll_at and self._source.watch.changed()
        return changed or bool(self._logged_problems and now >= self._retry_at)

    def on_start(self, requested: bool) -> None:
        """Report that the config is read again now. `requested`: a caller waits for the outcome."""
        if requested:
            systemd.notify_reloading()

    def on_finished(self, problems: str, requested: bool, partly: bool = False) -> None:
        """Report that the config is active, and which keys need a restart, or why it is refused. `requested` as in on_start();
        with `partly` the problems are those of some workers only."""
        path = self._source.path
        systemd.notify_reloaded(refusal(problems, partly) if problems else "", requested)
        if problems:
            if requested or problems != self._logged_problems:
                outcome = "active, but not in every worker" if partly else "refused, the config before stays active"
                _log.error("%s is %s:\n%s", path, outcome, problems)
            self._logged_problems, self._retry_at = problems, self._clock() + RETRY_SECONDS
            return
        self._logged_problems = ""
        for line in self._source.needs_restart:
            _log.warning("%s", line)
        _log.info("%s reloaded", path)


class ReloadThread:
    """Reloads a single process: when requested, and when the files of `source` change if the active config says so.

    `reload` reads the config and makes it active; it returns the problems, or "". The thread is `rgate-reload`, between start()
    and stop().
    """

    def __init__(self, runtime: Runtime, source: ConfigFile, reload: Callable[[], str]) -> None:
        self._runtime = runtime
        self._trigger = ReloadTrigger(source)
        self._do_reload = reload
        self._lock = threading.Lock()  # one reload at a time, and with it the trigger and `source`
        self._wake = threading.Event()
        self._requested = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="rgate-reload", daemon=True)

    def start(self) -> None:
        """Start to check the files."""
        self._thread.start()

    def stop(self) -> None:
        """Stop checking, and wait for a reload in progress."""
        self._stopped = True
        self._wake.set()
        self._thread.join()

    def request(self) -> None:
        """Reload soon. Returns at once; for signals."""
        self._requested = True
        self._wake.set()

    def reload(self) -> str:
        """Reload now. Returns why the config is refused, or ""."""
        with self._lock:
            problems = self._reload(requested=True)
        self._wake.set()  # the new config may say whether to check files, and which
        return problems

    def _reload(self, requested: bool) -> str:
        self._trigger.on_start(requested)
        problems = self._do_reload()
        self._trigger.on_finished(problems, requested)
        return problems

    def _run(self) -> None:
        while not self._stopped:
            gateway = self._runtime.current
            checks_files = gateway is not None and gateway.config.server.reload_on_change
            self._wake.wait(max(0.0, self._trigger.next_check_at - monotonic()) if checks_files else None)
            self._wake.clear()
            requested, self._requested = self._requested, False
            with self._lock:
                if not self._stopped and (requested or (checks_files and self._trigger.is_due())):
                    self._reload(requested)


class WorkersReload:
    """Reloads several processes, from the supervisor.

        build the gateway here ─→ the first worker reloads ─→ all other workers reload ─→ report

    What is wrong with a config shows in the first two steps, and then every worker keeps the config it has. The supervisor's
    gateway never runs: it is checked by building it, and workers that start later are forked with it. A worker that cannot
    reload in the third step is named in the report, and keeps its config.

    `workers()` are the workers that can be reached. `ask(worker, command, on_reply)` has one run a command; False if it cannot
    be asked. `notify_refused(problems)` tells all of them why the config is refused. For one thread, the supervisor's.
    """

    def __init__(
        self,
        runtime: Runtime,
        source: ConfigFile,
        workers: Callable[[], Sequence[int]],
        ask: Callable[[int, str, OnReply], bool],
        notify_refused: Callable[[str], object],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._runtime = runtime
        self._source = source
        self._trigger = ReloadTrigger(source, clock)
        self._workers = workers
        self._ask = ask
        self._notify_refused = notify_refused
        self._clock = clock
        self._requests: list[Callable[[str], object]] = []
        self._current: _Reload | None = None

    @property
    def config(self) -> ServerConfig:
        """The active config of the server."""
        assert self._runtime.current is not None
        return self._runtime.current.config.server

    @property
    def next_check_at(self) -> float | None:
        """When to call poll() although nothing has happened, by `clock`; None: never."""
        if self._current is not None:
            return self._current.deadline
        return self._trigger.next_check_at if self.config.reload_on_change else None

    def request(self, on_done: Callable[[str], object] = lambda problems: None) -> None:
        """Reload soon, and call `on_done` with why the config is refused, or "". A request during a reload is for the next."""
        self._requests.append(on_done)

    def poll(self) -> None:
        """Start a reload that is requested or due; end the wait for workers that do not reply."""
        if self._current is not None:
            if self._clock() >= self._current.deadline:
                for worker in sorted(self._current.pending):
                    self._current.problems.append(f"worker {worker}: has not answered in {REPLY_SECONDS:g} s")
                self._current.pending.clear()
                self._go_on(self._current)
            return
        if self._requests or (self.config.reload_on_change and self._trigger.is_due()):
            self._start()

    def _start(self) -> None:
        self._current = reload = _Reload(self._requests)
        self._requests = []
        self._trigger.on_start(reload.requested)
        if problems := problems_of(lambda: reload.build(self._source, self._runtime)):
            reload.problems.append(problems)
        else:
            for worker in self._workers():
                if self._send(reload, worker):
                    break
        self._go_on(reload)

    def _send(self, reload: _Reload, worker: int) -> bool:
        reload.deadline = self._clock() + REPLY_SECONDS
        reload.pending.add(worker)  # first: the reply may come at once
        reload.asked.add(worker)
        if self._ask(worker, "reload", partial(self._on_reply, reload, worker)):
            return True
        reload.pending.discard(worker)
        return False

    def _on_reply(self, reload: _Reload, worker: int, problems: str | None) -> None:
        if worker not in reload.pending:  # too late
            return
        reload.pending.discard(worker)
        if problems != "":
            reload.problems.append(f"worker {worker}: {problems or 'has ended'}")
        self._go_on(reload)

    def _go_on(self, reload: _Reload) -> None:
        """Take the next step, unless a worker has yet to reply."""
        if reload.pending or reload is not self._current:
            return
        if not reload.is_active and not reload.problems:
            self._activate(reload)
            for worker in self._workers():
                if worker not in reload.asked:
                    self._send(reload, worker)
            if reload.pending:
                return
        self._finish(reload)

    def _activate(self, reload: _Reload) -> None:
        """Fork workers with the new gateway from now on."""
        assert reload.gateway is not None
        reload.is_active = True
        self._runtime.activate(reload.gateway)
        config = reload.gateway.config
        configure(config.log.level, config.log.format)
        self._runtime.readiness.warnings.pop(CONFIG_NOTICE, None)
        self._source.update_restart_notice(self._runtime)
        gc_freeze()

    def _finish(self, reload: _Reload) -> None:
        self._current = None
        problems = "\n".join(reload.problems)
        if problems and not reload.is_active:
            if reload.gateway is not None:
                self._runtime.discard(reload.gateway)
            self._notify_refused(problems)
        if problems:
            self._runtime.readiness.warnings[CONFIG_NOTICE] = refusal(problems, partly=reload.is_active)
        self._trigger.on_finished(problems, reload.requested, partly=reload.is_active)
        for on_done in reload.on_done:
            on_done(problems)


class _Reload:
    """One reload of all workers."""

    def __init__(self, on_done: Sequence[Callable[[str], object]]) -> None:
        self.on_done = on_done
        self.requested = bool(on_done)
        self.gateway: Gateway | None = None
        self.is_active = False  # whether workers are forked with it
        self.pending: set[int] = set()
        self.asked: set[int] = set()
        self.deadline = 0.0
        self.problems: list[str] = []

    def build(self, source: ConfigFile, runtime: Runtime) -> None:
        self.gateway = source.build_gateway(runtime)
