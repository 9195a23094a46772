"""The gateways of one process, one after the other."""

from __future__ import annotations

import gc
import logging
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

from ..errors import RgateError
from .running import GatewayRuntime

if TYPE_CHECKING:
    from .gateway import Gateway

__all__ = ["NOTICE", "ReloadCoordinator", "freeze", "refusal"]

NOTICE: Final = "config"  # the key of gateway.readiness.warnings
LOOK_SECONDS: Final = 0.1
LAST_SECONDS: Final = 3_600.0  # for the requests that a gateway still has when another takes its place
_log = logging.getLogger("rgate.runtime")
_freezing = threading.Lock()


class ReloadCoordinator:
    """`gateway` runs from now on, and whichever reload() puts in its place.

    `compose` makes a gateway of the config as it is now, to take the place of the one that is given (RgateError when that
    cannot be). `serve` has new requests go to a gateway, and returns what tells whether all those are over that had begun
    before. A gateway that has been replaced is ended after the last of its requests, at the latest after an hour. Raises
    what a plugin's lifespan raises.
    """

    def __init__(
        self,
        gateway: Gateway,
        compose: Callable[[Gateway], Gateway],
        serve: Callable[[Gateway], Callable[[], bool]],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._compose = compose
        self._serve = serve
        self._clock = clock
        self._running = GatewayRuntime(gateway)
        self._reloading = threading.Lock()
        self._replaced: deque[tuple[GatewayRuntime, Callable[[], bool], float]] = deque()
        self._work = threading.Condition()
        self._over = False
        self._retiring: threading.Thread | None = None

    @property
    def gateway(self) -> Gateway:
        """The one in force."""
        return self._running.gateway

    def reload(self) -> str:
        """Take up the config as it is now: "" when it is in force, else why it is not, a line for each problem.

        Then everything is as before, and `readiness.warnings["config"]` says so. From any thread; one at a time.
        """
        with self._reloading:
            if self._over:
                return "the gateway is about to end"
            before = self._running
            warnings = before.gateway.readiness.warnings
            try:
                running = GatewayRuntime(self._compose(before.gateway), before)
            except RgateError as error:
                problems = str(error)
            except Exception as error:
                _log.exception("the config cannot be taken up")
                problems = f"{type(error).__name__}: {error}"
            else:
                running.take_over()
                self._running = running
                self._retire(before, self._serve(running.gateway))
                warnings.pop(NOTICE, None)
                return ""
            warnings[NOTICE] = refusal(problems)
            return problems

    def close(self) -> None:
        """End all of them; their requests should be over."""
        with self._reloading:
            self._over = True
            with self._work:
                self._work.notify()
                retiring = self._retiring
            if retiring is not None:
                retiring.join()
            self._running.end()

    def _retire(self, replaced: GatewayRuntime, is_over: Callable[[], bool]) -> None:
        with self._work:
            self._replaced.append((replaced, is_over, self._clock() + LAST_SECONDS))
            if self._retiring is None:
                self._retiring = threading.Thread(target=self._end_replaced, name="rgate-retire", daemon=True)
                self._retiring.start()

    def _end_replaced(self) -> None:
        """End what has been replaced, the oldest first: what one has kept may be in use by those before it."""
        while True:
            running, is_over, until = self._replaced[0]
            with self._work:
                while not (self._over or is_over() or self._clock() >= until):
                    self._work.wait(LOOK_SECONDS)
            running.end()
            del running, is_over
            with self._work:
                self._replaced.popleft()
                if not self._replaced:
                    self._retiring = None
                    break
        freeze()


def refusal(problems: str) -> str:
    """The notice about a config that is refused."""
    return f"refused, the one before is in force: {problems}"


def freeze() -> None:
    """Collect what is garbage, and have the collector leave alone what stays: it need not go through all of that again while
    requests wait. What was frozen before is looked at again, as a gateway that is over is garbage; a worker process thereby
    makes copies of what it has shared with the others (some 15 MB)."""
    with _freezing:  # else garbage that one has not collected yet is frozen by the other, for good
        gc.unfreeze()
        gc.collect()
        gc.freeze()
