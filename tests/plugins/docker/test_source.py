"""Listing and watching with a scripted engine and a clock of the test's own: events, stops, relists."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

import pytest

from rgate import Instance, RgateError
from rgate.plugins.docker.probes import NOT_OPEN, Outcome, StartupProbes, StopProbes
from rgate.plugins.docker.source import DockerSource

from ...support.waiting import DEADLINE_SECONDS, eventually


def record(id: str, state: str = "running", **more: Any) -> dict[str, Any]:
    return {
        "Id": id,
        "Names": [f"/name-of-{id}"],
        "State": state,
        "Labels": {"app": id},
        "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}],
        "HostConfig": {"NetworkMode": "bridge"},
        "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2"}}},
        **more,
    }


def event(action: str, id: str = "a", time_ns: int = 0, **attributes: str | None) -> dict[str, Any]:
    attributes.setdefault("app", id)
    return {"Type": "container", "Action": action, "Actor": {"ID": id, "Attributes": attributes}, "timeNano": time_ns}


def network_event(action: str, id: str) -> dict[str, Any]:
    return {"Type": "network", "Action": action, "Actor": {"ID": "n", "Attributes": {"container": id, "name": "front"}}}


class Script:
    """An engine that has what the test gives it. Its events are those that the test puts into `events_queue`; None ends them."""

    remote_host = ""

    def __init__(self) -> None:
        self.listed: dict[str, list[dict[str, Any]]] = {"app": []}
        self.inspected: dict[str, dict[str, Any]] = {}
        self.error: Exception | None = None
        self.asked: list[str] = []
        self.since: list[str] = []
        self.connections = 0
        self.closed = 0
        self.events_queue: SimpleQueue[dict[str, Any] | Exception | None] = SimpleQueue()

    def connect(self) -> Script:
        self.connections += 1
        return self

    def containers(self, label: str) -> Sequence[Mapping[str, Any]]:
        self.asked.append(label)
        if self.error:
            raise self.error
        return self.listed.get(label, [])

    def container(self, id: str) -> Mapping[str, Any] | None:
        self.asked.append(id)
        if self.error:
            raise self.error
        return self.inspected.get(id)

    def events(self, since: str) -> Script:
        self.since.append(since)
        return self

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        while (each := self.events_queue.get()) is not None:
            if isinstance(each, Exception):
                raise each
            yield each

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def script() -> Script:
    return Script()


class TestList:
    def listed(self, script: Script, *labels: str, **options: Any) -> dict[str, Instance]:
        source = DockerSource(script.connect, labels or ("app",), **options)
        return {instance.id: instance for instance in source.list()}

    def test_list_asks_once_for_each_label_name_and_joins(self, script: Script) -> None:
        both = record("both")
        script.listed = {"app": [both, record("one")], "env": [both, record("two", state="exited")]}
        found = self.listed(script, "env", "app", "env")
        assert script.asked == ["app", "env"], "no inspecting where the list says enough"
        assert sorted(found) == ["both", "one", "two"]
        assert str(found["one"].address) == "http://127.0.0.1:8080"
        assert found["two"].reason == "stopped or stopping"

    def test_list_again_uses_the_same_connection(self, script: Script) -> None:
        source = DockerSource(script.connect, ["app"])
        source.list()
        source.list()
        assert (script.connections, script.closed) == (1, 0)

    def test_list_that_fails_is_raised_and_the_next_connects_anew(self, script: Script) -> None:
        source = DockerSource(script.connect, ["app"])
        source.list()
        script.error = RgateError("away")
        with pytest.raises(RgateError, match="away"):
            source.list()
        assert script.closed == 1
        script.error = None
        source.list()
        assert script.connections == 2

    def test_list_without_a_connection_is_raised_and_tried_again(self) -> None:
        attempts: list[int] = []

        def refused() -> Script:
            attempts.append(1)
            raise RgateError("nothing listens there")

        source = DockerSource(refused, ["app"])
        for _ in range(2):
            with pytest.raises(RgateError, match="nothing listens there"):
                source.list()
        assert len(attempts) == 2

    def test_list_looks_up_the_container_whose_network_is_used_once(self, script: Script) -> None:
        guests = [record(id, HostConfig={"NetworkMode": "container:owner"}, Ports=[]) for id in ("a", "b")]
        script.listed = {"app": guests}
        ports = {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "9090"}]}
        script.inspected = {"owner": {"Id": "owner", "State": {"Status": "running"}, "NetworkSettings": {"Ports": ports}}}
        found = self.listed(script)
        assert script.asked == ["app", "owner"]
        assert {str(instance.address) for instance in found.values()} == {"http://127.0.0.1:9090"}

    def test_list_does_not_look_up_an_owner_that_is_listed(self, script: Script) -> None:
        script.listed = {"app": [record("owner"), record("a", HostConfig={"NetworkMode": "container:owner"}, Ports=[])]}
        assert str(self.listed(script)["a"].address) == "http://127.0.0.1:8080"
        assert script.asked == ["app"]

    def test_list_in_a_container_uses_its_networks(self, script: Script) -> None:
        script.listed = {"app": [record("a")]}
        networks = {"bridge": {"IPAddress": "172.17.0.9"}}
        script.inspected = {"me": {"Id": "me", "NetworkSettings": {"Networks": networks}}}
        assert str(self.listed(script, own_id=lambda: "me")["a"].address) == "http://172.17.0.2:80"

    def test_list_in_a_container_on_the_hosts_network_uses_published_ports(self, script: Script) -> None:
        script.listed = {"app": [record("a")]}
        script.inspected = {"me": {"Id": "me", "HostConfig": {"NetworkMode": "host"}}}
        assert str(self.listed(script, own_id=lambda: "me")["a"].address) == "http://127.0.0.1:8080"

    def test_list_in_a_container_of_another_engine_uses_published_ports_and_asks_once(self, script: Script) -> None:
        script.listed = {"app": [record("a")]}
        source = DockerSource(script.connect, ["app"], own_id=lambda: "elsewhere")
        for _ in range(2):
            (instance,) = source.list()
            assert str(instance.address) == "http://127.0.0.1:8080"
        assert script.asked == ["app", "elsewhere", "app"]

    def test_list_notes_unknown_labels_but_those_that_backends_ask_for(self, script: Script) -> None:
        script.listed = {"rgate.test": [record("a", Labels={"rgate.test": "x", "rgate.prot": "8000"})]}
        assert self.listed(script, "rgate.test")["a"].notes == ("unknown label rgate.prot; did you mean rgate.port?",)

    def test_list_takes_the_configured_network(self, script: Script) -> None:
        script.listed = {"app": [record("a")]}
        assert str(self.listed(script, network="bridge")["a"].address) == "http://172.17.0.2:80"

    def test_list_leaves_out_what_is_about_to_be_started(self, script: Script) -> None:
        now = int(time.time())
        script.listed = {"app": [record("new", "created", Created=now), record("old", "created", Created=now - 60)]}
        assert {id: instance.reason for id, instance in self.listed(script).items()} == {"old": "not started"}


class ServingOn:
    """Connections to a container that was told to stop."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def outcome(self) -> Outcome:
        return Outcome.OPEN if self.watch.serves_on else Outcome.REFUSED


class Watch:
    """A watch that runs, one event at a time; its clock stands until the test moves it."""

    def __init__(self, script: Script, *labels: str) -> None:
        self.now = 1_000.0
        self.script = script
        self.ports = Outcome.OPEN
        self.serves_on = False

        def clock() -> float:
            return self.now

        self.startup_probes = StartupProbes(clock, lambda _: self)
        self.source = DockerSource(
            script.connect,
            labels or ("app",),
            clock=clock,
            startup_probes=self.startup_probes,
            stop_probes=StopProbes(1.0, clock, lambda _: ServingOn(self)),
        )
        self.stop = threading.Event()
        self.warnings = 0
        self.error: Exception | None = None
        self._noticed = threading.Condition()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        try:
            self.source.watch(self._changed, self.stop)
        except Exception as error:
            self.error = error
        with self._noticed:
            self._noticed.notify_all()

    def _changed(self) -> None:
        with self._noticed:
            self.warnings += 1
            self._noticed.notify_all()

    def outcome(self) -> Outcome:
        """The outcome of connections to a container that has just started."""
        return self.ports

    def start(self) -> None:
        self._thread.start()
        self.expect(1)

    def expect(self, warnings: int) -> None:
        """So many warnings in all, and the watch is through with every event before."""
        with self._noticed:
            reached = self._noticed.wait_for(lambda: self.warnings >= warnings, DEADLINE_SECONDS)
        assert reached, f"{self.warnings} warnings instead of {warnings}"
        assert self.warnings == warnings

    def after(self, seconds: float, warnings: int) -> None:
        """Let time pass; so many warnings come of it."""
        before = self.warnings
        self.now += seconds
        self.settle()
        self.expect(before + warnings)

    def tell(self, told: dict[str, Any], warnings: int = 1) -> None:
        """One event, which is worth so many warnings."""
        before = self.warnings
        self.script.events_queue.put(told)
        self.settle()
        self.expect(before + warnings)

    def settle(self) -> None:
        """The watch is through with everything: it has asked twice about an event that changes nothing."""
        for _ in range(2):
            asked = len(self.script.asked)
            self.script.events_queue.put(event("kill", "b", signal="1"))
            eventually(lambda: len(self.script.asked) > asked, "the watch goes on")  # noqa: B023

    @property
    def instance(self) -> Instance:
        return next(instance for instance in self.source.list() if instance.id == "a")

    @property
    def reason(self) -> str | None:
        return self.instance.reason

    def join(self) -> None:
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive(), "the watch does not end"

    def end(self) -> None:
        self.stop.set()
        self.script.events_queue.put(None)
        self.join()


@pytest.fixture
def watch(script: Script) -> Iterator[Watch]:
    script.listed = {"app": [record("a"), record("b")]}
    script.inspected = {"a": {"Config": {"StopTimeout": 4}}, "b": {"Config": {}}}
    watching = Watch(script)
    watching.source.list()
    watching.start()
    yield watching
    watching.end()


class TestWatch:
    @pytest.mark.parametrize("action", ["start", "die", "pause", "unpause", "rename", "destroy", "health_status: unhealthy"])
    def test_event_of_ours_is_a_notice(self, watch: Watch, action: str) -> None:
        watch.tell(event(action))

    def test_event_of_a_container_we_have_nothing_to_do_with_is_none(self, watch: Watch) -> None:
        watch.tell({"Type": "container", "Action": "start", "Actor": {"ID": "z", "Attributes": {"other": "label"}}}, warnings=0)

    def test_event_of_a_new_container_with_our_label_is_a_notice(self, watch: Watch) -> None:
        watch.tell(event("start", "new"))

    def test_event_of_a_network_counts_for_containers_that_are_listed(self, watch: Watch) -> None:
        watch.tell(network_event("connect", "a"))
        watch.tell(network_event("disconnect", "z"), warnings=0)

    def test_event_is_followed_by_four_more_looks(self, watch: Watch) -> None:
        watch.tell(event("start"))
        for pause in (0.1, 0.2, 0.5, 0.7):
            watch.after(pause, 1)
        watch.after(60.0, 0)

    def test_another_event_begins_the_looks_anew(self, watch: Watch) -> None:
        watch.tell(event("start"))
        watch.after(0.1, 1)
        watch.tell(event("start", "b"))
        watch.after(0.1, 1)
        watch.after(0.2, 1)

    def test_stream_that_ends_ends_the_watch_quietly(self, watch: Watch) -> None:
        watch.script.events_queue.put(None)
        watch.join()
        assert watch.error is None

    def test_stream_that_fails_is_raised(self, watch: Watch) -> None:
        watch.script.events_queue.put(RgateError("garbage"))
        watch.join()
        assert str(watch.error) == "garbage"

    def test_stop_ends_the_watch_and_closes_what_it_opened(self, watch: Watch) -> None:
        closed = watch.script.closed
        watch.stop.set()
        watch.join()
        assert watch.script.closed == closed + 2, "the stream, and its connection"

    def test_watch_begins_a_second_ago_and_goes_on_where_it_was(self, watch: Watch) -> None:
        assert 0 <= time.time() - float(watch.script.since[0]) - 1 < DEADLINE_SECONDS
        watch.tell(event("start", time_ns=1_700_000_000_000_000_001))
        watch.script.events_queue.put(None)
        watch.join()
        again = threading.Event()
        watch.script.events_queue.put(None)
        watch.source.watch(lambda: None, again)
        assert watch.script.since[1] == "1700000000.000000002"


class TestStopping:
    @pytest.mark.parametrize("signal", ["15", "9", "2", "3", "SIGTERM", "kill", None])
    def test_container_told_to_stop_is_out_at_once(self, watch: Watch, signal: str | None) -> None:
        watch.tell(event("kill", signal=signal))
        assert watch.reason == "stopped or stopping"

    @pytest.mark.parametrize("signal", ["1", "10", "28", "SIGHUP"])
    def test_container_told_something_else_stays(self, watch: Watch, signal: str) -> None:
        watch.tell(event("kill", signal=signal), warnings=0)
        assert watch.reason is None

    def test_container_told_to_stop_by_its_own_signal_is_out(self, watch: Watch) -> None:
        watch.script.inspected["a"] = {"Config": {"StopSignal": "SIGWINCH"}}
        watch.tell(event("kill", signal="28"))
        assert watch.reason == "stopped or stopping"

    def test_container_that_runs_on_is_back_two_seconds_after_its_stop_timeout(self, watch: Watch) -> None:
        watch.tell(event("kill", signal="15"))
        watch.after(1.5, 1)  # all relists are due
        watch.after(4.4, 0)
        assert watch.reason == "stopped or stopping"
        watch.after(0.2, 1)
        assert watch.reason is None

    def test_container_that_serves_on_although_it_is_told_to_stop_is_a_last_resort(self, watch: Watch) -> None:
        watch.serves_on = True
        watch.tell(event("kill", signal="15"))
        assert (watch.instance.address, watch.instance.stopping) == (None, False)
        watch.after(1.6, 1)  # the relists
        watch.after(0.2, 1)
        assert watch.instance.address is not None and watch.instance.stopping
        watch.tell(event("die"))
        assert (watch.instance.address, watch.reason) == (None, "stopped or stopping")

    def test_container_that_is_killed_is_no_last_resort(self, watch: Watch) -> None:
        watch.serves_on = True
        watch.tell(event("kill", signal="15"))
        assert watch.instance.address is None
        watch.after(1.6, 1)
        watch.after(0.2, 1)
        watch.tell(event("kill", signal="9"))
        assert watch.instance.address is None

    def test_container_that_cannot_be_inspected_has_ten_seconds(self, watch: Watch) -> None:
        del watch.script.inspected["a"]
        watch.tell(event("kill", signal="15"))
        watch.after(1.5, 1)
        watch.after(10.4, 0)
        watch.after(0.2, 1)
        assert watch.reason is None

    def test_engine_that_fails_meanwhile_does_not_break_the_watch(self, watch: Watch) -> None:
        watch.script.error = RgateError("away")
        watch.tell(event("kill", signal="15"))
        watch.tell(event("kill", signal="28"), warnings=0)
        watch.script.error = None
        assert watch.reason == "stopped or stopping"

    @pytest.mark.parametrize("action", ["start", "restart"])
    def test_container_that_starts_again_is_no_longer_stopping(self, watch: Watch, action: str) -> None:
        watch.tell(event("kill", signal="15"))
        watch.tell(event("die"))
        assert watch.reason == "stopped or stopping"
        watch.tell(event(action))
        assert watch.reason != "stopped or stopping"

    def test_container_that_has_died_is_out_though_the_engine_still_lists_it(self, watch: Watch) -> None:
        watch.tell(event("die"))
        assert watch.reason == "stopped or stopping"

    def test_stop_of_the_past_that_an_engine_tells_again_does_not_count_again(self, watch: Watch) -> None:
        watch.tell(event("kill", signal="15", time_ns=5_000))
        watch.after(60.0, 1)
        assert watch.reason is None
        watch.script.events_queue.put(None)
        watch.join()
        for told in (event("kill", signal="15", time_ns=5_000), None):
            watch.script.events_queue.put(told)
        watch.source.watch(lambda: None, threading.Event())
        assert watch.reason is None


class TestStarting:
    def test_container_that_has_started_is_in_once_its_port_is_open(self, watch: Watch) -> None:
        watch.ports = Outcome.UNCLEAR
        watch.tell(event("start"))
        assert watch.reason == NOT_OPEN
        watch.after(1.5, 1)  # the relists
        assert watch.reason == NOT_OPEN
        watch.after(0.2, 0)
        watch.ports = Outcome.OPEN
        watch.after(0.2, 1)
        assert watch.reason is None

    def test_container_whose_connections_are_dropped_is_in_after_ten_seconds_with_a_note(self, watch: Watch) -> None:
        watch.ports = Outcome.UNCLEAR
        watch.tell(event("start"))
        watch.after(1.5, 1)
        assert watch.reason == NOT_OPEN
        watch.after(8.4, 0)
        assert (watch.reason, watch.instance.notes) == (NOT_OPEN, ())
        watch.after(0.2, 1)
        assert watch.reason is None
        (note,) = watch.instance.notes
        assert note == (
            "in its first 10 s no connection to 127.0.0.1:8080 stayed open; if its service uses another port, set rgate.port"
        )
        watch.ports = Outcome.OPEN
        watch.tell(event("start"))
        watch.after(1.5, 1)
        assert watch.instance.notes == (), "it has started again"

    @pytest.mark.parametrize(
        ("labels", "hint"),
        [({"rgate.port": "80"}, "is rgate.port=80 right?"), ({}, "if its service uses another port, set rgate.port")],
    )
    def test_container_whose_port_refuses_stays_out_until_it_is_open(
        self, watch: Watch, labels: dict[str, str], hint: str
    ) -> None:
        watch.script.listed = {"app": [record("a", Labels={"app": "a", **labels}), record("b")]}
        watch.ports = Outcome.REFUSED
        watch.tell(event("start"))
        watch.after(1.5, 1)
        assert watch.reason == NOT_OPEN
        watch.after(8.4, 0)
        assert watch.reason == NOT_OPEN
        watch.after(0.2, 1)
        assert watch.reason == f"nothing listens at 127.0.0.1:8080; {hint}"
        watch.after(600.0, 0)
        assert watch.reason == f"nothing listens at 127.0.0.1:8080; {hint}"
        watch.ports = Outcome.OPEN
        watch.after(1.1, 0)  # the next trial is made
        watch.after(0.2, 1)
        assert (watch.reason, watch.instance.notes) == (None, ())

    def test_container_that_ends_while_its_port_refuses_is_tried_no_more(self, watch: Watch) -> None:
        watch.ports = Outcome.REFUSED
        watch.tell(event("start"))
        watch.after(1.5, 1)
        assert watch.reason == NOT_OPEN
        watch.settle()  # a trial is made
        watch.after(9.0, 1)
        assert watch.reason == "nothing listens at 127.0.0.1:8080; if its service uses another port, set rgate.port"
        watch.script.listed = {"app": [record("a", state="exited"), record("b")]}
        assert watch.reason == "stopped or stopping"
        watch.after(2.0, 0)
        assert watch.startup_probes.next_poll_in() == float("inf")

    def test_container_that_was_not_running_in_the_list_before_counts_as_started_without_an_event(self, watch: Watch) -> None:
        watch.script.listed = {"app": [record("a", state="exited")]}
        assert watch.reason == "stopped or stopping"
        watch.script.listed = {"app": [record("a")]}
        assert watch.reason == NOT_OPEN

    def test_container_that_its_healthcheck_finds_healthy_is_not_tried(self, watch: Watch) -> None:
        watch.script.listed = {"app": []}
        watch.source.list()
        watch.script.listed = {"app": [record("a", Status="Up 2 seconds (healthy)")]}
        assert watch.reason is None

    def test_start_of_the_past_does_not_hold_back_what_serves(self, watch: Watch) -> None:
        watch.tell(event("start", time_ns=time.time_ns() - 10**9))
        assert watch.reason is None

    def test_nobody_is_held_back_while_nobody_watches(self, watch: Watch) -> None:
        watch.ports = Outcome.UNCLEAR
        watch.tell(event("start"))
        assert watch.reason == NOT_OPEN
        watch.script.events_queue.put(None)
        watch.join()
        assert watch.reason is None


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (DockerSource(Script().connect, ["env", "app"], "net", "unix:///a"), True),
        (DockerSource(Script().connect, ["app"], "net", "unix:///a"), False),
        (DockerSource(Script().connect, ["app", "env"], "", "unix:///a"), False),
        (DockerSource(Script().connect, ["app", "env"], "net", "unix:///b"), False),
    ],
    ids=["all", "labels", "network", "host"],
)
def test_source_that_finds_the_same_is_equal(other: DockerSource, same: bool) -> None:
    assert (DockerSource(Script().connect, ["app", "env"], "net", "unix:///a") == other) is same
