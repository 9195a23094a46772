"""Event: an event of a Docker engine, and the signals by which a container is stopped. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Event", "is_stop", "stop_signal", "stop_timeout_seconds"]

# The numbers of Linux, from 1, whatever system rgate itself runs on.
_NAMES = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ"
    " VTALRM PROF WINCH IO PWR SYS"
)
_NUMBERS = {name: number for number, name in enumerate(_NAMES.split(), 1)}
_FIRST_REALTIME = 34
_STOPS = frozenset(_NUMBERS[name] for name in ("INT", "QUIT", "KILL", "TERM"))

_DEFAULT_STOP_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a container, or of a container and a network.

    `action` is without the text after a colon ("health_status: healthy"). `attributes` of a container's event include its
    labels. `time_ns` is the time by the engine's clock.
    """

    action: str
    container: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    time_ns: int = 0

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Event:
        """From a line of GET /events."""
        actor = record.get("Actor")
        actor = actor if isinstance(actor, dict) else {}
        attributes = actor.get("Attributes")
        attributes = attributes if isinstance(attributes, dict) else {}
        id = attributes.get("container") if record.get("Type") == "network" else actor.get("ID")
        time_ns = record.get("timeNano")
        return cls(
            action=str(record.get("Action") or "").partition(":")[0],
            container=str(id or ""),
            attributes=attributes,
            time_ns=time_ns if isinstance(time_ns, int) else 0,
        )

    def has_any_label(self, label_names: Iterable[str]) -> bool:
        """Whether the container has one of these labels. True as well for an attribute of that name (image, name, …)."""
        return any(name in self.attributes for name in label_names)

    @property
    def signal(self) -> int:
        """The number of the signal that a `kill` event reports; 0 if it reports none."""
        return _number(self.attributes.get("signal"))


def is_stop(signal: int) -> bool:
    """Whether this signal ends any ordinary program. An unknown signal (0) counts as one that does."""
    return signal == 0 or signal in _STOPS


def stop_signal(record: Mapping[str, Any]) -> int:
    """The number of the signal that `docker stop` sends to this container. `record` is from GET /containers/{id}/json."""
    return _number(_config(record).get("StopSignal")) or _NUMBERS["TERM"]


def stop_timeout_seconds(record: Mapping[str, Any]) -> float:
    """How long `docker stop` waits by default before it kills this container."""
    seconds = _config(record).get("StopTimeout")
    return float(seconds) if isinstance(seconds, int) and seconds >= 0 else _DEFAULT_STOP_TIMEOUT_SECONDS


def _config(record: Mapping[str, Any]) -> Mapping[str, Any]:
    config = record.get("Config")
    return config if isinstance(config, dict) else {}


def _number(signal: Any) -> int:
    """15 for 15, "15", "TERM" and "SIGTERM"; 37 for "SIGRTMIN+3"; 0 for anything that is not a signal."""
    name = str(signal or "").upper().removeprefix("SIG")
    base, name = (_FIRST_REALTIME, name.removeprefix("RTMIN") or "0") if name.startswith("RTMIN") else (0, name)
    try:
        return _NUMBERS.get(name) or base + int(name)
    except ValueError:
        return 0
