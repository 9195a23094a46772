"""What workers are asked over their channels, until all of them have answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..runtime.worker_channel import decode_arg

__all__ = ["Finish", "WorkerRequests"]

Finish = Callable[[str | None], object]


class WorkerRequests:
    """`send(worker, line)` writes to a worker's channel; false when that cannot be."""

    def __init__(self, send: Callable[[int, str], bool]) -> None:
        self._send = send
        self._number = 0
        self._open: dict[str, _Question] = {}

    def ask(self, workers: Iterable[int], asked: str, finish: Finish = lambda answer: None) -> bool:
        """Ask them, and `finish` when all have answered: with the last answer that is not empty, None if one has ended first.

        False, and nothing more happens, when none of them can be asked.
        """
        self._number += 1
        number = str(self._number)
        question = _Question(finish)
        question.unanswered |= {worker for worker in workers if self._send(worker, f"ask {number} {asked}")}
        if question.unanswered:
            self._open[number] = question
        return bool(question.unanswered)

    def answered(self, worker: int, number: str, answer: str) -> None:
        """A worker has answered, in one word."""
        if (question := self._open.get(number)) is not None and worker in question.unanswered:
            question.answer = decode_arg(answer) or question.answer
            self._one_less(number, question, worker)

    def lost(self, worker: int) -> None:
        """A worker has ended; its answers will not come."""
        for number, question in list(self._open.items()):
            if worker in question.unanswered:
                question.answer = None
                self._one_less(number, question, worker)

    def _one_less(self, number: str, question: _Question, worker: int) -> None:
        question.unanswered.discard(worker)
        if not question.unanswered:
            del self._open[number]
            question.finish(question.answer)


class _Question:
    def __init__(self, finish: Finish) -> None:
        self.finish = finish
        self.unanswered: set[int] = set()
        self.answer: str | None = ""
