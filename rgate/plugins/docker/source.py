"""DockerSource: lists the containers of an engine as instances, and watches its events."""

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
from .startup_probe import StartupProbes
from .stop_probe import StopProbes

__all__ = ["DockerAPI", "DockerSource", "Events"]

_TICK_SECONDS = 0.25  # how long a watch may take to see that it shall stop
_STOP_MARGIN_SECONDS = 2.0
_ECHO_SECONDS = (0.1, 0.3, 0.8, 1.5)
_STARTING_SECONDS = 5.0
_ENDED = frozenset(["die", "stop", "destroy"])
_STARTED = frozenset(["start", "restart"])


class Events(Protocol):
    """Events as they come; the iteration ends when the stream does."""

    def __iter__(self) -> Iterator[Mapping[str, Any]]: ...

    def close(self) -> None: ...


class DockerAPI(Protocol):
    """What a DockerSource needs of an engine. `Engine` is the real one and says what each of these does."""

    @property
    def machine(self) -> str: ...

    def containers(self, label: str) -> Sequence[Mapping[str, Any]]: ...

    def container(self, id: str) -> Mapping[str, Any] | None: ...

    def events(self, since: str) -> Events: ...

    def close(self) -> None: ...


_Arrivals: TypeAlias = "SimpleQueue[Mapping[str, Any] | Exception | None]"


class DockerSource:
    """Lists every container, running or not, that carries at least one of the label names that some backend asks for.

    So a container with a wrong value, or with one label of two, is there to be explained, while those that have nothing
    to do with the gateway never leave the engine, be they thousands; nor do their events make it list.

    A container that is told to stop is out at once, before it closes its port. When it has not closed it after `hold_seconds`
    it is a last resort (`Instance.stopping`) until it does. Should it run on, it is back two seconds
    after its stop timeout (`docker stop --time` is not known here). Engines tell of many events before their own list
    has them, or before a network is attached; so after the last event it is listed four times more, within 1.5 seconds.
    One that has just started is in as soon as its port is open.

    Two are equal that find the same: at the same `host` (None: where the environment says), for the same labels and network.
    So one goes on when the config has changed elsewhere.
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
        arrivals: StartupProbes | None = None,
        hold_seconds: float = 1.0,
        departures: StopProbes | None = None,
    ) -> None:
        self._connect = connect
        self._label_names = tuple(sorted(set(label_names)))
        self._network = network
        self._finds = (host, self._label_names, network, hold_seconds)
        self._find_own_id = own_id
        self._clock = clock
        self._arrivals = arrivals or StartupProbes(clock)
        self._departures = departures or StopProbes(hold_seconds, clock)
        # The listing thread's
        self._engine: DockerAPI | None = None
        self._own_id = ""
        self._running: frozenset[str] | None = None
        # Written by the listing thread, replaced as a whole; read by the watching thread
        self._known: frozenset[str] = frozenset()
        # Written by the watching thread; read by the listing thread
        self._stopping: dict[str, float] = {}
        # The watching thread's
        self._last_event_ns = 0
        self._new_from_ns = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DockerSource) and self._finds == other._finds

    def list(self) -> Iterable[Instance]:
        try:
            if self._engine is None:
                self._engine = self._connect()
                self._own_id = self._find_own_id()
            return self._list(self._engine)
        except Exception:
            engine, self._engine = self._engine, None  # the next one may speak another version
            if engine is not None:
                engine.close()
            raise

    def _list(self, engine: DockerAPI) -> Iterable[Instance]:
        records = {record.get("Id"): record for name in self._label_names for record in engine.containers(name)}
        containers = {container.id: container for container in map(Container.from_list, records.values())}
        shared = {container.sharing for container in containers.values()} - {""}
        others = {id: containers.get(id) or self._inspect(engine, id) for id in shared}
        vantage = NetworkContext(engine.machine, self._own_networks(engine), self._network)
        self._known = frozenset({*containers, *others, self._own_id})
        self._note_running(containers.values())
        return self._arrivals.hold(
            self._instance(container, vantage, others.get(container.sharing))
            for container in containers.values()
            if not _about_to_start(container)
        )

    def _note_running(self, containers: Iterable[Container]) -> None:
        before, running = self._running, {container.id: container for container in containers if container.running}
        self._running = frozenset(running)
        if before is None:
            return  # they run since nobody knows when
        for id in running.keys() - before:
            if running[id].health != "healthy":
                self._arrivals.started(id)

    def _instance(self, container: Container, vantage: NetworkContext, sharing: Container | None) -> Instance:
        stopping = self._as_stopping(container)
        if stopping is not container:
            running = to_instance(container, vantage, sharing, self._label_names)
            if running.address is not None and self._departures.accepts(container.id, running.address):
                return replace(running, stopping=True)
        return to_instance(stopping, vantage, sharing, self._label_names)

    def _as_stopping(self, container: Container) -> Container:
        stopping = container.running and self._stopping.get(container.id, 0.0) > self._clock()
        return replace(container, state="stopping") if stopping else container

    def _own_networks(self, engine: DockerAPI) -> frozenset[str] | None:
        own = self._inspect(engine, self._own_id) if self._own_id else None
        self._own_id = own.id if own else ""  # else a container, but none of this engine's
        return frozenset(own.networks) if own and own.mode != "host" else None

    def _inspect(self, engine: DockerAPI, id: str) -> Container | None:
        record = engine.container(id)
        return None if record is None else Container.from_inspect(record)

    def watch(self, changed: Callable[[], None], stop: threading.Event) -> None:
        resumed_ns = self._last_event_ns
        self._new_from_ns = resumed_ns or time.time_ns()
        engine = self._connect()
        try:
            # At first from a second ago, as an engine may answer before it listens. What comes twice does no harm.
            events = engine.events(_timestamp(resumed_ns + 1 if resumed_ns else time.time_ns() - 10**9))
            try:
                self._arrivals.look()
                changed()
                self._follow(engine, _arriving(events), resumed_ns, changed, stop)
            finally:
                self._arrivals.close()
                self._departures.close()
                events.close()
        finally:
            engine.close()

    def _follow(
        self, engine: DockerAPI, arrived: _Arrivals, resumed_ns: int, changed: Callable[[], None], stop: threading.Event
    ) -> None:
        echoes: deque[float] = deque()
        while not stop.is_set():
            now = self._clock()
            back = [id for id, until in self._stopping.items() if until <= now]
            for id in back:
                del self._stopping[id]
            while echoes and echoes[0] <= now:
                back.append("")
                echoes.popleft()
            self._departures.keep(self._stopping)
            if any([self._arrivals.look(), self._departures.look(), back]):
                changed()
            pause = min([now + _TICK_SECONDS, *echoes, *self._stopping.values()]) - now
            pause = max(0.0, min(pause, self._arrivals.look_in_seconds(), self._departures.look_in_seconds()))
            try:
                record = arrived.get(timeout=pause)
            except Empty:
                continue
            if record is None:
                return
            if isinstance(record, Exception):
                raise record
            event = Event.read(record)
            if event.action == "kill" and 0 < event.time_ns <= resumed_ns:
                continue  # some engines begin a little before `since`; a stop that is over must not count again
            self._last_event_ns = max(self._last_event_ns, event.time_ns)
            if self._concerns_us(event) and self._note(event, engine, changed):
                echoes = deque(self._clock() + seconds for seconds in _ECHO_SECONDS)

    def _concerns_us(self, event: Event) -> bool:
        return event.carries(self._label_names) or event.container in self._known

    def _note(self, event: Event, engine: DockerAPI, changed: Callable[[], None]) -> bool:
        """React to an event; False if nothing has changed by it."""
        if event.action == "kill":
            return self._note_kill(event, engine, changed)
        if event.action in _STARTED:
            self._stopping.pop(event.container, None)
            self._departures.ended(event.container)
            if event.action == "start" and not 0 < event.time_ns < self._new_from_ns:  # else it may have served for long
                self._arrivals.started(event.container)
        elif event.action in _ENDED:  # which the engine's list may not know yet
            self._departures.ended(event.container)
            self._stopping[event.container] = self._clock() + _STOP_MARGIN_SECONDS
        changed()
        return True

    def _note_kill(self, event: Event, engine: DockerAPI, changed: Callable[[], None]) -> bool:
        now, id = self._clock(), event.container
        sure = is_stop(event.signal)
        if sure and event.signal == SIGKILL:
            self._departures.ended(id)
        elif sure:
            self._departures.told(id)
        if sure:
            self._stopping[id] = now + _STOP_MARGIN_SECONDS
            changed()  # first this; how long it may last is found out afterwards
        try:
            record = engine.container(id) or {}
        except RgateError:
            record = {}
        if not sure and event.signal != stop_signal(record):
            return False
        self._stopping[id] = now + stop_timeout_seconds(record) + _STOP_MARGIN_SECONDS
        if not sure:
            self._departures.told(id)
            changed()
        return True


def _about_to_start(container: Container) -> bool:
    # `docker run` creates and then starts; to tell of what is in between would be noise.
    return container.state == "created" and time.time() - container.created < _STARTING_SECONDS


def _timestamp(ns: int) -> str:
    return f"{ns // 10**9}.{ns % 10**9:09d}"


def _arriving(events: Events) -> _Arrivals:
    """The events in a queue, which can be waited for with a limit; None at the end, or what the iteration raised."""
    arrived: _Arrivals = SimpleQueue()

    def pump() -> None:
        try:
            for event in events:
                arrived.put(event)
            arrived.put(None)
        except Exception as error:
            arrived.put(error)

    threading.Thread(target=pump, name="rgate-docker-events", daemon=True).start()
    return arrived
