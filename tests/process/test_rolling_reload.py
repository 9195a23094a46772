"""A reload of several processes, step by step: who is asked, when it ends, and what becomes of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from rgate.process.rolling_reload import PATIENCE_SECONDS, RollingReload
from rgate.process.worker_requests import Finish


class Script:
    """A blueprint and its workers, all of which the test plays."""

    gateway: Any = None
    next_look: float | None = None

    def __init__(self) -> None:
        self.now = 0.0
        self.happened: list[str] = []
        self.problems = ""
        self.due = False
        self.present = [0, 1, 2]
        self.asked: dict[int, Finish] = {}
        self.told: list[str] = []
        self.reload = RollingReload(self, lambda: self.present, self.ask, self.refused, lambda: self.now)

    def is_due(self) -> bool:
        due, self.due = self.due, False
        return due

    def prepare(self, asked: bool) -> str:
        self.happened.append(f"prepare{' for somebody' if asked else ''}")
        return self.problems

    def commit(self) -> None:
        self.happened.append("commit")

    def drop(self) -> None:
        self.happened.append("drop")

    def concluded(self, problems: str, asked: bool) -> None:
        self.happened.append(f"concluded {problems or 'well'}{' for somebody' if asked else ''}")

    def refused(self, problems: str) -> None:
        self.happened.append(f"all are told: {problems}")

    def ask(self, worker: int, answered: Finish) -> bool:
        if worker not in self.present:
            return False
        self.happened.append(f"ask {worker}")
        self.asked[worker] = answered
        return True

    def want(self) -> None:
        self.reload.want(self.told.append)
        self.reload.go_on()


@pytest.fixture
def script() -> Script:
    return Script()


def test_reload_is_done_by_one_worker_after_the_other(script: Script) -> None:
    script.want()
    assert script.happened == ["prepare for somebody", "ask 0"]
    script.asked[0]("")
    assert script.happened[2:] == ["commit", "ask 1"]
    script.asked[1]("")
    script.asked[2]("")
    assert script.happened[4:] == ["ask 2", "concluded well for somebody"]
    assert script.told == [""]


def test_config_that_is_bad_reaches_no_worker_but_all_are_told(script: Script) -> None:
    script.problems = "config.yml:1: no"
    script.want()
    assert script.happened == [
        "prepare for somebody",
        "drop",
        "all are told: config.yml:1: no",
        "concluded config.yml:1: no for somebody",
    ]
    assert script.told == ["config.yml:1: no"]


@pytest.mark.parametrize(("answer", "said"), [("no database", "no database"), (None, "has ended")])
def test_first_worker_that_cannot_leaves_the_others_as_they_are(script: Script, answer: str | None, said: str) -> None:
    script.want()
    script.asked[0](answer)
    assert script.happened[2:] == ["drop", f"all are told: worker 0: {said}", f"concluded worker 0: {said} for somebody"]
    assert script.told == [f"worker 0: {said}"]


def test_later_worker_that_cannot_is_told_and_the_others_go_on(script: Script) -> None:
    script.want()
    script.asked[0]("")
    script.asked[1]("no memory")
    script.asked[2]("")
    assert script.happened[-2:] == ["ask 2", "concluded worker 1: no memory for somebody"]
    assert "drop" not in script.happened


def test_worker_that_is_late_is_not_waited_for(script: Script) -> None:
    script.want()
    assert script.reload.next_look == PATIENCE_SECONDS
    script.now = PATIENCE_SECONDS - 1
    script.reload.go_on()
    assert script.told == []
    script.now = PATIENCE_SECONDS
    script.reload.go_on()
    assert script.told == ["worker 0: has not answered in 30 s"]
    script.asked[0]("")
    assert script.told == ["worker 0: has not answered in 30 s"], "what it says now comes too late"
    assert "commit" not in script.happened


def test_what_is_wanted_meanwhile_is_the_next_reloads(script: Script) -> None:
    script.present = [0]
    script.want()
    script.want()
    assert script.happened == ["prepare for somebody", "ask 0"]
    script.asked[0]("")
    assert script.told == [""]
    script.reload.go_on()
    assert script.happened[-2:] == ["prepare for somebody", "ask 0"]
    script.asked[0]("")
    assert script.told == ["", ""]


def test_change_of_the_files_reloads_without_being_asked(script: Script) -> None:
    script.reload.go_on()
    assert script.happened == []
    script.due = True
    script.reload.go_on()
    for worker in script.present:
        script.asked[worker]("")
    assert (script.happened[0], script.happened[-1]) == ("prepare", "concluded well")


def test_without_workers_the_next_ones_have_the_new_config(script: Script) -> None:
    script.present = []
    script.want()
    assert script.happened == ["prepare for somebody", "commit", "concluded well for somebody"]
