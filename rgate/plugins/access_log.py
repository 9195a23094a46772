"""access_log: one line per request on stdout, when asked for (`--access-log`, or the section below).

    plugins:
      access_log:
        format: text               # or json; without this line there is no access log and nothing in the chain

    2026-11-24T08:41:15.123Z 6f0c11d2-1a 127.0.0.1 "GET /api/orders/17?x=1" 200 312 1.4ms route=/api/orders
        backend=orders endpoint=orders-1 attempts=1                                           (all in one line)

A fault adds `reason=refused`; what is not known is "-". In JSON the keys are time, request_id, client, method, target,
status, reason, bytes, duration_ms, route, backend, endpoint, attempts; what is not known is null. The time is that of
the end of the response (UTC). Whatever a client can choose is escaped: a request makes one line, never two.

A request only leaves a record in memory (1.3 µs); a thread of its own makes the lines (5 to 8 µs each) and writes them, ten
times a second. So a slow or blocked stdout delays no request; records over the bound are lost, and the log of the gateway
says how many.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import lru_cache
from time import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO

from pydantic import BaseModel, ConfigDict

from rgate import ConfigSection, Exchange, Gateway, Middleware, hookimpl

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["AccessLog", "AccessLogOptions", "Record", "as_json", "as_text"]

_log = logging.getLogger("rgate.access_log")
_PLAIN = re.compile(r"[!#-\[\]-~]+").fullmatch


class AccessLogOptions(BaseModel):
    """`format` is that of a line; None (the default) means no access log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["text", "json"] | None = None


class Record(NamedTuple):
    """One finished request. `ended` is in seconds since the epoch; the rest is as in the request or the environ."""

    ended: float
    exchange: Exchange
    client: str
    method: str
    target: str


class AccessLog:
    """Takes records from any thread, without blocking, and writes them in its own."""

    FLUSH_SECONDS = 0.1
    MAX_RECORDS = 10_000

    def __init__(self, line: Callable[[Record], str]) -> None:
        self._line = line
        self._records: deque[Record] = deque()
        self._lost = 0

    def add(self, record: Record) -> None:
        """Have the record written soon. Over MAX_RECORDS it is lost."""
        if len(self._records) < self.MAX_RECORDS:
            self._records.append(record)
        else:
            self._lost += 1  # no lock: two threads at once may count one, and the warning says "at least"

    def flush(self, stream: TextIO) -> None:
        """Write what there is. A stream that fails loses it."""
        records, lost = self._records, self._lost
        lines = [self._line(records.popleft()) for _ in range(len(records))]
        try:
            if lines:
                stream.write("\n".join(lines) + "\n")
                stream.flush()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._lost += len(lines)
            _log.debug("cannot write: %s", error)
        if lost:
            self._lost -= lost
            words = "at least %d lines are lost: stdout cannot be written, or not fast enough"
            _log.warning(words, lost, extra={"about": ""})


class Writing:
    """While entered, a thread writes what `log` has to `stream`; what is left goes out at the end."""

    def __init__(self, log: AccessLog, stream: TextIO) -> None:
        self._log = log
        self._stream = stream
        self._stop = threading.Event()

    def __enter__(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._write, name="rgate-access-log", daemon=True)
        self._thread.start()

    def __exit__(self, *failure: object) -> None:
        self._stop.set()
        # Not for ever: a reader that has stopped reading must not keep the gateway from ending.
        self._thread.join(timeout=2)

    def _write(self) -> None:
        while not self._stop.wait(self._log.FLUSH_SECONDS):
            self._log.flush(self._stream)
        self._log.flush(self._stream)


def as_text(record: Record) -> str:
    """The record in one line."""
    ended, exchange, client, method, target = record
    route, backend, endpoint = map(_escaped, _way(exchange))
    return (
        f'{_time(ended)} {exchange.id} {_escaped(client)} "{_escaped(method)} {_escaped(target)}" {exchange.status}'
        f" {exchange.bytes_sent} {exchange.elapsed_seconds * 1000:.1f}ms route={route} backend={backend} endpoint={endpoint}"
        f" attempts={exchange.attempts}{f' reason={exchange.error.reason}' if exchange.error is not None else ''}"
    )


def as_json(record: Record) -> str:
    """The record as a JSON object in one line, in ASCII."""
    ended, exchange, client, method, target = record
    route, backend, endpoint = _way(exchange)
    entry = {
        "time": _time(ended),
        "request_id": exchange.id,
        "client": client or None,
        "method": method or None,
        "target": target or None,
        "status": exchange.status,
        "reason": exchange.error.reason if exchange.error is not None else None,
        "bytes": exchange.bytes_sent,
        "duration_ms": round(exchange.elapsed_seconds * 1000, 3),
        "route": route,
        "backend": backend,
        "endpoint": endpoint,
        "attempts": exchange.attempts,
    }
    return json.dumps(entry)


def _way(exchange: Exchange) -> tuple[str | None, str | None, str | None]:
    """The names of route, backend and endpoint, as far as the request has come."""
    route, endpoint = exchange.route, exchange.endpoint
    return (
        route.name if route is not None else None,
        route.backend.name if route is not None else None,
        endpoint.name if endpoint is not None else None,
    )


def _time(ended: float) -> str:
    second, millisecond = divmod(round(ended * 1000), 1000)
    return f"{_second(second)}.{millisecond:03d}Z"


@lru_cache(maxsize=16)  # because the lines of one second have it in common
def _second(ended: int) -> str:
    return datetime.fromtimestamp(ended, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _escaped(value: str | None) -> str:
    """One word of printable ASCII without a quote, whatever the client has sent."""
    if not value:
        return "-"
    if _PLAIN(value):
        return value
    return value.encode("unicode_escape").decode("ascii").replace('"', "\\x22").replace(" ", "\\x20")


def log_of(gateway: Gateway) -> AccessLog | None:
    """The log of `gateway`, and of those before and after it as long as the lines have the same form; None without one."""
    options: AccessLogOptions | None = gateway.options("access_log")
    form = options.format if options is not None else None
    if form is None:
        return None
    return gateway.keep("access_log", form, lambda: AccessLog(as_json if form == "json" else as_text))


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("access_log", AccessLogOptions)


@hookimpl
def rgate_middlewares(gateway: Gateway) -> Middleware | None:
    log = log_of(gateway)
    if log is None:
        return None
    add = log.add
    exchange_of = Exchange.of

    def wrap(app: WSGIApplication, options: Any) -> WSGIApplication:
        def logged(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            # Now, because a middleware may change them: what is logged is what the client sent.
            get = environ.get
            client, method = get("REMOTE_ADDR", ""), get("REQUEST_METHOD", "")
            target = get("RAW_URI") or get("REQUEST_URI") or get("PATH_INFO", "")
            exchange_of(environ).on_finish(lambda exchange: add(Record(time(), exchange, client, method, target)))
            return app(environ, start_response)

        return logged

    return Middleware("access_log", wrap, edits_environ=False)


@hookimpl
def rgate_lifespan(gateway: Gateway) -> AbstractContextManager[None] | None:
    log = log_of(gateway)
    return gateway.keep("access_log.writing", log, lambda: Writing(log, sys.stdout)) if log is not None else None
