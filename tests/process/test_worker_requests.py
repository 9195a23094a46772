"""WorkerRequests: which workers are asked, and when a request is over."""

from __future__ import annotations

import pytest

from rgate.process.supervisor import WorkerRequests


class Workers:
    """Records which line was sent to which worker. Those in `gone` cannot be reached."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, str]] = []
        self.gone: set[int] = set()
        self.requests = WorkerRequests(self.send)
        self.finished: list[str | None] = []

    def send(self, worker: int, line: str) -> bool:
        if worker in self.gone:
            return False
        self.sent.append((worker, line))
        return True

    def ask(self, *workers: int) -> bool:
        return self.requests.send(workers, "reload", self.finished.append)


@pytest.fixture
def workers() -> Workers:
    return Workers()


def test_request_is_over_when_the_last_worker_has_replied(workers: Workers) -> None:
    assert workers.ask(0, 1)
    assert workers.sent == [(0, "ask 1 reload"), (1, "ask 1 reload")]
    workers.requests.on_reply(0, "1", "")
    assert workers.finished == []
    workers.requests.on_reply(1, "1", "no%20way")
    assert workers.finished == ["no way"]


def test_request_that_reaches_no_worker_is_not_sent(workers: Workers) -> None:
    workers.gone = {0}
    assert not workers.ask(0)
    assert not workers.ask()
    assert workers.finished == []


def test_worker_that_ends_does_not_reply_any_more(workers: Workers) -> None:
    workers.ask(0, 1)
    workers.ask(1)
    workers.requests.on_worker_exit(1)
    assert workers.finished == [None]
    workers.requests.on_reply(0, "1", "")
    assert workers.finished == [None, None]


def test_reply_of_a_worker_that_was_not_asked_and_a_second_one_do_nothing(workers: Workers) -> None:
    workers.ask(0)
    workers.requests.on_reply(5, "1", "")
    workers.requests.on_reply(0, "77", "")
    assert workers.finished == []
    workers.requests.on_reply(0, "1", "")
    workers.requests.on_reply(0, "1", "")
    assert workers.finished == [""]
