"""Console: tables and lines for the terminal. Only this package prints.

On a terminal, tables are coloured and fit its width; in a pipe or file they are plain columns with complete values.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from ..discovery import Change, remarks
from ..log import printable

if TYPE_CHECKING:
    from ..config import Route
    from ..discovery import Snapshot
    from ..plugin.entry_points import PluginRecord
    from ..runtime.gateway import Gateway

__all__ = ["Console"]

_PIPE_WIDTH = 1_000
_NUMBERS = ("REQUESTS", "SUCCESS", "ERROR", "AVERAGE", "P95", "P99")


class Console:
    """Writes to `stream` (default: the current stdout). Safe to use from several threads."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")  # a locale without arrows must not prevent the start
        rich = RichConsole(file=self._stream, highlight=False, markup=False, emoji=False)
        self._terminal = rich.is_terminal
        self._rich = rich if rich.is_terminal else RichConsole(file=self._stream, width=_PIPE_WIDTH, color_system=None)

    def line(self, text: str, style: str = "") -> None:
        """Print a line. Control characters in it are escaped."""
        self._rich.print(Text(printable(text), style), soft_wrap=True, highlight=False)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table, without columns that are empty in every row."""
        rows = [[printable(cell) for cell in row] for row in rows]
        shown = [at for at in range(len(columns)) if any(row[at] for row in rows)]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for at in shown:
            table.add_column(Text(columns[at]), justify="right" if columns[at] in _NUMBERS else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(row[at]) for at in shown))
        if self._terminal:
            self._rich.print(table)
            return
        with self._rich.capture() as capture:
            self._rich.print(table)
        for line in capture.get().splitlines():
            self._stream.write(line.rstrip() + "\n")
        self._stream.flush()

    def routes(self, gateway: Gateway) -> None:
        """Print a row for every endpoint of every route, and the reasons why others cannot be used."""
        self.table(("ROUTE", "BACKEND", "ENDPOINT", "ADDRESS"), self.route_rows(gateway))
        for change in remarks(gateway.table.snapshot):
            self.print_change(change)

    def route_rows(self, gateway: Gateway) -> list[Sequence[str]]:
        """The rows of that table: route, backend, endpoint and address."""
        snapshot = gateway.table.snapshot
        rows = [row for route in gateway.routes for row in _route_rows(route, snapshot)]
        return [*rows, ("all others", "", f"{gateway.config.default_response.status_code} default_response", "")]

    def print_change(self, change: Change) -> None:
        """Print a line about a change that discovery has found."""
        self.line(str(change), {"+": "green", "-": "yellow", "!": "red", "?": "red", "~": ""}[change.sign])

    def plugins(self, records: Iterable[PluginRecord], chains: Mapping[str, Sequence[str]]) -> None:
        """Print all plugins, then the chain of every route."""
        self.table(
            ("PLUGIN", "DISTRIBUTION", "VERSION", "ACTIVE", "HOOKS"),
            [
                (record.name, record.distribution, record.version, "yes" if record.active else "no", _hooks(record))
                for record in records
            ],
        )
        if chains:
            self.line("")
            rows = [(name, " → ".join([*chain, "forwarder"])) for name, chain in chains.items()]
            self.table(("ROUTE", "CHAIN, OUTERMOST FIRST"), rows)

    def stats(self, report: Mapping[str, Any]) -> None:
        """Print a report in the form of `/stats`: the total, and the groups if it has any."""
        if since := report.get("since"):
            self.line(f"Since {since}", "bold")
        groups = report.get("groups", ())
        by = [name for name in (groups or [{}])[0] if name not in ("requests_count", "latency_ms", "retries", "count")]
        rows = [(*("-" if group[name] is None else str(group[name]) for name in by), *_numbers(group)) for group in groups]
        if by and "plugin" not in by:
            rows.append(("all", *[""] * (len(by) - 1), *_numbers(report)))
        counts = ("COUNT",) if "plugin" in by else ("SUCCESS", "ERROR")
        self.table((*(name.upper() for name in by), *counts, "AVERAGE", "P95", "P99"), rows or [_numbers(report)])
        if retries := report.get("retries"):
            self.line(f"{retries['requests']:,} requests took {retries['attempts']:,} attempts")
        if storage := report.get("storage"):
            self.line(f"The database is {storage['state']}: {storage['unsaved']} requests unsaved, {storage['lost']} lost", "red")
            if begun := storage.get("begun"):
                self.line(f"It was recreated at {begun['at']}: {begun['because']}", "red")


def _route_rows(route: Route, snapshot: Snapshot) -> Iterable[Sequence[str]]:
    backend = route.backend.name
    exclusions = {each.endpoint.key: f" ({each})" for each in snapshot.excluded.get(backend, ())}
    found = [(e.name, f"{e.address}{exclusions.get(e.key, '')}") for e in snapshot.found[backend]]
    found += [(instance.name, f"not usable: {instance.reason}") for instance in snapshot.unusable[backend]]
    first = (_match(route), backend)
    for name, address in found or [("none yet: requests get a 503 until there is one", "")]:
        yield (*first, name, "" if address == name else address)
        first = ("", "")


def _match(route: Route) -> str:
    """The conditions of a route in words: methods, host and path, headers."""
    parts = [*route.methods, "|".join(route.hosts) + (route.path_prefix or "/")]
    return " ".join([*parts, *(f"{name}={value}" for name, value in route.headers.items())])


def _hooks(record: PluginRecord) -> str:
    return "unknown until it is active" if record.hooks is None else ", ".join(h.removeprefix("rgate_") for h in record.hooks)


def _numbers(report: Mapping[str, Any]) -> tuple[str, ...]:
    latency = report["latency_ms"]
    counts = (report["count"],) if "count" in report else report["requests_count"].values()
    return (*(f"{count:,}" for count in counts), *(f"{latency[name]:,.2f} ms" for name in ("average", "p95", "p99")))
