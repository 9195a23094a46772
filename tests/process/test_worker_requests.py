"""WorkerRequests to workers: who is asked, and when they are over."""

from __future__ import annotations

import pytest

from rgate.process.worker_requests import WorkerRequests


class Workers:
    """What was sent to whom. `gone` cannot be sent to."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, str]] = []
        self.gone: set[int] = set()
        self.questions = WorkerRequests(self.send)
        self.finished: list[str | None] = []

    def send(self, worker: int, line: str) -> bool:
        if worker in self.gone:
            return False
        self.sent.append((worker, line))
        return True

    def ask(self, *workers: int) -> bool:
        return self.questions.ask(workers, "reload", self.finished.append)


@pytest.fixture
def workers() -> Workers:
    return Workers()


def test_question_is_over_when_the_last_has_answered(workers: Workers) -> None:
    assert workers.ask(0, 1)
    assert workers.sent == [(0, "ask 1 reload"), (1, "ask 1 reload")]
    workers.questions.answered(0, "1", "")
    assert workers.finished == []
    workers.questions.answered(1, "1", "no%20way")
    assert workers.finished == ["no way"]


def test_question_that_reaches_nobody_is_none(workers: Workers) -> None:
    workers.gone = {0}
    assert not workers.ask(0)
    assert not workers.ask()
    assert workers.finished == []


def test_worker_that_ends_answers_nothing_any_more(workers: Workers) -> None:
    workers.ask(0, 1)
    workers.ask(1)
    workers.questions.lost(1)
    assert workers.finished == [None]
    workers.questions.answered(0, "1", "")
    assert workers.finished == [None, None]


def test_answer_of_who_was_not_asked_and_one_too_many_do_nothing(workers: Workers) -> None:
    workers.ask(0)
    workers.questions.answered(5, "1", "")
    workers.questions.answered(0, "77", "")
    assert workers.finished == []
    workers.questions.answered(0, "1", "")
    workers.questions.answered(0, "1", "")
    assert workers.finished == [""]
