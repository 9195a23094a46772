"""StopProbes: containers that have been told to stop, and whether they serve on all the same.

Most programs end soon after SIGTERM, or at least close their port; what is sent to them in that moment is lost, and some serve
on just as long as requests come. So at first none is sent, and those that come wait for the next container. Others ignore the
signal, as a program that is process 1 of its container does by default, and serve until they are killed, ten seconds later. These
are worth using, while there is no other container: they are the ones whose port is still open after a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from rgate import Address

from .startup_probe import Connection, Outcome, Trial

__all__ = ["HOLD_SECONDS", "StopProbes"]

HOLD_SECONDS = 1.0
_TRIAL_SECONDS = 0.1
_PAUSE_SECONDS = 0.15


class StopProbes:
    """Which containers that have been told to stop still accept connections, `hold_seconds` after that.

    Each is tried again and again, as it may close its port at any moment; nothing is sent. The listing thread calls `accepts`,
    the watching thread the others.
    """

    def __init__(
        self,
        hold_seconds: float = HOLD_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        connect: Callable[[Address], Trial] | None = None,
    ) -> None:
        self._hold_seconds = hold_seconds
        self._clock = clock
        self._connect = connect or Connection
        self._due: dict[str, float] = {}  # when it is to be tried next
        self._addresses: dict[str, Address] = {}
        self._trials: dict[str, tuple[Trial, float]] = {}
        self._accepting: frozenset[str] = frozenset()

    def told(self, id: str) -> None:
        """A container has been told to stop."""
        self._due.setdefault(id, self._clock() + self._hold_seconds)

    def ended(self, id: str) -> None:
        """It has ended, is being killed, or has started anew."""
        self._due.pop(id, None)
        self._addresses.pop(id, None)
        trial = self._trials.pop(id, None)
        if trial is not None:
            trial[0].outcome()
        self._accepting -= {id}

    def keep(self, ids: Collection[str]) -> None:
        """Forget all but these."""
        for id in self._due.keys() - ids:
            self.ended(id)

    def accepts(self, id: str, address: Address) -> bool:
        """Whether the container still accepts connections at its address, as far as is known."""
        if id in self._due:
            self._addresses[id] = address
        return id in self._accepting

    def look_in_seconds(self) -> float:
        """How long until `look` has something to do."""
        now = self._clock()
        waits = [due - now for _, due in self._trials.values()]
        waits += [max(due - now, _PAUSE_SECONDS) for id, due in self._due.items() if id not in self._trials]
        return max(0.0, min(waits, default=float("inf")))

    def look(self) -> bool:
        """Try connections, and judge those tried before; whether that has changed what `accepts` says of somebody."""
        now, before = self._clock(), self._accepting
        for id, (trial, due) in list(self._trials.items()):
            if due <= now:
                del self._trials[id]
                self._accepting = self._accepting | {id} if trial.outcome() is Outcome.OPEN else self._accepting - {id}
                self._due[id] = now + _PAUSE_SECONDS
        for id, due in list(self._due.items()):
            if due <= now and id not in self._trials and id in self._addresses:
                self._trials[id] = self._connect(self._addresses[id]), now + _TRIAL_SECONDS
        return self._accepting != before

    def close(self) -> None:
        """Look no more."""
        for id in list(self._due):
            self.ended(id)
