"""The options of `health`: `plugins: {health: …}`, or `health:` of a backend."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from rgate import Flag, RequestHeaders, Seconds, StrictFloat, StrictInt

__all__ = ["OFF", "HealthOptions"]

_STATUSES = re.compile(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?")
_PATH = re.compile(r"/[!-~]*")


def _path(text: str) -> str:
    if not _PATH.fullmatch(text) or "#" in text:
        raise ValueError(f"{text!r} is not a path; write one like /health, with a query if needed")
    return text


def _numbers_as_text(value: Any) -> Any:
    values = value if isinstance(value, list | tuple) else [value]
    return [str(each) if isinstance(each, int) and not isinstance(each, bool) else each for each in values]


def _statuses(text: str) -> str:
    match = _STATUSES.fullmatch(text)
    if match is None or int(match[1]) > int(match[2] or match[1]):
        raise ValueError(f"{text!r} is not a status; write one like 200, or a range like 200-399")
    return text


class HealthOptions(BaseModel):
    """When an endpoint stops getting requests, and when it gets them again.

    An endpoint is ejected after `consecutive_faults` in a row, or if `fault_percent` of at least `min_requests` within
    `window_seconds` have failed; 0 turns either off. An ejection lasts `eject_seconds`, each consecutive one twice as long, up to
    `max_eject_seconds`. At most `max_ejected_percent` of the endpoints are ejected at a time, but always at least one, unless it
    is 0.

    With a `path`, every endpoint is checked every `interval_seconds` by a request for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    consecutive_faults: Annotated[StrictInt, Field(ge=0, le=1_000)] = 5
    fault_percent: Annotated[StrictFloat, Field(ge=0, le=100)] = 50.0
    min_requests: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = 20
    window_seconds: Seconds = 10.0
    count_5xx: Flag = False
    eject_seconds: Seconds = 1.0
    max_eject_seconds: Seconds = 3.0
    max_ejected_percent: Annotated[StrictFloat, Field(ge=0, le=100)] = 100.0
    on_all_unhealthy: Literal["use_all", "fail"] = "use_all"
    slow_start_seconds: Annotated[StrictFloat, Field(ge=0, le=3_600)] = 0.0
    path: Annotated[str, AfterValidator(_path)] | None = None
    interval_seconds: Annotated[StrictFloat, Field(ge=0.1, le=3_600)] = 5.0
    timeout_seconds: Annotated[StrictFloat, Field(ge=0.01, le=60)] = 2.0
    expected_status: Annotated[
        tuple[Annotated[str, AfterValidator(_statuses)], ...], BeforeValidator(_numbers_as_text), Field(min_length=1)
    ] = ("200-399",)
    headers: RequestHeaders = Field(default={})
    healthy_threshold: Annotated[StrictInt, Field(ge=1, le=100)] = 1
    unhealthy_threshold: Annotated[StrictInt, Field(ge=1, le=100)] = 3

    def expects(self, status: int) -> bool:
        """Whether a check that is answered with this status has succeeded."""
        return any(int(one[:3]) <= status <= int(one[-3:]) for one in self.expected_status)


OFF = HealthOptions(consecutive_faults=0, fault_percent=0.0, max_ejected_percent=0.0)
"""The rules for a backend with `health: false`: nothing is counted, checked or ejected."""
