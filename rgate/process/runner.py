"""A gateway in the foreground: listening, telling what it finds, until a signal ends it or another one takes over."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

from ..discovery import remarks
from ..errors import RgateError
from ..log import adjust, timestamp
from ..runtime.reload_coordinator import NOTICE, ReloadCoordinator, refusal
from ..serving.listeners import Listeners
from ..serving.server import Server
from ..version import VERSION
from .prefork import PreforkGateway
from .reloader import Reloader
from .signals import ENDING, handle_signals
from .socket_activation import InheritedSockets, inherit
from .supervisor import Supervisor
from .systemd import notify, notify_main_pid, watchdog_wanted
from .upgrade import UpgradeProcess

if TYPE_CHECKING:
    from ..cli.console import Console
    from ..config.models import ServerConfig
    from ..discovery import Change
    from ..runtime.config_file import ConfigFile
    from ..runtime.gateway import Gateway

__all__ = ["serve"]

RELOAD_SECONDS: Final = 60.0  # how long all workers together may take
FIND_SECONDS: Final = 10.0  # how long a gateway that is to take over looks for endpoints
_COLOURS: Final = {"+": "green", "-": "yellow", "!": "red", "?": "red"}
_log = logging.getLogger("rgate.process")
_endpoints_log = logging.getLogger("rgate.endpoints")


def serve(
    gateway: Gateway,
    console: Console,
    hints: Sequence[str] = (),
    at_once: Callable[[], object] = lambda: None,
    source: ConfigFile | None = None,
) -> int:
    """Serve `gateway` until SIGTERM or SIGINT, then drain; a second signal calls `at_once` and ends the process. SIGUSR2
    starts the program anew, hands it the listening sockets, and ends this one without a lost request. When `source` changes,
    and at SIGHUP, it is read again and taken up.

    Tells at which URL, what leads where, then `hints` ({url} in them is filled in); every change that discovery sees goes to
    the log. With several workers each is a process of its own, and the first one tells. Main thread only. Returns the exit
    code; raises RgateError before anything has been started.
    """
    config = gateway.config.server
    adjust(gateway.config.log.level, gateway.config.log.format)
    inheritance = inherit()
    with closing(Listeners.open(config, config.processes, inheritance)) as listeners:
        if config.processes == 1:
            _SingleProcess(gateway, console, listeners, inheritance, source).run(hints, at_once)
            _log.info("stopped")
            return 0

        first = gateway
        blueprint = PreforkGateway(gateway, source) if source is not None else None

        def work(index: int, first_time: bool, channel: socket.socket) -> int:
            inheritance.forget()  # saying it is the supervisor's
            own = listeners.share(index, config.processes).duplicate()
            listeners.close()
            telling = console if index == 0 else None
            try:
                gateway = blueprint.gateway if blueprint is not None else first
                _Worker(gateway, telling, own, inheritance, source, channel).run(hints if first_time else None, at_once)
            except RgateError as error:
                _log.error("%s", error)
                return 2
            return 0

        def on_up() -> None:
            _say_ready(inheritance)

        def on_stop(successor: int | None) -> None:
            if successor is None:
                notify("STOPPING=1")
            else:
                notify_main_pid(successor)
            _log.info("%s", stop_line(config, successor))

        on_beat = _feed_watchdog if watchdog_wanted() else None
        code = Supervisor(work, listeners, config, on_up=on_up, on_beat=on_beat, on_stop=on_stop, blueprint=blueprint).run()
        _log.info("stopped")
        return code


class _ServerProcess(ABC):
    """A gateway served in this process. It tells nothing when `console` is None."""

    signals: Sequence[signal.Signals] = ENDING

    def __init__(
        self,
        gateway: Gateway,
        console: Console | None,
        listeners: Listeners,
        inheritance: InheritedSockets,
        source: ConfigFile | None,
    ) -> None:
        self.gateway = gateway
        self.config = gateway.config.server
        self.console = console
        self.inheritance = inheritance
        self.source = source
        self.server = Server(gateway.app, self.config, listeners, gateway.tls, gateway.readiness)
        listeners.close()  # the server has its own, and must be able to close the last
        self.others: dict[signal.Signals, Callable[[], object]] = {}
        self._stopping = False
        self._telling = threading.Lock()
        self._begun = False

    def run(self, hints: Sequence[str] | None, at_once: Callable[[], object]) -> None:
        """Serve until told to end. `hints` are None for one that tells changes only. Raises RgateError."""
        self.prepare(self.gateway)
        try:
            with ExitStack() as stack:
                stack.enter_context(handle_signals(self.on_signal, at_once, self.signals, self.others))
                succession = stack.enter_context(closing(ReloadCoordinator(self.gateway, self._compose, self._take_up)))
                stack.enter_context(self.reloading(succession))
                if self.inheritance.takes_over:
                    _find_endpoints(self.gateway)
                with self._telling:  # so that no change is told before the table that it changes
                    if self.console and hints is not None:
                        self._tell_start(self.console, hints)
                    self._begun = True
                gc.collect()
                gc.freeze()  # and never unfreeze() here: a worker would make a copy of every page it shares
                self.up()
                self.server.run()
        finally:
            self.server.server_close()

    def prepare(self, gateway: Gateway) -> None:
        """Called for every gateway before it runs."""
        gateway.listening, gateway.tells = (self.server.host, self.server.port), self.console is not None
        if gateway.tls is not None:
            gateway.tls.logs_expiry = self.console is not None
        gateway.table.on_change(self._tell_changes)

    def _compose(self, before: Gateway) -> Gateway:
        assert self.source is not None
        gateway = self.source.compose(before)
        self.prepare(gateway)
        return gateway

    def _take_up(self, gateway: Gateway) -> Callable[[], bool]:
        self.gateway, self.config = gateway, gateway.config.server
        adjust(gateway.config.log.level, gateway.config.log.format)
        if self.source is not None:
            self.source.note(gateway)
        return self.server.reconfigure(gateway.app, self.config, gateway.tls)

    @abstractmethod
    def reloading(self, succession: ReloadCoordinator) -> AbstractContextManager[None]:
        """Inside, a reload can be asked for. Entered before anything is told."""

    @abstractmethod
    def up(self) -> None:
        """Called when it is about to serve."""

    @abstractmethod
    def on_signal(self) -> None:
        """Called for the first of `signals`."""

    def stop(self) -> None:
        """Be not ready, then serve who is connected by then, then end. Returns at once."""
        self._stopping = True
        self.gateway.readiness.not_ready_reasons["stopping"] = f"since {timestamp(time.time())}, by a signal"
        if delay := self.config.shutdown_delay_seconds:
            timer = threading.Timer(delay, self.server.stop)
            timer.daemon = True
            timer.start()
        else:
            self.server.stop()

    def _tell_start(self, console: Console, hints: Sequence[str]) -> None:
        if self.gateway.config.log.format == "json":
            fields = {"version": VERSION, "url": self.server.url}
            _log.info("%s", start_line(self.gateway, self.server.url), extra={"fields": fields})
            for route, backend, endpoint, address in console.route_rows(self.gateway):
                fields = {"route": route, "backend": backend, "endpoint": endpoint, "address": address}
                _log.info("%s", " ".join(filter(None, fields.values())), extra={"fields": fields})
            for change in remarks(self.gateway.table.snapshot):
                _log_change(change)
            return
        console.line(start_line(self.gateway, self.server.url), "bold")
        if self.server.redirect_port is not None:
            console.line(f"and plain HTTP on port {self.server.redirect_port}, answered with where https is")
        console.routes(self.gateway)
        for hint in hints:
            console.line(hint.replace("{url}", self.server.url))

    def _tell_changes(self, changes: Sequence[Change]) -> None:
        with self._telling:
            for change in changes if self._begun and self.console else ():
                _log_change(change)


class _SingleProcess(_ServerProcess):
    """The same as the only process."""

    def __init__(
        self,
        gateway: Gateway,
        console: Console,
        listeners: Listeners,
        inheritance: InheritedSockets,
        source: ConfigFile | None,
    ) -> None:
        super().__init__(gateway, console, listeners, inheritance, source)
        self.others = {signal.SIGUSR2: self.upgrade}
        if source is not None:
            self.others[signal.SIGHUP] = self._reload
        self._reloader: Reloader | None = None
        self._successor: UpgradeProcess | None = None

    @contextmanager
    def reloading(self, succession: ReloadCoordinator) -> Iterator[None]:
        if self.source is None or self.console is None:
            yield
            return
        self._reloader = Reloader(succession, self.source)
        self.gateway.on_reload = self._reloader.reload
        self._reloader.start()
        try:
            yield
        finally:
            self._reloader.end()

    def _reload(self) -> None:
        if self._reloader is not None:
            self._reloader.want()

    def up(self) -> None:
        if watchdog_wanted():
            self.server.beat = _feed_watchdog
        _say_ready(self.inheritance)

    def on_signal(self) -> None:
        notify("STOPPING=1")
        self.stop()
        if self._successor is not None:
            self._successor.kill()
        _log.info("%s", stop_line(self.config))

    def upgrade(self) -> None:
        """Start the next gateway, and end when it serves. Returns at once."""
        if self._stopping or self._successor is not None:
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
            if not self._stopping:
                _log.error("no upgrade: %s; this gateway goes on", error)
            return
        notify_main_pid(successor.pid)
        self.server.retire()
        _log.info("%s", stop_line(self.config, successor.pid))


class _Worker(_ServerProcess):
    """The same in one of several processes. A signal ends only this one; the gateway's end is told by the supervisor."""

    signals = (signal.SIGTERM,)

    def __init__(
        self,
        gateway: Gateway,
        console: Console | None,
        listeners: Listeners,
        inheritance: InheritedSockets,
        source: ConfigFile | None,
        channel: socket.socket,
    ) -> None:
        super().__init__(gateway, console, listeners, inheritance, source)
        self._channel = channel

    def prepare(self, gateway: Gateway) -> None:
        super().prepare(gateway)
        gateway.workers.on_command("reload", lambda _: self._succession.reload())
        gateway.workers.on_command("refused", self._note_refused)

    @contextmanager
    def reloading(self, succession: ReloadCoordinator) -> Iterator[None]:
        self._succession = succession
        if self.source is not None:
            self.gateway.on_reload = self._have_all_reload
        on_told = {"stop": self.stop, "retire": self.server.retire}
        self.gateway.workers.connect(self._channel, on_lost=self.server.stop, on_told=on_told)
        yield

    def _have_all_reload(self) -> str:
        problems = self.gateway.workers.reload(RELOAD_SECONDS)
        if problems is None:
            raise RgateError(f"not all workers have reloaded in {RELOAD_SECONDS:g} s; the log may say why")
        return problems

    def _note_refused(self, problems: str) -> None:
        self.gateway.readiness.notices[NOTICE] = refusal(problems)

    def up(self) -> None:
        workers = self.gateway.workers
        self.server.beat = partial(workers.notify_supervisor, "beat")
        workers.notify_supervisor("up")

    def on_signal(self) -> None:
        self.server.retire()


def _log_change(change: Change) -> None:
    level = logging.WARNING if change.sign in "!?" else logging.INFO
    _endpoints_log.log(level, "%s", change, extra={"colour": _COLOURS.get(change.sign), "fields": change.fields})


def _find_endpoints(gateway: Gateway) -> None:
    """Before taking over: know where the endpoints are, as the gateway before does. Raises RgateError."""
    until = monotonic() + FIND_SECONDS
    pause = threading.Event()
    while missing := [source for source in gateway.table.snapshot.sources.values() if source.listed is None]:
        if monotonic() >= until:
            raise RgateError(f"not taking over: {missing[0].name}: {missing[0].error or 'no list of endpoints yet'}")
        pause.wait(0.05)


def _say_ready(inheritance: InheritedSockets) -> None:
    # The gateway before has said READY=1 of the service, and systemd listens to none but the main process.
    if not inheritance.takes_over:
        notify("READY=1")
    inheritance.notify_ready()


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
    return f"rgate {VERSION} listening on {url}{everywhere} ({counted(gateway, with_endpoints=True)})"


def counted(gateway: Gateway, with_endpoints: bool = False) -> str:
    """2 routes, 1 backend"""
    counts = {"route": len(gateway.routes), "backend": len(gateway.backends)}
    if with_endpoints:
        counts["endpoint"] = sum(map(len, gateway.table.snapshot.found.values()))
    return ", ".join(f"{count} {noun if count == 1 else noun + 's'}" for noun, count in counts.items())
