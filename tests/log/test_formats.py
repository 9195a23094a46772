"""The form of the log: text and JSON, one record a line, nothing raw."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from rgate.log.formats import JSONFormatter, TextFormatter, printable, timestamp

HOSTILE = ["a\x1b[2Jb", "a\x9b31mb", "a\x85b", "a\x7fb", "a\rb", "a\x00b", "a\u2028b", "a\u202eb", "a\ud800b"]


def record(message: str = "it failed", level: int = logging.WARNING, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("rgate.x", level, "", 0, "%s", (message,), None)
    made.created = 1_795_509_675.123
    made.__dict__.update(extra)
    return made


def failure() -> logging.LogRecord:
    made = record("it failed")
    try:
        raise ValueError("of\n2026-11-24T08:41:15.123Z ERROR forged: \x9b2J")
    except ValueError:
        made.exc_info = sys.exc_info()
    return made


def test_time_is_utc_with_milliseconds() -> None:
    assert timestamp(1_795_509_675.123) == "2026-11-24T08:41:15.123Z"
    assert timestamp(1_795_509_675.9999) == "2026-11-24T08:41:16.000Z"


def test_text_has_time_level_and_logger() -> None:
    assert TextFormatter().format(record()) == "2026-11-24T08:41:15.123Z WARNING rgate.x: it failed"


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_control_character_comes_through(text: str) -> None:
    assert printable(text).isprintable()
    assert TextFormatter().format(record(text)).isprintable()
    line = JSONFormatter().format(record(text))
    assert line.isascii() and line.isprintable()
    assert json.loads(line)["message"] == text


def test_other_lines_of_a_record_are_indented_so_none_is_forged() -> None:
    first, *others = TextFormatter().format(failure()).split("\n")
    assert first.endswith(" rgate.x: it failed")
    assert others[0] == "    Traceback (most recent call last):"
    assert "    2026-11-24T08:41:15.123Z ERROR forged: \\x9b2J" in others
    assert all(line.startswith("    ") and line.isprintable() for line in others)


def test_json_is_one_line_with_fields_and_traceback() -> None:
    made = failure()
    made.__dict__["fields"] = {"backend": "orders", "names": ("a",)}
    entry = json.loads(JSONFormatter().format(made))
    assert "Traceback" in entry.pop("exception")
    pid = entry.pop("pid")
    assert pid == made.process
    assert entry == {
        "time": "2026-11-24T08:41:15.123Z",
        "level": "warning",
        "logger": "rgate.x",
        "message": "it failed",
        "backend": "orders",
        "names": ["a"],
    }


def test_colours_are_for_terminals_by_level_or_by_what_the_record_says() -> None:
    formatter = TextFormatter(colours=True)
    assert formatter.format(record()).startswith("\x1b[33m2026")
    assert formatter.format(record(level=logging.INFO)).startswith("2026")
    assert formatter.format(record(level=logging.INFO, colour="green")).endswith("it failed\x1b[0m")
