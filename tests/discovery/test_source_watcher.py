"""How the loop around a source paces itself, with a clock that moves only when it waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgate import Instance, RgateError
from rgate.discovery import Timing
from rgate.discovery.source_watcher import SourceWatcher

from .sources import Listing, Watching


class FakeTime:
    """A clock that moves only while a thread waits.

    Each wait for a notice is answered by the next of `plan`: after how long a notice comes, or None when none does. After
    the last of them the loop is stopped. `waits` and `pauses` are how long the loop wanted to wait for a notice, and to
    hold back after one.
    """

    def __init__(self, *plan: float | None) -> None:
        self.now = 0.0
        self.stop = threading.Event()
        self.waits: list[float] = []
        self.pauses: list[float] = []
        self._plan = list(plan)

    def clock(self) -> float:
        return self.now

    def wait(self, event: threading.Event, seconds: float) -> bool:
        if event is self.stop:
            self.pauses.append(round(seconds, 3))
            self.now += seconds
            return False
        self.waits.append(round(seconds, 3))
        if not self._plan:
            self.stop.set()
            return True
        after = self._plan.pop(0)
        self.now += seconds if after is None else after
        return after is not None

    def list_until_stopped(self, source: Listing) -> None:
        SourceWatcher(source, lambda *_: None, lambda *_: None, Timing(), self.clock, self.wait).run_list_loop(self.stop)


@pytest.fixture(autouse=True)
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.0)


class TestListing:
    def test_quiet_source_is_listed_every_30_seconds(self) -> None:
        time, source = FakeTime(None, None), Listing()
        time.list_until_stopped(source)
        assert source.lists == 3
        assert time.waits == [30, 30, 30]

    def test_notice_after_quiet_lists_at_once_and_the_next_not_before_100_ms(self) -> None:
        time, source = FakeTime(5.0, 0.0, 0.04), Listing()
        time.list_until_stopped(source)
        assert source.lists == 4
        assert time.pauses[:3] == [0.0, 0.1, 0.06]

    def test_list_that_takes_long_makes_notices_wait_as_long(self) -> None:
        time = FakeTime(0.0)

        class Slow(Listing):
            def list(self) -> Iterable[Instance]:
                time.now += 0.7
                return super().list()

        time.list_until_stopped(Slow())
        assert time.pauses[0] == 0.7

    def test_failing_source_is_tried_again_with_capped_back_off_for_ever(self) -> None:
        time, source = FakeTime(*[None] * 40), Listing()
        source.error = RgateError("away")
        time.list_until_stopped(source)
        assert time.waits[:7] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0]
        assert time.waits[-1] == 3.0
        assert source.lists == 41

    def test_source_that_answers_again_starts_its_back_off_anew(self) -> None:
        answers = iter([RgateError("1"), RgateError("2"), None, RgateError("3"), None])

        class Flaky(Listing):
            def list(self) -> Iterable[Instance]:
                self.error = next(answers)
                return super().list()

        time = FakeTime(*[None] * 4)
        time.list_until_stopped(Flaky())
        assert time.waits == [0.1, 0.2, 30, 0.1, 30]

    @given(st.integers(1, 10_000), st.floats(0, 1))
    def test_back_off_stays_between_half_and_all_of_its_step_and_within_three_seconds(self, failures: int, chance: float) -> None:
        step = min(3.0, 0.1 * 2.0 ** min(failures - 1, 32))
        assert step / 2 <= Timing().retry_after(failures, chance) <= step <= 3.0


class TestWatching:
    def run(
        self, source: Any, rounds: int, *, lists_well: bool = True, lasting: float = 0.0
    ) -> tuple[list[float], list[bool], SourceWatcher]:
        """Watch `rounds` times; the pauses between, and whether each was followed by a notice."""
        stop, now, pauses, noticed = threading.Event(), [0.0], [], []

        def wait(event: threading.Event, seconds: float) -> bool:
            assert event is stop
            pauses.append(round(seconds, 3))
            now[0] += seconds
            noticed.append(loop._changed.is_set())
            loop._changed.clear()
            if len(pauses) == rounds:
                stop.set()
            return False

        watch = source.watch

        def lasted(changed: Callable[[], None], stop: threading.Event) -> None:
            now[0] += lasting
            watch(changed, stop)

        source.watch = lasted
        loop = SourceWatcher(source, lambda *_: None, lambda *_: None, Timing(), lambda: now[0], wait)
        source.error = None if lists_well else RgateError("away")
        loop.list_once()
        loop.run_watch_loop(stop)
        return pauses, noticed, loop

    @pytest.fixture
    def broken(self) -> Watching:
        source = Watching()
        source.broken.set()
        return source

    def test_watch_that_ends_is_begun_again_with_back_off_and_a_list_each_time(self, broken: Watching) -> None:
        pauses, noticed, loop = self.run(broken, 7)
        assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0]
        assert noticed[1:] == [True] * 6
        assert broken.watches == 7
        assert loop._changed.is_set()

    def test_watch_that_lasted_is_begun_again_at_once(self, broken: Watching) -> None:
        assert self.run(broken, 3, lasting=60.0)[0] == [0.1, 0.1, 0.1]

    def test_watch_that_ends_quietly_is_not_worth_a_line(self, broken: Watching, caplog: pytest.LogCaptureFixture) -> None:
        self.run(broken, 5)
        assert caplog.messages == []

    def test_watch_that_fails_a_few_times_is_not_told_yet(self, broken: Watching, caplog: pytest.LogCaptureFixture) -> None:
        broken.watch_error = RgateError("reset")
        self.run(broken, 3)
        assert caplog.messages == []

    def test_watch_that_fails_is_told_once(self, broken: Watching, caplog: pytest.LogCaptureFixture) -> None:
        broken.watch_error = RgateError("403 for /events")
        self.run(broken, 9)
        assert caplog.messages == ["watching: cannot watch, so listing more often: 403 for /events"]

    def test_watch_that_fails_while_listing_fails_too_is_not_told_as_well(
        self, broken: Watching, caplog: pytest.LogCaptureFixture
    ) -> None:
        broken.watch_error = RgateError("away")
        self.run(broken, 5, lists_well=False)
        assert caplog.messages == []

    def test_watch_that_is_a_defect_is_told_with_its_traceback(self, broken: Watching, caplog: pytest.LogCaptureFixture) -> None:
        broken.watch_error = TypeError("a slip")
        self.run(broken, 5)
        assert caplog.messages == ["watching: cannot watch, so listing more often: TypeError: a slip"]
        assert caplog.records[0].exc_info
