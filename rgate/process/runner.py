"""The life of a process that serves: listen, start, reload as often as the config changes, drain, end.

serve() runs a gateway in this process, or with several workers in as many processes and a supervisor. Each process that serves
is a _ServerProcess; read its run() first.
"""

from __future__ import annotations

import gc
import logging
import signal
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from ..discovery import remarks
from ..errors import RgateError
from ..log import configure, timestamp
from ..runtime.runtime import CONFIG_NOTICE, refusal
from ..serving.listeners import Listeners
from ..serving.server import Server
from ..version import VERSION
from .reload import ReloadThread, WorkersReload
from .signals import TERMINATING, handle_signals
from .socket_activation import InheritedSockets, inherit
from .supervisor import Supervisor
from .systemd import notify, notify_main_pid, watchdog_wanted
from .upgrade import UpgradeProcess

if TYPE_CHECKING:
    from ..config.models import ServerConfig
    from ..discovery import Change
    from ..runtime.gateway import Gateway
    from ..runtime.reload import ConfigFile

__all__ = ["Console", "serve"]

ALL_WORKERS_SECONDS: Final = 75.0  # for a reload of all workers: twice REPLY_SECONDS, and the build
DISCOVERY_SECONDS: Final = 10.0  # for a process that takes over to find endpoints
_COLOURS: Final = {"+": "green", "-": "yellow", "!": "red", "?": "red"}
_log = logging.getLogger("rgate.process")
_endpoints_log = logging.getLogger("rgate.endpoints")


class Console(Protocol):
    """Where the start is shown to the operator; rgate.cli.console.Console is one."""

    def line(self, text: str, style: str = "") -> None:
        """Print a line."""

    def routes(self, gateway: Gateway) -> None:
        """Print routes, backends and endpoints as a table."""

    def route_rows(self, gateway: Gateway) -> Iterable[Sequence[str]]:
        """The rows of that table."""


def serve(
    gateway: Gateway,
    console: Console,
    hints: Sequence[str] = (),
    on_kill: Callable[[], object] = lambda: None,
    source: ConfigFile | None = None,
) -> int:
    """Serve `gateway` until SIGTERM or SIGINT, then drain; a second signal calls `on_kill` and ends the process. SIGUSR2
    starts the program again, hands it the listening sockets, and ends this one without losing a request. When the files of
    `source` change, and at SIGHUP, the config is read again.

    Prints the URL and a table of routes, then `hints` ({url} in them is replaced). Every change that discovery finds is
    logged. With several workers, each is a process of its own, and the first one prints. For the main thread. Returns the exit
    code; raises RgateError before anything has been started.
    """
    config = gateway.config.server
    configure(gateway.config.log.level, gateway.config.log.format)
    inherited = inherit()
    with closing(Listeners.open(config, config.processes, inherited)) as listeners:
        if config.processes == 1:
            _SingleProcess(gateway, console, listeners, inherited, source).run(hints, on_kill)
            code = 0
        else:
            code = _supervise(gateway, console, listeners, inherited, hints, on_kill, source)
    _log.info("stopped")
    return code


def _supervise(
    gateway: Gateway,
    console: Console,
    listeners: Listeners,
    inherited: InheritedSockets,
    hints: Sequence[str],
    on_kill: Callable[[], object],
    source: ConfigFile | None,
) -> int:
    """Fork workers that serve the current gateway, until a signal ends them. The exit code."""
    config, runtime = gateway.config.server, gateway.runtime

    def worker_main(index: int, first_time: bool, channel: socket.socket) -> int:
        inherited.close_ready_fd()  # the supervisor reports that the gateway is ready
        own = listeners.for_worker(index, config.processes).duplicate()
        listeners.close()
        current = runtime.current or gateway
        try:
            worker = _WorkerProcess(current, console if index == 0 else None, own, inherited, source, channel)
            worker.run(hints if first_time else None, on_kill)
        except RgateError as error:
            _log.error("%s", error)
            return 2
        return 0

    def on_stop(successor: int | None) -> None:
        if successor is None:
            notify("STOPPING=1")
        else:
            notify_main_pid(successor)
        _log.info("%s", stop_line(config, successor))

    supervisor = Supervisor(
        worker_main,
        listeners,
        config,
        on_ready=partial(_notify_ready, inherited),
        on_heartbeat=_feed_watchdog if watchdog_wanted() else None,
        on_stop=on_stop,
    )
    if source is not None:
        supervisor.reloads = WorkersReload(
            runtime, source, supervisor.connected_workers, supervisor.ask, partial(supervisor.broadcast, "refused")
        )
    return supervisor.run()


class _ServerProcess(ABC):
    """A gateway served in this process. It prints and logs only what concerns this process when `console` is None."""

    signals: Sequence[signal.Signals] = TERMINATING

    def __init__(
        self,
        gateway: Gateway,
        console: Console | None,
        listeners: Listeners,
        inherited: InheritedSockets,
        source: ConfigFile | None,
    ) -> None:
        self.runtime = gateway.runtime
        self.config = gateway.config.server
        self.console = console
        self.inherited = inherited
        self.source = source
        self.server = Server(gateway.app, self.config, listeners, gateway.tls, gateway.readiness)
        listeners.close()  # the server has its own, and must be able to close the last
        self.signal_handlers: dict[signal.Signals, Callable[[], object]] = {}
        self.is_stopping = False
        self._first = gateway
        self._console_lock = threading.Lock()
        self._has_started = False

    def run(self, hints: Sequence[str] | None, on_kill: Callable[[], object]) -> None:
        """Serve until stop(). `hints` are None when the start was printed before. Raises RgateError."""
        runtime = self.runtime
        runtime.listening, runtime.reports = (self.server.host, self.server.port), self.console is not None
        runtime.discovery.on_change(self._log_changes)
        try:
            with ExitStack() as stack:
                stack.enter_context(handle_signals(self.on_signal, on_kill, self.signals, self.signal_handlers))
                stack.enter_context(self._first.running())
                stack.enter_context(self.reloads())
                if self.inherited.is_upgrade:
                    _wait_for_discovery(self.gateway)
                with self._console_lock:  # so that no change is logged before the table that it changes
                    if self.console and hints is not None:
                        self._print_start(self.console, hints)
                    self._has_started = True
                gc.collect()
                gc.freeze()  # not gc_freeze(): unfreezing would give a worker its own copy of every page that it shares
                self.on_ready()
                self.server.run()
        finally:
            self.server.server_close()

    @property
    def gateway(self) -> Gateway:
        """The current one."""
        return self.runtime.current or self._first

    def reload(self) -> str:
        """Read the config, and serve with it from now on. Returns why it is refused, or ""."""
        source = self.source
        return "there is no config file" if source is None else self.runtime.reload(source.build_gateway, self._serve)

    def _serve(self, gateway: Gateway) -> Callable[[], bool]:
        self.config = gateway.config.server
        configure(gateway.config.log.level, gateway.config.log.format)
        if self.source is not None:
            self.source.update_restart_notice(self.runtime)
        return self.server.reconfigure(gateway.app, self.config, gateway.tls)

    def stop(self) -> None:
        """Stop being ready, serve the clients connected by then, then end. Returns at once."""
        self.is_stopping = True
        self.runtime.readiness.not_ready_reasons["stopping"] = f"since {timestamp(time.time())}, by a signal"
        if delay := self.config.shutdown_delay_seconds:
            timer = threading.Timer(delay, self.server.stop)
            timer.daemon = True
            timer.start()
        else:
            self.server.stop()

    @abstractmethod
    def reloads(self) -> AbstractContextManager[None]:
        """Inside, reloads happen. Entered before anything is printed."""

    @abstractmethod
    def on_ready(self) -> None:
        """Called when it is about to serve."""

    @abstractmethod
    def on_signal(self) -> None:
        """Called for the first of `signals`."""

    def _print_start(self, console: Console, hints: Sequence[str]) -> None:
        gateway = self.gateway
        if gateway.config.log.format == "json":
            fields = {"version": VERSION, "url": self.server.url}
            _log.info("%s", start_line(gateway, self.server.url), extra={"fields": fields})
            for route, backend, endpoint, address in console.route_rows(gateway):
                fields = {"route": route, "backend": backend, "endpoint": endpoint, "address": address}
                _log.info("%s", " ".join(filter(None, fields.values())), extra={"fields": fields})
            for change in remarks(gateway.table.snapshot):
                _log_change(change)
            return
        console.line(start_line(gateway, self.server.url), "bold")
        if self.server.redirect_port is not None:
            console.line(f"and plain HTTP on port {self.server.redirect_port}, answered with where https is")
        console.routes(gateway)
        for hint in hints:
            console.line(hint.replace("{url}", self.server.url))

    def _log_changes(self, changes: Sequence[Change]) -> None:
        with self._console_lock:
            for change in changes if self._has_started and self.console else ():
                _log_change(change)


class _SingleProcess(_ServerProcess):
    """The only process."""

    def __init__(
        self,
        gateway: Gateway,
        console: Console,
        listeners: Listeners,
        inherited: InheritedSockets,
        source: ConfigFile | None,
    ) -> None:
        super().__init__(gateway, console, listeners, inherited, source)
        self._reloads = ReloadThread(self.runtime, source, self.reload) if source is not None else None
        self._successor: UpgradeProcess | None = None
        self.signal_handlers[signal.SIGUSR2] = self.upgrade
        if self._reloads is not None:
            self.signal_handlers[signal.SIGHUP] = self._reloads.request

    @contextmanager
    def reloads(self) -> Iterator[None]:
        if self._reloads is None:
            yield
            return
        self.runtime.on_reload = self._reloads.reload
        self._reloads.start()
        try:
            yield
        finally:
            self._reloads.stop()

    def on_ready(self) -> None:
        if watchdog_wanted():
            self.server.heartbeat = _feed_watchdog
        _notify_ready(self.inherited)

    def on_signal(self) -> None:
        notify("STOPPING=1")
        self.stop()
        if self._successor is not None:
            self._successor.kill()
        _log.info("%s", stop_line(self.config))

    def upgrade(self) -> None:
        """Start a successor, and end when it serves. Returns at once."""
        if self.is_stopping or self._successor is not None:
            return
        try:
            self._successor = UpgradeProcess(self.server.listeners)
        except RgateError as error:
            _log.error("no upgrade: %s", error)
        else:
            threading.Thread(target=self._upgrade, args=(self._successor,), name="rgate-upgrade", daemon=True).start()

    def _upgrade(self, successor: UpgradeProcess) -> None:
        _log.info("process %d is starting, to take over", successor.pid)
        try:
            successor.wait()
        except RgateError as error:
            self._successor = None
            if not self.is_stopping:
                _log.error("no upgrade: %s; this gateway goes on", error)
            return
        notify_main_pid(successor.pid)
        self.server.hand_off()
        _log.info("%s", stop_line(self.config, successor.pid))


class _WorkerProcess(_ServerProcess):
    """One of several processes. A signal ends only this one; the supervisor says when the whole gateway ends."""

    signals = (signal.SIGTERM,)

    def __init__(
        self,
        gateway: Gateway,
        console: Console | None,
        listeners: Listeners,
        inherited: InheritedSockets,
        source: ConfigFile | None,
        channel: socket.socket,
    ) -> None:
        super().__init__(gateway, console, listeners, inherited, source)
        self._channel = channel

    @contextmanager
    def reloads(self) -> Iterator[None]:
        workers = self.runtime.workers
        workers.on_command("reload", lambda _: self.reload())
        workers.on_command("refused", self._note_refused)
        if self.source is not None:
            self.runtime.on_reload = self._reload_all_workers
        workers.connect(self._channel, on_lost=self.server.stop, on_notice={"stop": self.stop, "retire": self.server.hand_off})
        yield

    def _reload_all_workers(self) -> str:
        problems = self.runtime.workers.reload(ALL_WORKERS_SECONDS)
        if problems is None:
            raise RgateError(f"not all workers have reloaded in {ALL_WORKERS_SECONDS:g} s; the log may say why")
        return problems

    def _note_refused(self, problems: str) -> None:
        self.runtime.readiness.warnings[CONFIG_NOTICE] = refusal(problems)

    def on_ready(self) -> None:
        workers = self.runtime.workers
        self.server.heartbeat = partial(workers.notify_supervisor, "beat")
        workers.notify_supervisor("up")

    def on_signal(self) -> None:
        self.server.hand_off()


def _log_change(change: Change) -> None:
    level = logging.WARNING if change.sign in "!?" else logging.INFO
    _endpoints_log.log(level, "%s", change, extra={"colour": _COLOURS.get(change.sign), "fields": change.fields})


def _wait_for_discovery(gateway: Gateway) -> None:
    """Before taking over: wait until the endpoints are known, as they are to the process before. Raises RgateError."""
    until = monotonic() + DISCOVERY_SECONDS
    pause = threading.Event()
    while missing := [source for source in gateway.table.snapshot.sources.values() if source.listed_at is None]:
        if monotonic() >= until:
            raise RgateError(f"not taking over: {missing[0].name}: {missing[0].error or 'no list of endpoints yet'}")
        pause.wait(0.05)


def _notify_ready(inherited: InheritedSockets) -> None:
    # The process before has said READY=1 for the service, and systemd accepts messages from the main process only.
    if not inherited.is_upgrade:
        notify("READY=1")
    inherited.notify_ready()


def _feed_watchdog() -> None:
    notify("WATCHDOG=1")


def stop_line(config: ServerConfig, successor: int | None = None) -> str:
    """stopping, with 10 s for what is in flight; a second signal ends at once"""
    delay = config.shutdown_delay_seconds
    when = (
        f"process {successor} serves now; stopping"
        if successor is not None
        else f"stopping in {delay:g} s"
        if delay
        else "stopping"
    )
    return f"{when}, with {config.drain_seconds:g} s for what is in flight; a second signal ends at once"


def start_line(gateway: Gateway, url: str) -> str:
    """rgate 0.1.0 listening on http://127.0.0.1:8080 (2 routes, 2 backends, 3 endpoints)"""
    everywhere = " and every other address" if gateway.config.server.host in ("0.0.0.0", "::") else ""
    return f"rgate {VERSION} listening on {url}{everywhere} ({summary(gateway, with_endpoints=True)})"


def summary(gateway: Gateway, with_endpoints: bool = False) -> str:
    """2 routes, 1 backend"""
    counts = {"route": len(gateway.routes), "backend": len(gateway.backends)}
    if with_endpoints:
        counts["endpoint"] = sum(map(len, gateway.table.snapshot.found.values()))
    return ", ".join(f"{count} {noun if count == 1 else noun + 's'}" for noun, count in counts.items())
