"""Runtime: what a process keeps while its config changes. The current gateway is the only thing that a reload replaces."""

from __future__ import annotations

import gc
import logging
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING, Final, TypeAlias

from ..discovery import Discovery, EndpointQueue
from ..errors import RgateError
from ..forwarding.upstream import UpstreamPools
from ..log import loss_reasons
from ..serving.readiness import Readiness
from .resources import ResourcePool
from .worker_channel import WorkerChannel

if TYPE_CHECKING:
    from ..discovery import Snapshot
    from ..plugin.lifespan import Lifespan
    from .gateway import Gateway

__all__ = ["CONFIG_NOTICE", "Runtime", "gc_freeze", "problems_of", "refusal"]

CONFIG_NOTICE: Final = "config"  # the key of readiness.warnings
MAINTENANCE_INTERVAL_SECONDS: Final = 2.0
DRAIN_CHECK_SECONDS: Final = 0.1
MAX_DRAIN_SECONDS: Final = 3_600.0  # for the requests that a gateway still has when another one becomes current
_log = logging.getLogger("rgate.runtime")
_freezing = threading.Lock()

Serve: TypeAlias = "Callable[[Gateway], Callable[[], bool]]"


class Runtime:
    """One per process, made once and never replaced.

    current     the gateway that new requests go to; None before the first one. The only thing that a reload swaps
    upstreams   connections to endpoints
    discovery   discovery sources, running; which endpoints are excluded
    queue       requests that wait for an endpoint
    resources   objects of plugins that stay the same over reloads
    readiness   whether this process wants new traffic, and what an operator should know
    workers     the channel to the other worker processes
    listening   host and port of rgate's own server; None under another WSGI server, and until they are known
    reports     whether this process logs what concerns all worker processes; one of them does
    on_reload   what Gateway.reload() does: read the config again in every process, and return the problems

    Making one starts no thread, so the process may fork afterwards. activate(), reload(), start() and stop() exclude each
    other; all are for any thread.
    """

    def __init__(self) -> None:
        self.current: Gateway | None = None
        self.upstreams = UpstreamPools()
        self.discovery = Discovery()
        self.discovery.on_snapshot(_retire_connections_to_stopping)
        self.queue = EndpointQueue(self.discovery)
        self.resources = ResourcePool(lambda: self.current)
        self.readiness = Readiness()
        self.workers = WorkerChannel(lambda: self.current.workers if self.current is not None else None)
        self.listening: tuple[str, int] | None = None
        self.reports = True
        self.on_reload: Callable[[], str] = _cannot_reload
        self._running = False
        self._changing = threading.RLock()  # one change of the current gateway at a time
        self._lifespans: dict[Gateway, list[Lifespan]] = {}  # of every gateway that runs
        self._stopping = threading.Event()
        self._maintenance: threading.Thread | None = None
        self._drain_work = threading.Condition()
        self._draining: deque[tuple[Gateway, Callable[[], bool], float]] = deque()
        self._drainer: threading.Thread | None = None

    def start(self, gateway: Gateway) -> None:
        """Make `gateway` the current one and run it: enter its plugins' lifespans, start its sources. Returns when every source
        has been tried once. Raises PluginError if a lifespan cannot begin; then everything is undone."""
        with self._changing:
            self._stopping.clear()
            self._make_current(gateway)
            try:
                self._begin(gateway)
            except BaseException:
                self.stop()
                raise
            self._running = True
            self._maintenance = threading.Thread(target=self._maintain, name="rgate-maintenance", daemon=True)
            self._maintenance.start()

    def activate(self, gateway: Gateway, serve: Serve = lambda gateway: lambda: True) -> None:
        """Replace the current gateway by `gateway`, which build() has made for this runtime.

        If the runtime runs, the new gateway's lifespans are entered and its sources are tried before anything changes; what the
        old one has too (the same lifespan object, an equal source) goes on. Raises PluginError if a lifespan cannot begin;
        then everything is as before. `serve` sends new requests to a gateway, and returns a function that tells whether all
        requests that began before are over. The old gateway ends after the last of them, an hour later at the latest.
        """
        with self._changing:
            before = self.current
            if self._running:
                self._begin(gateway)
            self._make_current(gateway)
            is_over = serve(gateway)
            self.discovery.stop_unused()
            if before is None or before is gateway:
                return
            if self._running:
                self._drain(before, is_over)
            else:
                self.discard(before)

    def reload(self, build: Callable[[Runtime], Gateway], serve: Serve) -> str:
        """Replace the current gateway by what `build` makes of the config. Returns "", or the problems, one per line.

        When there are problems, everything is as before, and `readiness.warnings["config"]` has them. From any thread.
        """
        with self._changing:
            if self._stopping.is_set():
                return "the gateway is about to end"
            problems = problems_of(lambda: self.activate(build(self), serve))
            if problems:
                self.readiness.warnings[CONFIG_NOTICE] = refusal(problems)
            else:
                self.readiness.warnings.pop(CONFIG_NOTICE, None)
            return problems

    def stop(self) -> None:
        """End all gateways, the oldest first, and stop discovery. Their requests should be over. Never fails."""
        self._stopping.set()
        with self._changing:
            with self._drain_work:
                self._drain_work.notify()
                drainer = self._drainer
            if drainer is not None:
                drainer.join()
            if self._maintenance is not None:
                self._maintenance.join()
                self._maintenance = None
            self._running = False
            self.discovery.stop()
            if self.current is not None:
                self._end(self.current)
            self.upstreams.close()

    def discard(self, gateway: Gateway) -> None:
        """Close what only this gateway has: one that never ran, or that has ended."""
        self.resources.release(gateway)
        in_use = {*self._lifespans, *([self.current] if self.current is not None and self.current is not gateway else [])}
        self.upstreams.prune_tls_contexts({backend.tls for each in in_use for backend in each.backends.values()})

    def _make_current(self, gateway: Gateway) -> None:
        """Swap the reference, and give the shared parts the settings and backends of the new gateway."""
        server = gateway.config.server
        if gateway.tls is not None:
            gateway.tls.logs_expiry = self.reports
        self.upstreams.set_limits(server.max_response_head_bytes, server.max_response_headers)
        self.queue.configure(gateway.backends.values(), server.max_queued)
        self.discovery.activate(gateway.table)
        self.current = gateway
        self.queue.resume_all()
        gateway.update_plugin_warnings()

    def _begin(self, gateway: Gateway) -> None:
        own = self._lifespans.setdefault(gateway, [])
        try:
            for lifespan in gateway.registry.lifespans(gateway):
                if not self._has_begun(lifespan):
                    lifespan.start()
                own.append(lifespan)
            self.discovery.start(gateway.table)
        except BaseException:
            self._end(gateway)
            self.discovery.stop_unused()
            raise

    def _end(self, gateway: Gateway) -> None:
        """Leave the lifespans that no other gateway has, the last one first, and close what only this gateway has."""
        own = self._lifespans.get(gateway, [])
        while own:
            lifespan = own.pop()
            if not self._has_begun(lifespan):
                lifespan.stop()
        self._lifespans.pop(gateway, None)
        self.discard(gateway)

    def _has_begun(self, lifespan: Lifespan) -> bool:
        """Whether a gateway that runs has the same lifespan object: plugins keep some over reloads as a resource.

        A gateway that is about to run shares lifespans with the current one only, and that does not end meanwhile. So the
        thread that ends drained gateways may remove others from these lists at any time.
        """
        return any(lifespan.is_same_as(other) for lifespans in list(self._lifespans.values()) for other in lifespans)

    def _drain(self, gateway: Gateway, is_over: Callable[[], bool]) -> None:
        with self._drain_work:
            self._draining.append((gateway, is_over, monotonic() + MAX_DRAIN_SECONDS))
            if self._drainer is None:
                self._drainer = threading.Thread(target=self._end_drained, name="rgate-drain", daemon=True)
                self._drainer.start()

    def _end_drained(self) -> None:
        """End replaced gateways after their last requests, the oldest first."""
        while True:
            gateway, is_over, until = self._draining[0]
            with self._drain_work:
                while not (self._stopping.is_set() or is_over() or monotonic() >= until):
                    self._drain_work.wait(DRAIN_CHECK_SECONDS)
            self._end(gateway)
            del gateway, is_over
            with self._drain_work:
                self._draining.popleft()
                if not self._draining:
                    self._drainer = None
                    break
        gc_freeze()

    def _maintain(self) -> None:
        while not self._stopping.wait(MAINTENANCE_INTERVAL_SECONDS):
            self.run_maintenance()

    def run_maintenance(self) -> None:
        """Close connections that have been idle too long, and those to endpoints that are gone; warn of certificates that are
        about to expire, and of lost log lines."""
        gateway = self.current
        assert gateway is not None
        expiring = gateway.tls.expiry_warning(time()) if gateway.tls is not None else ""
        for name, notice in (("certificates", expiring), ("log", loss_reasons())):
            if notice:
                self.readiness.warnings[name] = notice
            else:
                self.readiness.warnings.pop(name, None)
        found = gateway.table.snapshot.found
        self.upstreams.prune({(e.address, gateway.backends[name].tls) for name, endpoints in found.items() for e in endpoints})


def problems_of(act: Callable[[], object]) -> str:
    """Call `act`, and return why it failed, one problem per line, or "". An exception that is a defect is logged too."""
    try:
        act()
    except RgateError as error:
        return str(error)
    except Exception as error:
        _log.exception("the config cannot be used")
        return f"{type(error).__name__}: {error}"
    return ""


def refusal(problems: str, partly: bool = False) -> str:
    """The notice about a config that is refused, or, if `partly`, by some workers only."""
    return f"active, but not in every worker: {problems}" if partly else f"refused, the config before stays active: {problems}"


def gc_freeze() -> None:
    """Collect garbage, and move all other objects to the collector's permanent generation, which it does not scan while
    requests wait.

    What was frozen before is scanned again, because a gateway that has ended is garbage. A worker process thereby gets its
    own copies of memory that it has shared with the others (some 15 MB).
    """
    with _freezing:  # else garbage that one thread has not collected yet is frozen for good by another
        gc.unfreeze()
        gc.collect()
        gc.freeze()


def _retire_connections_to_stopping(snapshot: Snapshot) -> None:
    """Use fresh connections only for endpoints that are stopping: they may close idle ones at any moment."""
    for endpoints in snapshot.found.values():
        for endpoint in endpoints:
            state = endpoint.state
            if endpoint.stopping != state.stopping:
                state.stopping = endpoint.stopping
                if state.upstream is not None:
                    pool = state.upstream.pool
                    (pool.close_idle if state.stopping else pool.reopen)()


def _cannot_reload() -> str:
    raise RgateError("this gateway cannot read its config again; restart it")
