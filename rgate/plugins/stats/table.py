"""The answer of `/stats` as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["print_report", "tables"]

_NUMBERS = ("success", "error", "average ms", "p95 ms", "p99 ms")


def print_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what `/stats` answered: totals, then a row per group, then what is wrong with the database, if anything."""
    console = console or Console()
    for part in tables(report):
        console.print(part)


def tables(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The parts of a report, in the order to print them."""
    since = report.get("since")
    total = _table(f"Requests since {_shown(since)}" if since else "Requests")
    total.add_row(*_numbers(report))
    yield total
    if groups := report.get("groups"):
        names = [name for name in groups[0] if name not in ("requests_count", "latency_ms")]
        divided = _table(f"By {', '.join(map(_shown, names))}", *map(_shown, names))
        for group in groups:
            divided.add_row(*(Text(_shown(group[name])) for name in names), *_numbers(group))
        yield divided
    if storage := report.get("storage"):
        yield Text("Database: " + "; ".join(_storage(storage)), style="yellow")


def _table(title: str, *names: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for name in names:
        table.add_column(Text(name), overflow="fold")
    for name in _NUMBERS:
        table.add_column(name, justify="right")
    return table


def _numbers(part: Mapping[str, Any]) -> Iterator[str]:
    counts, latency = part["requests_count"], part["latency_ms"]
    yield from (f"{counts[name]:,}" for name in ("success", "error"))
    yield from (f"{latency[name]:,.3f}" for name in ("average", "p95", "p99"))


def _storage(storage: Mapping[str, Any]) -> Iterator[str]:
    yield _shown(storage["state"])
    for name in ("lost", "unsaved"):
        if storage.get(name):
            yield f"{storage[name]:,} {name}"
    if begun := storage.get("begun"):
        yield f"begun anew {_shown(begun['at'])}: {_shown(begun['because'])}"


def _shown(value: object) -> str:
    """A value without control characters: it may come from another machine."""
    return "-" if value is None else "".join(c if c.isprintable() else "?" for c in str(value))
