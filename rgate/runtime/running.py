"""A gateway that runs: its plugins' lifespans, its discovery, its upkeep, and how all of it goes over to the next one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..plugin.lifespan import Lifespan
    from .gateway import Gateway

__all__ = ["GatewayRuntime"]

UPKEEP_SECONDS: Final = 2.0


class GatewayRuntime:
    """`gateway` runs from now on: its plugins' lifespans have begun, discovery has tried every source once.

    `before` is the one whose place it is to take. Until take_over() that one runs as if nothing were; end() instead undoes what
    has been begun. A lifespan that is the same object as one of `before` (a plugin has kept it) and a discovery source that
    equals one go on: they neither begin again nor end. Raises PluginError when a lifespan cannot start, with everything undone.
    """

    def __init__(self, gateway: Gateway, before: GatewayRuntime | None = None) -> None:
        self.gateway = gateway
        self._before = before
        self._after: GatewayRuntime | None = None
        self._lifespans: list[Lifespan] = []
        self._stop = threading.Event()
        self._upkeep = threading.Thread(target=self._keep_upstreams, name="rgate-upstreams", daemon=True)
        try:
            for lifespan in gateway.registry.lifespans(gateway):
                if before is None or not before._has(lifespan):
                    lifespan.start()
                self._lifespans.append(lifespan)
            gateway.table.start()
        except BaseException:
            self.end()
            raise
        if before is None:
            gateway.in_force = True
            self._upkeep.start()

    def take_over(self) -> None:
        """Be the gateway in force: what goes on is this one's from now on. `before` serves its requests in flight, and is to
        be ended after the last of them."""
        before, self._before = self._before, None
        assert before is not None
        before._stop.set()
        before._after = self
        before._lifespans = [lifespan for lifespan in before._lifespans if not self._has(lifespan)]
        self.gateway.take_over(before.gateway)
        self._upkeep.start()

    def end(self) -> None:
        """Stop discovery, end the lifespans, the last first, and close what nobody keeps. Never fails."""
        self._stop.set()
        self.gateway.in_force = False
        if self._upkeep.ident is not None:
            self._upkeep.join()
        self.gateway.table.stop()
        for lifespan in reversed(self._lifespans):
            if self._before is None or not self._before._has(lifespan):
                lifespan.stop()
        beside = self._before or self._after
        self.gateway.close(beside.gateway if beside else None)

    def _has(self, lifespan: Lifespan) -> bool:
        return any(lifespan.is_same_as(own) for own in self._lifespans)

    def _keep_upstreams(self) -> None:
        """Close connections that rest for too long, and those to endpoints that are gone."""
        while not self._stop.wait(UPKEEP_SECONDS):
            self.gateway.tidy()
