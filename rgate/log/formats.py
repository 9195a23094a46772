"""Formats log records as text or JSON. All escaping is done here: no input can end a line or control a terminal."""

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
    """`text` with every unprintable character escaped: control characters (C0, C1), line ends, marks that change the writing
    direction, and lone surrogates."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def json_line(entry: dict[str, Any]) -> str:
    """The entry as one line of JSON in printable ASCII."""
    return json.dumps(entry, default=str).replace("\x7f", "\\u007f")


def timestamp(seconds: float) -> str:
    """A time (seconds since the epoch) in UTC as RFC 3339 writes it, with milliseconds."""
    second, millisecond = divmod(round(seconds * 1000), 1000)
    return f"{_second(second)}.{millisecond:03d}Z"


@lru_cache(maxsize=16)  # the lines of one second share it
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class TextFormatter(logging.Formatter):
    """`2026-11-24T14:44:36.123Z ERROR rgate.plugin: …`

    Further lines, such as a traceback, are indented, so every line that begins with a time is a record. With `colours`, for a
    terminal, a record is coloured by `extra={"colour": …}`, or else by its level.
    """

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
    """One JSON object per line: time, level, logger, pid, message, the entries of `extra={"fields": {…}}`, and exception (the
    traceback)."""

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
