"""DockerSource: lists the containers of a Docker engine as instances, and watches its events."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from signal import SIGKILL
from typing import Any, Protocol, TypeAlias

from rgate import Instance, RgateError

from .container import Container
from .events import Event, is_stop, stop_signal, stop_timeout_seconds
from .mapping import NetworkContext, to_instance
from .probes import StartupProbes, StopProbes

__all__ = ["DockerAPI", "DockerSource", "Events"]

_TICK_SECONDS = 0.25  # how long a watch may take to notice that it must stop
_STOP_MARGIN_SECONDS = 2.0
_RELIST_DELAYS = (0.1, 0.3, 0.8, 1.5)
_STARTING_SECONDS = 5.0
_ENDED = frozenset(["die", "stop", "destroy"])
_STARTED = frozenset(["start", "restart"])


class Events(Protocol):
    """A stream of events; the iteration ends when the engine ends the stream."""

    def __iter__(self) -> Iterator[Mapping[str, Any]]: ...

    def close(self) -> None: ...


class DockerAPI(Protocol):
    """The interface of an engine that DockerSource uses. `Engine` implements it and documents each method."""

    @property
    def remote_host(self) -> str: ...

    def containers(self, label: str) -> Sequence[Mapping[str, Any]]: ...

    def container(self, id: str) -> Mapping[str, Any] | None: ...

    def events(self, since: str) -> Events: ...

    def close(self) -> None: ...


_EventQueue: TypeAlias = "SimpleQueue[Mapping[str, Any] | Exception | None]"


class DockerSource:
    """Lists every container, running or not, that has at least one of the labels that some backend matches on.

    So a container with a wrong value, or with one of two labels, is listed and can be explained, while containers that have
    nothing to do with the gateway never leave the engine, and their events never cause a listing.

    A container that is told to stop is taken out at once, before it closes its port. If the port is still open after
    `hold_seconds`, the container is a last resort (`Instance.stopping`) until it closes. If it survives, it is used again two
    seconds after its stop timeout (that of `docker stop --time` is not known here). A container that has just started is used
    as soon as its port is open. Engines report many events before their own list has the change, or before a network is
    attached; so after the last event the containers are listed four more times within 1.5 seconds.

    Two sources are equal if they find the same containers: at the same `host` (None: from the environment), by the same labels
    and network. An equal source keeps running when the config changes.

    The discovery loop calls `list` in its listing thread and `watch` in its watching thread; a third thread,
    rgate-docker-events, only reads the event stream. There is no lock: each field below has one writing thread and is read as a
    whole.
    """

    name = "docker"

    def __init__(
        self,
        connect: Callable[[], DockerAPI],
        label_names: Iterable[str],
        network: str = "",
        host: str | None = None,
        own_id: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.monotonic,
        startup_probes: StartupProbes | None = None,
        hold_seconds: float = 1.0,
        stop_probes: StopProbes | None = None,
    ) -> None:
        self._connect = connect
        self._label_names = tuple(sorted(set(label_names)))
        self._network = network
        self._identity = (host, self._label_names, network, hold_seconds)
        self._find_own_id = own_id
        self._clock = clock
        self._startup_probes = startup_probes or StartupProbes(clock)
        self._stop_probes = stop_probes or StopProbes(hold_seconds, clock)
        # Used by the listing thread
        self._engine: DockerAPI | None = None
        self._own_id = ""
        self._running: frozenset[str] | None = None
        # Written by the listing thread, replaced as a whole; read by the watching thread
        self._known: frozenset[str] = frozenset()
        # Written by the watching thread; read by the listing thread
        self._stopping: dict[str, float] = {}
        # Used by the watching thread
        self._last_event_ns = 0
        self._new_from_ns = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DockerSource) and self._identity == other._identity

    def list(self) -> Iterable[Instance]:
        try:
            if self._engine is None:
                self._engine = self._connect()
                self._own_id = self._find_own_id()
            return self._list(self._engine)
        except Exception:
            engine, self._engine = self._engine, None  # the next engine may speak another API version
            if engine is not None:
                engine.close()
            raise

    def _list(self, engine: DockerAPI) -> Iterable[Instance]:
        records = {record.get("Id"): record for name in self._label_names for record in engine.containers(name)}
        containers = {container.id: container for container in map(Container.from_list, records.values())}
        shared = {container.network_container_id for container in containers.values()} - {""}
        owners = {id: containers.get(id) or self._inspect(engine, id) for id in shared}
        context = NetworkContext(engine.remote_host, self._own_networks(engine), self._network)
        self._known = frozenset({*containers, *owners, self._own_id})
        self._update_running(containers.values())
        return self._startup_probes.withhold_unready(
            self._instance(container, context, owners.get(container.network_container_id))
            for container in containers.values()
            if not _about_to_start(container)
        )

    def _update_running(self, containers: Iterable[Container]) -> None:
        before, running = self._running, {container.id: container for container in containers if container.running}
        self._running = frozenset(running)
        if before is None:
            return  # the first list: these containers may have been running for long
        for id in running.keys() - before:
            if running[id].health != "healthy":
                self._startup_probes.started(id)

    def _instance(self, container: Container, context: NetworkContext, owner: Container | None) -> Instance:
        stopping = self._as_stopping(container)
        if stopping is not container:
            running = to_instance(container, context, owner, self._label_names)
            if running.address is not None and self._stop_probes.accepts(container.id, running.address):
                return replace(running, stopping=True)
        return to_instance(stopping, context, owner, self._label_names)

    def _as_stopping(self, container: Container) -> Container:
        stopping = container.running and self._stopping.get(container.id, 0.0) > self._clock()
        return replace(container, state="stopping") if stopping else container

    def _own_networks(self, engine: DockerAPI) -> frozenset[str] | None:
        own = self._inspect(engine, self._own_id) if self._own_id else None
        self._own_id = own.id if own else ""  # "": no container, or one of another engine
        return frozenset(own.networks) if own and own.network_mode != "host" else None

    def _inspect(self, engine: DockerAPI, id: str) -> Container | None:
        record = engine.container(id)
        return None if record is None else Container.from_inspect(record)

    def watch(self, changed: Callable[[], None], stop: threading.Event) -> None:
        resumed_ns = self._last_event_ns
        self._new_from_ns = resumed_ns or time.time_ns()
        engine = self._connect()
        try:
            # First from a second ago, because an engine may answer before it listens. Receiving an event twice does no harm.
            events = engine.events(_timestamp(resumed_ns + 1 if resumed_ns else time.time_ns() - 10**9))
            try:
                self._startup_probes.poll()
                changed()
                self._follow(engine, _event_queue(events), resumed_ns, changed, stop)
            finally:
                self._startup_probes.close()
                self._stop_probes.close()
                events.close()
        finally:
            engine.close()

    def _follow(
        self, engine: DockerAPI, queue: _EventQueue, resumed_ns: int, changed: Callable[[], None], stop: threading.Event
    ) -> None:
        relists: deque[float] = deque()
        while not stop.is_set():
            now = self._clock()
            back = [id for id, until in self._stopping.items() if until <= now]
            for id in back:
                del self._stopping[id]
            while relists and relists[0] <= now:
                back.append("")
                relists.popleft()
            self._stop_probes.keep_only(self._stopping)
            if any([self._startup_probes.poll(), self._stop_probes.poll(), back]):
                changed()
            pause = min([now + _TICK_SECONDS, *relists, *self._stopping.values()]) - now
            pause = max(0.0, min(pause, self._startup_probes.next_poll_in(), self._stop_probes.next_poll_in()))
            try:
                record = queue.get(timeout=pause)
            except Empty:
                continue
            if record is None:
                return
            if isinstance(record, Exception):
                raise record
            event = Event.read(record)
            if event.action == "kill" and 0 < event.time_ns <= resumed_ns:
                continue  # some engines start a little before `since`; a stop that is over must not be handled again
            self._last_event_ns = max(self._last_event_ns, event.time_ns)
            if self._is_relevant(event) and self._on_event(event, engine, changed):
                relists = deque(self._clock() + seconds for seconds in _RELIST_DELAYS)

    def _is_relevant(self, event: Event) -> bool:
        return event.has_any_label(self._label_names) or event.container in self._known

    def _on_event(self, event: Event, engine: DockerAPI, changed: Callable[[], None]) -> bool:
        """Handle an event. False if it changes nothing."""
        if event.action == "kill":
            return self._on_kill(event, engine, changed)
        if event.action in _STARTED:
            self._stopping.pop(event.container, None)
            self._stop_probes.ended(event.container)
            if event.action == "start" and not 0 < event.time_ns < self._new_from_ns:  # else it may have been serving for long
                self._startup_probes.started(event.container)
        elif event.action in _ENDED:  # the engine's list may not have it yet
            self._stop_probes.ended(event.container)
            self._stopping[event.container] = self._clock() + _STOP_MARGIN_SECONDS
        changed()
        return True

    def _on_kill(self, event: Event, engine: DockerAPI, changed: Callable[[], None]) -> bool:
        now, id = self._clock(), event.container
        is_certain = is_stop(event.signal)
        if is_certain and event.signal == SIGKILL:
            self._stop_probes.ended(id)
        elif is_certain:
            self._stop_probes.stopping(id)
        if is_certain:
            self._stopping[id] = now + _STOP_MARGIN_SECONDS
            changed()  # before the request below, which only finds out how long the stop may last
        try:
            record = engine.container(id) or {}
        except RgateError:
            record = {}
        if not is_certain and event.signal != stop_signal(record):
            return False
        self._stopping[id] = now + stop_timeout_seconds(record) + _STOP_MARGIN_SECONDS
        if not is_certain:
            self._stop_probes.stopping(id)
            changed()
        return True


def _about_to_start(container: Container) -> bool:
    # `docker run` creates a container and then starts it; reporting the state in between would be noise.
    return container.state == "created" and time.time() - container.created < _STARTING_SECONDS


def _timestamp(ns: int) -> str:
    return f"{ns // 10**9}.{ns % 10**9:09d}"


def _event_queue(events: Events) -> _EventQueue:
    """A queue of the events, so that they can be awaited with a timeout; then None, or the exception that ended the iteration."""
    queue: _EventQueue = SimpleQueue()

    def pump() -> None:
        try:
            for event in events:
                queue.put(event)
            queue.put(None)
        except Exception as error:
            queue.put(error)

    threading.Thread(target=pump, name="rgate-docker-events", daemon=True).start()
    return queue
