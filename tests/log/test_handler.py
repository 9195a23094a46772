"""log: what fails again and again is told at once, and then counted; what fails otherwise is told, too."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator

import pytest

from rgate.log.handler import MOST_KNOWN, LogHandler, about

from ..support.waiting import eventually


class Log:
    """A logger with one LogHandler, whose time is the test's."""

    def __init__(self, name: str = "quiet") -> None:
        self.now = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.stream = io.StringIO()
        self.handler = LogHandler(self.stream, 10, lambda: self.now, self._later)
        self.logger = logging.Logger(name, logging.WARNING)
        self.logger.addHandler(self.handler)

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self.due.append((self.now + seconds, act))

    def fail(self, what: object = "x", times: int = 1, **more: object) -> None:
        for number in range(1, times + 1):
            self.logger.error("%d: %s failed", number, what, extra={"about": (what,)}, **more)  # type: ignore[arg-type]

    def wait(self, seconds: float) -> None:
        """Let time go by, and do what is due meanwhile."""
        until = self.now + seconds
        while due := [each for each in self.due if each[0] <= until]:
            first = min(due, key=lambda each: each[0])
            self.due.remove(first)
            self.now = first[0]
            first[1]()
        self.now = until

    @property
    def lines(self) -> list[str]:
        """What has been written since this was last asked."""
        text = self.stream.getvalue()
        self.stream.seek(0)
        self.stream.truncate()
        return text.splitlines()


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log.handler.close()


def test_first_is_written_at_once_and_the_rest_is_counted(log: Log) -> None:
    log.fail(times=1_235)
    assert log.lines == ["1: x failed"]
    log.wait(9.9)
    assert log.lines == []
    log.wait(0.1)
    assert log.lines == ["1235: x failed (1,234 more times in the last 10 s)"]


def test_one_more_is_told_as_one(log: Log) -> None:
    log.fail(times=2)
    log.wait(10)
    assert log.lines == ["1: x failed", "2: x failed (1 more time in the last 10 s)"]


def test_failure_that_goes_on_is_told_once_in_ten_seconds(log: Log) -> None:
    for _ in range(60):
        log.fail()
        log.wait(1)
    lines = log.lines
    assert lines[0] == "1: x failed"
    assert lines[1:] == ["1: x failed (9 more times in the last 10 s)", *["1: x failed (10 more times in the last 10 s)"] * 5]


def test_failure_that_comes_back_is_a_first_one_again(log: Log) -> None:
    log.fail(times=3)
    log.wait(20)
    assert log.lines == ["1: x failed", "3: x failed (2 more times in the last 10 s)"]
    assert not log.due, "nobody waits while nothing fails"
    log.fail()
    assert log.lines == ["1: x failed"]


def test_rare_failure_is_written_every_time(log: Log) -> None:
    for _ in range(5):
        log.fail()
        log.wait(10)
    assert log.lines == ["1: x failed"] * 5


def test_traceback_comes_with_the_first(log: Log) -> None:
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
    log.logger.warning("%d: %s failed", 1, "x", extra={"about": ("x",)})
    log.logger.error("%d: %s has failed", 1, "x", extra={"about": ("x",)})
    others.fail("x")
    assert log.lines == ["1: x failed", "1: y failed", "1: x failed", "1: x has failed", "1: x failed"]
    log.wait(10)
    assert log.lines == ["2: x failed (1 more time in the last 10 s)"]


def test_line_that_says_not_what_it_is_about_is_always_written(log: Log) -> None:
    for _ in range(3):
        log.logger.error("no matter what")
    assert log.lines == ["no matter what"] * 3


def test_what_is_counted_is_written_at_the_end(log: Log) -> None:
    log.fail(times=5)
    log.now = 3.0
    log.handler.close()
    assert log.lines == ["1: x failed", "5: x failed (4 more times in the last 3 s)"]


def test_what_is_counted_is_written_with_the_next_when_no_thread_can_be_had() -> None:
    def no_thread(seconds: float, act: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    log = Log()
    log.handler = LogHandler(log.stream, 10, lambda: log.now, no_thread)
    log.logger.handlers = [log.handler]
    log.fail(times=5)
    log.now = 12.0
    log.fail()
    assert log.lines == ["1: x failed", "5: x failed (4 more times in the last 12 s)"]


def test_number_of_known_failures_is_bounded_and_nothing_is_lost(log: Log) -> None:
    log.fail("first", times=3)
    for number in range(MOST_KNOWN):
        log.fail(number)
    lines = log.lines
    assert len(lines) == 1 + 1 + MOST_KNOWN
    assert "3: first failed (2 more times in the last 1 s)" in lines
    log.fail(MOST_KNOWN - 1)
    assert log.lines == [], "the last is known still"


def test_about_that_cannot_be_a_key_costs_the_line_and_nothing_else(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    log.logger.error("a plugin's mistake", extra={"about": ["a list"]})
    log.fail()
    assert log.lines == ["1: x failed"]
    assert "a plugin's mistake" in capsys.readouterr().err


def test_fork_begins_anew(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.fail(times=3)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    log.fail(times=2)
    assert log.lines == ["1: x failed", "1: x failed"]
    assert len(log.due) == 2, "the thread that waited has stayed in the other process"


def test_real_timer_tells() -> None:
    stream = io.StringIO()
    handler = LogHandler(stream, 0.05)
    logger = logging.Logger("quiet")
    logger.addHandler(handler)
    for _ in range(3):
        logger.error("failed", extra={"about": ""})
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


def test_exceptions_differ_by_type_and_by_the_way_they_have_come() -> None:
    known = about(raised(one_way, KeyError))
    assert known == about(raised(one_way, KeyError))
    others = {about(raised(one_way, ValueError)), about(raised(other_way, KeyError)), about(raised(fail, KeyError))}
    assert len(others | {known}) == 4
    assert about(KeyError()) == ("builtins.KeyError", ())
