"""A gateway in the foreground: listening, telling what it finds, until a signal ends it."""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .errors import RgateError
from .serving.server import Server, listen, listen_for_workers
from .serving.supervisor import Supervisor
from .version import VERSION

if TYPE_CHECKING:
    from .console import Console
    from .discovery import Change
    from .gateway import Gateway

__all__ = ["CannotListen", "log_to_stderr", "serve", "until_signalled"]

_log = logging.getLogger("rgate.foreground")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class CannotListen(RgateError):
    """The address cannot be listened at; the message says why and what to do."""


def serve(gateway: Gateway, console: Console, hints: Sequence[str] = (), at_once: Callable[[], object] = lambda: None) -> int:
    """Serve `gateway` until SIGTERM or SIGINT, then drain; a second signal calls `at_once` and ends the process.

    Tells at which URL, what leads where, then `hints` ({url} in them is filled in), then every change that discovery
    sees. With several workers each is a process of its own, and the first one tells. Main thread only. Returns the exit
    code; raises CannotListen before anything has been started.
    """
    config = gateway.config.server
    port = config.port
    listeners: list[socket.socket] = []
    redirecting: socket.socket | None = None  # one for all workers
    try:
        listeners = listen_for_workers(config.host, port, config.processes)
        if config.tls is not None and config.tls.redirect_port is not None:
            port = config.tls.redirect_port
            redirecting = listen(config.host, port)
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise CannotListen(_why_not(error, config.host, port)) from error
    try:
        if len(listeners) == 1:
            _serve(gateway, console, listeners[0], redirecting, hints, at_once)
            console.line("stopped")
            return 0

        def work(index: int, first_time: bool, listener: socket.socket, channel: socket.socket) -> int:
            telling = console if index == 0 else None
            try:
                shown = hints if first_time else None
                _serve(gateway, telling, listener, redirecting, shown, at_once, (signal.SIGTERM,), channel)
            except RgateError as error:
                _log.error("%s", error)
                return 2
            return 0

        code = Supervisor(work, listeners, config.drain_seconds).run()
        console.line("stopped")
        return code
    finally:
        for opened in (*listeners, redirecting):
            if opened is not None:
                opened.close()


def _serve(
    gateway: Gateway,
    console: Console | None,
    listener: socket.socket,
    redirecting: socket.socket | None,
    hints: Sequence[str] | None,
    at_once: Callable[[], object],
    signals: Sequence[signal.Signals] = SIGNALS,
    channel: socket.socket | None = None,
) -> None:
    """Serve in this process.

    `console` is None for a worker that tells nothing, `hints` are None for one that tells changes only; `channel` leads to
    the supervisor.
    """
    config = gateway.config.server
    server = Server(gateway.app, config, listener, gateway.tls, redirecting, gateway.condition)
    telling = threading.Lock()
    begun = False

    def tell(changes: Sequence[Change]) -> None:
        with telling:
            for change in changes if begun else ():
                if console:
                    console.change(change)

    def stop() -> None:
        server.stop()  # first: telling may fail when nobody reads any more
        if console:
            console.line(f"stopping, with {config.drain_seconds:g} s for what is in flight; a second signal ends at once")

    gateway.table.on_change(tell)
    try:
        with until_signalled(stop, at_once, signals), gateway.running():
            if channel is not None:
                gateway.siblings.connect(channel, on_lost=server.stop)
            with telling:  # so that no change is told before the table that it changes
                if console and hints is not None:
                    console.line(start_line(gateway, server.url), "bold")
                    if server.redirect_port is not None:
                        console.line(f"and plain HTTP on port {server.redirect_port}, answered with where https is")
                    console.routes(gateway)
                    for hint in hints:
                        console.line(hint.replace("{url}", server.url))
                begun = True
            # What start-up has made stays; the collector need not go through all of it again while requests wait.
            gc.collect()
            gc.freeze()
            server.run()
    finally:
        server.server_close()


def start_line(gateway: Gateway, url: str) -> str:
    """rgate 0.1.0 listening on http://127.0.0.1:8080 (2 routes, 2 backends, 3 endpoints)"""
    return f"rgate {VERSION} listening on {url} ({counted(gateway, with_endpoints=True)})"


def counted(gateway: Gateway, with_endpoints: bool = False) -> str:
    """2 routes, 1 backend"""
    counts = {"route": len(gateway.routes), "backend": len(gateway.backends)}
    if with_endpoints:
        counts["endpoint"] = sum(map(len, gateway.table.snapshot.found.values()))
    return ", ".join(f"{count} {noun if count == 1 else noun + 's'}" for noun, count in counts.items())


@contextmanager
def until_signalled(
    stop: Callable[[], object], at_once: Callable[[], object], signals: Sequence[signal.Signals] = SIGNALS
) -> Iterator[None]:
    """While inside, the first of `signals` calls `stop` and the second `at_once`, which the process does not survive.

    Both are called in a thread of their own: a signal handler must not take a lock that the interrupted code may hold.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def watch() -> None:
        for act in (stop, at_once):
            while (number := receiver.recv(1)) and number[0] not in signals:
                pass
            if not number:
                return
            act()
        os._exit(128 + number[0])

    watcher = threading.Thread(target=watch, name="rgate-signals", daemon=True)
    watcher.start()
    before = {number: signal.signal(number, lambda *_: None) for number in signals}
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


def log_to_stderr(level: str) -> None:
    """Send rgate's log, from `level` on, and warnings of others to stderr. Changes of discovery are told otherwise."""
    log = logging.StreamHandler(sys.stderr)
    log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addFilter(lambda record: record.name != "rgate.discovery.changes")
    logging.basicConfig(level=logging.WARNING, handlers=[log])
    logging.getLogger("rgate").setLevel(level.upper())
    sys.unraisablehook = _unraisable


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    if isinstance(unraisable.exc_value, UnicodeDecodeError) and isinstance(unraisable.object, bytes):
        # The ssl module, about a client that has asked for a host by a name that is no text. Nobody wants a line for each.
        _log.debug("a TLS client asked for %r", unraisable.object)
    else:
        sys.__unraisablehook__(unraisable)


def _why_not(error: OSError, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror):
        return f"cannot listen on {host!r}: no such host; give an address of this machine with --host"
    way_out = {
        errno.EADDRINUSE: "the port is taken; choose another with --port (0 takes a free one)",
        errno.EACCES: "no permission; choose a port from 1024 on with --port",
        errno.EADDRNOTAVAIL: "this is no address of this machine; choose another with --host",
    }.get(error.errno or 0, error.strerror or str(error))
    return f"cannot listen on {host} port {port}: {way_out}"
