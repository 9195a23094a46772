"""Reload in a single process: when it is asked for, and when the files have changed."""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING

from .reload_trigger import ReloadTrigger

if TYPE_CHECKING:
    from ..runtime.config_file import ConfigFile
    from ..runtime.reload_coordinator import ReloadCoordinator

__all__ = ["Reloader"]


class Reloader:
    """Between start() and end() a thread looks at the files of `source`, if the config in force says so, and has `succession`
    reload."""

    def __init__(self, succession: ReloadCoordinator, source: ConfigFile) -> None:
        self._succession = succession
        self._watching = ReloadTrigger(source)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._wanted = False
        self._over = False
        self._thread = threading.Thread(target=self._watch, name="rgate-reload", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def end(self) -> None:
        """Look no more, and wait for a reload that is under way."""
        self._over = True
        self._wake.set()
        self._thread.join()

    def want(self) -> None:
        """Reload soon. Returns at once; for signals."""
        self._wanted = True
        self._wake.set()

    def reload(self) -> str:
        """Reload now: why the config is refused, or ""."""
        with self._lock:
            problems = self._reload(asked=True)
        self._wake.set()  # whether to look at files may be another now, and which
        return problems

    def _reload(self, asked: bool) -> str:
        self._watching.begins(asked)
        problems = self._succession.reload()
        self._watching.concluded(problems, asked)
        return problems

    def _watch(self) -> None:
        while not self._over:
            looks = self._succession.gateway.config.server.reload_on_change
            self._wake.wait(max(0.0, self._watching.next_look - monotonic()) if looks else None)
            self._wake.clear()
            wanted, self._wanted = self._wanted, False
            with self._lock:
                if not self._over and (wanted or (looks and self._watching.is_due())):
                    self._reload(asked=wanted)
