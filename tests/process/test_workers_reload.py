"""A reload of several processes, step by step: which workers reload when, and what happens when one cannot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rgate import ConfigError, ConfigProblem
from rgate.process.reload import REPLY_SECONDS, OnReply, WorkersReload


class Script:
    """The supervisor's runtime, its config file and its workers, all played by the test."""

    def __init__(self) -> None:
        self.now = 0.0
        self.happened: list[str] = []
        self.problems = ""
        self.connected = [0, 1, 2]
        self.replies: dict[int, OnReply] = {}
        self.answers: list[str] = []
        self.number = 0
        # The runtime.
        self.current: Any = self.gateway()
        self.readiness = SimpleNamespace(warnings={})
        # The config file.
        self.path = "config.yml"
        self.needs_restart = ()
        self.changed = False
        self.watch = SimpleNamespace(next_poll_at=float("inf"), changed=self.have_changed)
        self.reload = WorkersReload(self, self, lambda: self.connected, self.ask, self.refused, lambda: self.now)  # type: ignore[arg-type]

    def gateway(self) -> Any:
        log, server = SimpleNamespace(level="info", format="text"), SimpleNamespace(reload_on_change=True)
        return SimpleNamespace(name=f"gateway {self.number}", config=SimpleNamespace(log=log, server=server))

    def build_gateway(self, runtime: object) -> Any:
        self.happened.append("build")
        if self.problems:
            raise ConfigError([ConfigProblem((), self.problems)])
        self.number += 1
        return self.gateway()

    def update_restart_notice(self, runtime: object) -> None:
        pass

    def have_changed(self) -> bool:
        changed, self.changed = self.changed, False
        return changed

    def activate(self, gateway: Any) -> None:
        self.happened.append(f"activate {gateway.name}")
        self.current = gateway

    def discard(self, gateway: Any) -> None:
        self.happened.append(f"discard {gateway.name}")

    def refused(self, problems: str) -> None:
        self.happened.append(f"workers note: {problems}")

    def ask(self, worker: int, command: str, on_reply: OnReply) -> bool:
        if worker not in self.connected:
            return False
        self.happened.append(f"{command} {worker}")
        self.replies[worker] = on_reply
        return True

    def request(self) -> None:
        self.reload.request(self.answers.append)
        self.reload.poll()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.setattr("rgate.process.reload.configure", lambda *_: None)
    monkeypatch.setattr("rgate.process.reload.gc_freeze", lambda: None)
    return Script()


def test_first_worker_reloads_and_then_all_others_together(script: Script) -> None:
    script.request()
    assert script.happened == ["build", "reload 0"]
    script.replies[0]("")
    assert script.happened[2:] == ["activate gateway 1", "reload 1", "reload 2"]
    script.replies[2]("")
    assert script.answers == []
    script.replies[1]("")
    assert script.answers == [""]
    assert script.readiness.warnings == {}


def test_config_that_the_supervisor_cannot_use_is_asked_of_no_worker(script: Script) -> None:
    script.problems = "no"
    script.request()
    assert script.happened == ["build", "workers note: no"]
    assert script.answers == ["no"]
    assert script.readiness.warnings == {"config": "refused, the config before stays active: no"}


@pytest.mark.parametrize(("reply", "problem"), [("no database", "no database"), (None, "has ended")])
def test_first_worker_that_cannot_leaves_the_others_as_they_are(script: Script, reply: str | None, problem: str) -> None:
    script.request()
    script.replies[0](reply)
    assert script.happened[2:] == ["discard gateway 1", f"workers note: worker 0: {problem}"]
    assert script.answers == [f"worker 0: {problem}"]
    assert script.current.name == "gateway 0"


def test_later_worker_that_cannot_is_named_and_the_others_go_on(script: Script) -> None:
    script.request()
    script.replies[0]("")
    script.replies[1]("no memory")
    script.replies[2]("")
    assert script.answers == ["worker 1: no memory"]
    assert script.current.name == "gateway 1"
    assert script.readiness.warnings["config"] == "active, but not in every worker: worker 1: no memory"


def test_first_worker_that_does_not_reply_in_time_refuses(script: Script) -> None:
    script.request()
    assert script.reload.next_check_at == REPLY_SECONDS
    script.now = REPLY_SECONDS - 1
    script.reload.poll()
    assert script.answers == []
    script.now = REPLY_SECONDS
    script.reload.poll()
    assert script.answers == ["worker 0: has not answered in 30 s"]
    script.replies[0]("")
    assert script.answers == ["worker 0: has not answered in 30 s"], "its reply comes too late"
    assert script.current.name == "gateway 0"


def test_later_workers_that_do_not_reply_are_all_named(script: Script) -> None:
    script.request()
    script.now = 10.0
    script.replies[0]("")
    assert script.reload.next_check_at == 10 + REPLY_SECONDS
    script.now = 10 + REPLY_SECONDS
    script.reload.poll()
    assert script.answers == ["worker 1: has not answered in 30 s\nworker 2: has not answered in 30 s"]
    assert script.current.name == "gateway 1"


def test_worker_that_starts_during_the_check_reloads_with_the_others(script: Script) -> None:
    script.connected = [0]
    script.request()
    script.connected = [0, 1]  # forked with the gateway before
    script.replies[0]("")
    assert script.happened[-1] == "reload 1"


def test_worker_that_cannot_be_reached_is_not_the_first(script: Script) -> None:
    script.connected = [1]
    workers = [0, 1]
    reload = WorkersReload(script, script, lambda: workers, script.ask, script.refused)  # type: ignore[arg-type]
    reload.request(script.answers.append)
    reload.poll()
    assert script.happened == ["build", "reload 1"]
    script.replies[1]("")
    assert script.answers == [""]


def test_request_during_a_reload_is_for_the_next_one(script: Script) -> None:
    script.connected = [0]
    script.request()
    script.request()
    assert script.happened == ["build", "reload 0"]
    script.replies[0]("")
    assert script.answers == [""]
    script.reload.poll()
    assert script.happened[-2:] == ["build", "reload 0"]
    script.replies[0]("")
    assert script.answers == ["", ""]


def test_change_of_the_files_reloads_without_a_request(script: Script) -> None:
    script.reload.poll()
    assert script.happened == []
    script.changed, script.watch.next_poll_at = True, 0.0
    script.reload.poll()
    script.replies[0]("")
    script.replies[1]("")
    script.replies[2]("")
    assert script.happened[0] == "build" and script.current.name == "gateway 1"


def test_without_workers_the_next_ones_have_the_new_config(script: Script) -> None:
    script.connected = []
    script.request()
    assert script.happened == ["build", "activate gateway 1"]
    assert script.answers == [""]
