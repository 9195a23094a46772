"""A reload of several processes, as the supervisor sees to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from .worker_requests import Finish

if TYPE_CHECKING:
    from ..runtime.gateway import Gateway

__all__ = ["PreforkGateway", "RollingReload"]

PATIENCE_SECONDS: Final = 30.0  # for one worker


class PreforkGateway(Protocol):
    """The gateway that workers are forked with; `rgate.process.prefork.PreforkGateway` is one and says what each of these does."""

    gateway: Gateway

    @property
    def next_look(self) -> float | None: ...

    def is_due(self) -> bool: ...

    def prepare(self, asked: bool) -> str: ...

    def commit(self) -> None: ...

    def drop(self) -> None: ...

    def concluded(self, problems: str, asked: bool) -> None: ...


class RollingReload:
    """The supervisor's own gateway is made anew first, then one worker after the other takes the config up. What is wrong with
    it shows there, or in the first worker; then all others are left as they are.

    `ask(worker, answered)` has a worker reload and `answered` called with why it has not ("": it has; None: it has ended); false
    when it cannot be asked. `workers()` are those that there are. `refused` is told why nothing has changed.
    """

    def __init__(
        self,
        blueprint: PreforkGateway,
        workers: Callable[[], Sequence[int]],
        ask: Callable[[int, Finish], bool],
        refused: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._blueprint = blueprint
        self._workers = workers
        self._ask = ask
        self._refused = refused
        self._clock = clock
        self._wanted: list[Callable[[str], object]] = []
        self._waiting: list[Callable[[str], object]] = []
        self._left: list[int] = []
        self._step = 0
        self._late_at: float | None = None
        self._committed = False
        self._problems: list[str] = []

    @property
    def next_look(self) -> float | None:
        """When go_on() is to be called although nothing has happened, by `clock`."""
        return self._late_at if self._late_at is not None else self._blueprint.next_look

    def want(self, tell: Callable[[str], object] = lambda problems: None) -> None:
        """Reload soon, and `tell` why it is refused, or "". What is wanted while one is under way is the next one's."""
        self._wanted.append(tell)

    def go_on(self) -> None:
        """Begin what is wanted or due; end the wait for a worker that is late."""
        if self._late_at is not None:
            if self._clock() >= self._late_at:
                self._answered(self._step, self._current, f"has not answered in {PATIENCE_SECONDS:g} s")
        elif self._wanted or self._blueprint.is_due():
            self._begin()

    def _begin(self) -> None:
        self._waiting, self._wanted = self._wanted, []
        self._committed, self._problems = False, []
        if problems := self._blueprint.prepare(asked=bool(self._waiting)):
            self._problems = [problems]
            self._conclude()
            return
        self._left = list(self._workers())
        self._next()

    def _next(self) -> None:
        self._late_at = None
        while self._left:
            self._current = self._left.pop(0)
            self._step += 1
            if self._ask(self._current, partial(self._answered, self._step, self._current)):
                self._late_at = self._clock() + PATIENCE_SECONDS
                return
        self._conclude()

    def _answered(self, step: int, worker: int, answer: str | None) -> None:
        if step != self._step or self._late_at is None:  # it was late
            return
        if answer == "":
            self._commit()
        else:
            self._problems.append(f"worker {worker}: {answer or 'has ended'}")
            if not self._committed:
                self._left.clear()
        self._next()

    def _commit(self) -> None:
        if not self._committed:
            self._committed = True
            self._blueprint.commit()

    def _conclude(self) -> None:
        problems = "\n".join(self._problems)
        if not problems:
            self._commit()
        elif not self._committed:
            self._blueprint.drop()
            self._refused(problems)
        self._blueprint.concluded(problems, asked=bool(self._waiting))
        for tell in self._waiting:
            tell(problems)
        self._waiting = []
