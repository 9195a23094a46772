"""DedupingHandler: a failure that repeats is written once and then counted; every other failure is written."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator

import pytest

from rgate.log.handler import MAX_KEYS, DedupingHandler, exception_key

from ..support.waiting import eventually


class Log:
    """A logger with one DedupingHandler, whose clock the test sets."""

    def __init__(self, name: str = "quiet") -> None:
        self.now = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.stream = io.StringIO()
        self.handler = DedupingHandler(self.stream, 10, lambda: self.now, self._schedule)
        self.logger = logging.Logger(name, logging.WARNING)
        self.logger.addHandler(self.handler)

    def _schedule(self, seconds: float, act: Callable[[], None]) -> None:
        self.due.append((self.now + seconds, act))

    def fail(self, what: object = "x", times: int = 1, **more: object) -> None:
        for number in range(1, times + 1):
            self.logger.error("%d: %s failed", number, what, extra={"dedup_key": (what,)}, **more)  # type: ignore[arg-type]

    def wait(self, seconds: float) -> None:
        """Advance the clock, and call what is due by then."""
        until = self.now + seconds
        while due := [each for each in self.due if each[0] <= until]:
            first = min(due, key=lambda each: each[0])
            self.due.remove(first)
            self.now = first[0]
            first[1]()
        self.now = until

    @property
    def lines(self) -> list[str]:
        """The lines written since this was last read."""
        text = self.stream.getvalue()
        self.stream.seek(0)
        self.stream.truncate()
        return text.splitlines()


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log.handler.close()


def test_first_record_is_written_immediately_and_others_are_counted(log: Log) -> None:
    log.fail(times=1_235)
    assert log.lines == ["1: x failed"]
    log.wait(9.9)
    assert log.lines == []
    log.wait(0.1)
    assert log.lines == ["1235: x failed (1,234 more times in the last 10 s)"]


def test_one_more_time_is_singular(log: Log) -> None:
    log.fail(times=2)
    log.wait(10)
    assert log.lines == ["1: x failed", "2: x failed (1 more time in the last 10 s)"]


def test_continuing_failure_is_written_once_in_ten_seconds(log: Log) -> None:
    for _ in range(60):
        log.fail()
        log.wait(1)
    lines = log.lines
    assert lines[0] == "1: x failed"
    assert lines[1:] == ["1: x failed (9 more times in the last 10 s)", *["1: x failed (10 more times in the last 10 s)"] * 5]


def test_failure_that_returns_after_a_pause_is_written_immediately(log: Log) -> None:
    log.fail(times=3)
    log.wait(20)
    assert log.lines == ["1: x failed", "3: x failed (2 more times in the last 10 s)"]
    assert not log.due, "nothing is scheduled while nothing fails"
    log.fail()
    assert log.lines == ["1: x failed"]


def test_rare_failure_is_written_every_time(log: Log) -> None:
    for _ in range(5):
        log.fail()
        log.wait(10)
    assert log.lines == ["1: x failed"] * 5


def test_traceback_is_written_with_the_first_record(log: Log) -> None:
    for _ in range(3):
        try:
            raise KeyError("acme")
        except KeyError:
            log.fail(exc_info=True)
    log.wait(10)
    lines = log.lines
    assert lines[0] == "1: x failed"
    assert "Traceback (most recent call last):" in lines
    assert lines.count("KeyError: 'acme'") == 1
    assert lines[-1] == "1: x failed (2 more times in the last 10 s)"


def test_different_failures_are_never_counted_together() -> None:
    log = Log()
    others = Log("other")
    others.logger.handlers = [log.handler]
    log.fail("x", times=2)
    log.fail("y")
    log.logger.warning("%d: %s failed", 1, "x", extra={"dedup_key": ("x",)})
    log.logger.error("%d: %s has failed", 1, "x", extra={"dedup_key": ("x",)})
    others.fail("x")
    assert log.lines == ["1: x failed", "1: y failed", "1: x failed", "1: x has failed", "1: x failed"]
    log.wait(10)
    assert log.lines == ["2: x failed (1 more time in the last 10 s)"]


def test_record_without_a_dedup_key_is_always_written(log: Log) -> None:
    for _ in range(3):
        log.logger.error("no matter what")
    assert log.lines == ["no matter what"] * 3


def test_counts_are_written_at_close(log: Log) -> None:
    log.fail(times=5)
    log.now = 3.0
    log.handler.close()
    assert log.lines == ["1: x failed", "5: x failed (4 more times in the last 3 s)"]


def test_count_is_written_with_the_next_record_when_no_thread_can_be_started() -> None:
    def no_thread(seconds: float, act: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    log = Log()
    log.handler = DedupingHandler(log.stream, 10, lambda: log.now, no_thread)
    log.logger.handlers = [log.handler]
    log.fail(times=5)
    log.now = 12.0
    log.fail()
    assert log.lines == ["1: x failed", "5: x failed (4 more times in the last 12 s)"]


def test_number_of_keys_is_bounded_and_no_count_is_lost(log: Log) -> None:
    log.fail("first", times=3)
    for number in range(MAX_KEYS):
        log.fail(number)
    lines = log.lines
    assert len(lines) == 1 + 1 + MAX_KEYS
    assert "3: first failed (2 more times in the last 1 s)" in lines
    log.fail(MAX_KEYS - 1)
    assert log.lines == [], "the last key is still kept"


def test_unhashable_dedup_key_costs_the_record_and_nothing_else(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    log.logger.error("a plugin's mistake", extra={"dedup_key": ["a list"]})
    log.fail()
    assert log.lines == ["1: x failed"]
    assert "a plugin's mistake" in capsys.readouterr().err


def test_forked_process_starts_without_counts(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.fail(times=3)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    log.fail(times=2)
    assert log.lines == ["1: x failed", "1: x failed"]
    assert len(log.due) == 2, "the timer thread exists in the parent process only"


def test_real_timer_writes_the_count() -> None:
    stream = io.StringIO()
    handler = DedupingHandler(stream, 0.05)
    logger = logging.Logger("quiet")
    logger.addHandler(handler)
    for _ in range(3):
        logger.error("failed", extra={"dedup_key": ""})
    eventually(lambda: "more time" in stream.getvalue())


def fail(kind: type[Exception]) -> None:
    raise kind


def one_way(kind: type[Exception]) -> None:
    fail(kind)


def other_way(kind: type[Exception]) -> None:
    fail(kind)


def raised(call: Callable[[type[Exception]], None], kind: type[Exception]) -> Exception:
    try:
        call(kind)
    except kind as error:
        return error
    raise AssertionError


def test_exception_keys_differ_by_type_and_by_traceback() -> None:
    known = exception_key(raised(one_way, KeyError))
    assert known == exception_key(raised(one_way, KeyError))
    others = {
        exception_key(raised(one_way, ValueError)),
        exception_key(raised(other_way, KeyError)),
        exception_key(raised(fail, KeyError)),
    }
    assert len(others | {known}) == 4
    assert exception_key(KeyError()) == ("builtins.KeyError", ())
