"""health: jobs at their time, by a few threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from rgate.plugins.health.scheduler import MOST_THREADS, Scheduler

from ...support.waiting import DEADLINE_SECONDS, eventually, passed


@pytest.fixture
def workers() -> Callable[[], list[str]]:
    """The names of a schedule's threads; those of gateways of other tests may still be about to end."""
    others = set(threading.enumerate())
    return lambda: [it.name for it in threading.enumerate() if it.name.startswith("rgate-health") and it not in others]


def test_jobs_are_done_in_the_order_of_their_time(workers: Callable[[], list[str]]) -> None:
    schedule, done, last = Scheduler(), [], threading.Event()
    schedule.after(0.02, last.set)
    schedule.after(0.01, lambda: done.append(2))
    schedule.after(0.0, lambda: done.append(1))
    assert not workers(), "nothing begins before start()"
    schedule.start()
    passed(last)
    schedule.stop()
    assert done == [1, 2]


def test_jobs_that_block_hold_up_no_other_up_to_eight(workers: Callable[[], list[str]]) -> None:
    schedule, barrier = Scheduler(), threading.Barrier(MOST_THREADS + 1)
    schedule.start()
    for _ in range(MOST_THREADS):
        schedule.after(0.0, lambda: barrier.wait(DEADLINE_SECONDS))
    barrier.wait(DEADLINE_SECONDS)
    assert len(workers()) == MOST_THREADS
    schedule.stop()
    assert not workers()


def test_jobs_one_after_another_take_one_thread(workers: Callable[[], list[str]]) -> None:
    schedule = Scheduler()
    schedule.start()
    for _ in range(20):
        done = threading.Event()
        schedule.after(0.0, done.set)
        passed(done)
        eventually(lambda: schedule._idle == 1, "the thread waits again")
    assert len(workers()) == 1
    schedule.stop()


def test_job_that_raises_is_logged_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise RuntimeError("broken job")

    schedule, last = Scheduler(), threading.Event()
    schedule.start()
    schedule.after(0.0, broken)
    schedule.after(0.01, last.set)
    passed(last)
    schedule.stop()
    assert "broken job" in caplog.text


def test_stop_drops_what_is_not_yet_due(workers: Callable[[], list[str]]) -> None:
    schedule = Scheduler()
    schedule.start()
    schedule.after(1_000.0, lambda: None)
    schedule.stop()
    assert not workers()
    assert schedule._jobs == []
