"""How a record of the log looks: a line of text, or of JSON. Nothing that somebody else has chosen can end a line or steer a
terminal: this is the one place that escapes."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

__all__ = ["JSONFormatter", "TextFormatter", "json_line", "printable", "timestamp"]

_COLOURS: Final = {"green": 32, "yellow": 33, "red": 31}
_COLOUR_OF_LEVEL: Final = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


def printable(text: str) -> str:
    """`text` with everything escaped that is not shown as it is: control characters of C0 and C1, ends of lines, marks that
    turn the direction of writing, and halves of surrogate pairs."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def json_line(entry: dict[str, Any]) -> str:
    """The entry as JSON in one line of printable ASCII."""
    return json.dumps(entry, default=str).replace("\x7f", "\\u007f")


def timestamp(seconds: float) -> str:
    """A time of day (seconds since the epoch) in UTC, in the form of RFC 3339 with milliseconds."""
    second, millisecond = divmod(round(seconds * 1000), 1000)
    return f"{_second(second)}.{millisecond:03d}Z"


@lru_cache(maxsize=16)  # because the lines of one second have it in common
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class TextFormatter(logging.Formatter):
    """`2026-11-24T14:44:36.123Z ERROR rgate.plugin.registry: …`; what follows in other lines, as a traceback, is indented, so every line
    that begins with a time is a record. With `colours` for a terminal: by `extra={"colour": …}`, else by level."""

    def __init__(self, colours: bool = False) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        lines = record.getMessage().split("\n")
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        if record.stack_info:
            lines += record.stack_info.split("\n")
        first, *others = map(printable, lines)
        text = "\n    ".join([f"{timestamp(record.created)} {record.levelname} {record.name}: {first}", *others])
        colour = getattr(record, "colour", None) or _COLOUR_OF_LEVEL.get(record.levelname)
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self._colours and colour in _COLOURS else text


class JSONFormatter(logging.Formatter):
    """An object in one line: time, level, logger, pid, message, then what `extra={"fields": {…}}` says, and exception: the
    traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        entry: dict[str, Any] = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json_line(entry)
