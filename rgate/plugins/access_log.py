"""access_log: writes a line for every failed request, or for every request.

    plugins:
      access_log:
        requests: failed           # default; or all, or none. With a format, or --access-log, the default is all
        format: text               # or json: the form of the lines that `all` writes to stdout
        fields: [host, route, endpoint, reason, user_agent]
        redact: [token, signature]

By default each failed request is a line of the gateway's log on stderr: at level warning for status 500 and above, at level info
below that and for faults of the client:

    2026-11-24T08:41:15.123Z WARNING rgate.access: 6f0c11d2-1a 127.0.0.1 "GET /api/orders/17?x=1" 503 101 2.1ms host=shop.example
        route=/api/orders backend=orders endpoint=orders-1 attempts=1 reason=refused detail="…"      (all in one line)

A request has failed if the gateway answered it with a status of 400 or more, if its backend answered with 500 or more, or if its
response broke off. Equal lines are not merged, so the `request_id` that a client received can always be found.

With `requests: all` every request, failed or not, has a line on stdout, and none in the log. In JSON the keys are the names in
FIELDS, and unknown values are null. In text an unknown value is "-". `bytes` is the length of the response's body,
`request_bytes` the Content-Length of the request, `first_byte_ms` the time until the response began. `time` is that of the end of
the response, in UTC. All text that a client can choose is escaped and limited in length, so a request never makes two lines.

The values of the query parameters in `redact` are written as ***, also within the Referer. The default is a list of usual names
of secrets.

With `all`, a request thread only leaves a record in memory (2 µs), and the writer thread makes the line (8 µs). With `failed`, a
request that does not fail costs nothing.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict

from rgate import ConfigSection, Exchange, Gateway, Middleware, RequestError, StreamWriter, hookimpl, json_line, timestamp

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["FIELDS", "AccessLog", "AccessLogOptions", "Record", "Sent"]

FieldName = Literal[
    "time",
    "request_id",
    "client",
    "host",
    "method",
    "target",
    "protocol",
    "scheme",
    "status",
    "reason",
    "detail",
    "bytes",
    "request_bytes",
    "duration_ms",
    "first_byte_ms",
    "route",
    "backend",
    "endpoint",
    "attempts",
    "user_agent",
    "referer",
]
FIELDS: Final[tuple[FieldName, ...]] = get_args(FieldName)
_IN_HEAD: Final = frozenset({"time", "request_id", "client", "method", "target", "status", "bytes", "duration_ms"})
_TEXT_FIELDS: Final[tuple[FieldName, ...]] = ("host", "route", "backend", "endpoint", "attempts", "reason", "detail")
_ONLY_WHERE_KNOWN: Final = frozenset({"reason", "detail"})
_QUOTED: Final = frozenset({"detail", "user_agent", "referer"})
REDACTED: Final = (
    "access_token",
    "api_key",
    "apikey",
    "auth",
    "client_secret",
    "code",
    "id_token",
    "jwt",
    "key",
    "password",
    "passwd",
    "pwd",
    "refresh_token",
    "secret",
    "session",
    "sid",
    "sig",
    "signature",
    "token",
    "x-amz-credential",
    "x-amz-security-token",
    "x-amz-signature",
    "x-goog-credential",
    "x-goog-signature",
)

MAX_TARGET: Final = 2_048  # characters of the target in a line
MAX_VALUE: Final = 512  # characters of any other value
END_SECONDS: Final = 2.0
_log = logging.getLogger("rgate.access")
_PLAIN = re.compile(r"[!#-\[\]-~]+").fullmatch


class AccessLogOptions(BaseModel):
    """`requests` says which requests have a line: failed ones (in the gateway's log), all (on stdout), or none. The default is
    `all` if a `format` is given, else `failed`.

    `fields` are the values in a line; in text they follow those that every line begins with. `redact` has the names of query
    parameters, matched in any case, whose values are not written; None means REDACTED.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: Literal["failed", "all", "none"] | None = None
    format: Literal["text", "json"] | None = None
    fields: tuple[FieldName, ...] | None = None
    redact: tuple[str, ...] | None = None

    @property
    def which(self) -> str:
        """`requests` with its default."""
        return self.requests or ("all" if self.format is not None else "failed")


class Sent(NamedTuple):
    """The logged parts of a request, as the client sent them; unknown ones are ""."""

    client: str
    host: str
    method: str
    target: str
    protocol: str
    scheme: str
    length: str
    user_agent: str
    referer: str


class Record(NamedTuple):
    """One finished request. `ended` is in seconds since the epoch; `begun`, when the response began, in monotonic seconds, 0.0 if
    that is not known."""

    ended: float
    exchange: Exchange
    sent: Sent
    begun: float = 0.0


def sent(environ: WSGIEnvironment) -> Sent:
    """The logged parts of the request in an environ."""
    get = environ.get
    method, host = get("REQUEST_METHOD", ""), get("HTTP_HOST", "")
    target = get("RAW_URI") or get("REQUEST_URI") or get("PATH_INFO", "")
    protocol = get("SERVER_PROTOCOL", "")
    if (unread := get("rgate.unparsed")) is not None:  # the server could not parse the request; the other keys are placeholders
        method, target, host = unread
        protocol = ""
    return Sent(
        get("REMOTE_ADDR", ""),
        host,
        method,
        target,
        protocol,
        get("wsgi.url_scheme", ""),
        get("CONTENT_LENGTH", ""),
        get("HTTP_USER_AGENT", ""),
        get("HTTP_REFERER", ""),
    )


def _backend(it: Record) -> str | None:
    route, endpoint = it.exchange.route, it.exchange.endpoint
    return endpoint.backend if endpoint is not None else route.backend.name if route is not None else None


_GET: Final[dict[FieldName, Callable[[Record], Any]]] = {
    "time": lambda it: timestamp(it.ended),
    "request_id": lambda it: it.exchange.id,
    "client": lambda it: it.sent.client or None,
    "host": lambda it: it.sent.host[:MAX_VALUE] or None,
    "method": lambda it: it.sent.method[:MAX_VALUE] or None,
    "protocol": lambda it: it.sent.protocol or None,
    "scheme": lambda it: it.sent.scheme or None,
    "status": lambda it: it.exchange.status,
    "reason": lambda it: it.exchange.error.reason if it.exchange.error is not None else None,
    "detail": lambda it: it.exchange.error.detail[:MAX_VALUE] or None if it.exchange.error is not None else None,
    "bytes": lambda it: it.exchange.bytes_sent,
    "request_bytes": lambda it: int(it.sent.length) if it.sent.length.isdecimal() else None,
    "duration_ms": lambda it: round(it.exchange.elapsed_seconds * 1000, 3),
    "first_byte_ms": lambda it: round((it.begun - it.exchange.started) * 1000, 3) if it.begun else None,
    "route": lambda it: it.exchange.route.name if it.exchange.route is not None else None,
    "backend": _backend,
    "endpoint": lambda it: it.exchange.endpoint.name if it.exchange.endpoint is not None else None,
    "attempts": lambda it: it.exchange.attempts,
    "user_agent": lambda it: it.sent.user_agent[:MAX_VALUE] or None,
}


class AccessLog:
    """Makes lines in one form ("text" or "json"). `writer` receives those of `requests: all`."""

    def __init__(self, options: AccessLogOptions, form: str, writer: StreamWriter | None = None) -> None:
        self.as_json = form == "json"
        self.writer = writer
        chosen = options.fields
        names = (chosen or FIELDS) if self.as_json else tuple(n for n in chosen or _TEXT_FIELDS if n not in _IN_HEAD)
        get: dict[FieldName, Callable[[Record], Any]] = {
            **_GET,
            "target": lambda it: self._redacted(it.sent.target, MAX_TARGET),
            "referer": lambda it: self._redacted(it.sent.referer, MAX_VALUE),
        }
        self._columns = [(name, get[name]) for name in names]
        secrets = "|".join(re.escape(name) for name in (REDACTED if options.redact is None else options.redact))
        self._secret = re.compile(rf"(?<=[?&;])((?:{secrets})=)[^&;#]*", re.IGNORECASE) if secrets else None

    def add(self, record: Record) -> None:
        """Queue the line of a finished request."""
        assert self.writer is not None
        if record.exchange.error is not None:  # formatted now: its traceback keeps the failed code's objects alive
            self.writer.write(f"{self.line(record)}\n".encode())
        else:
            it = record.sent
            size = 1_000 + len(it.target) + len(it.user_agent) + len(it.referer)
            self.writer.defer(size, partial(self.line, record))

    def log_failed(self, exchange: Exchange, environ: WSGIEnvironment) -> None:
        """Log a failed request."""
        error = exchange.error
        status = exchange.status if error is None else error.status
        level = logging.WARNING if status >= 500 and not isinstance(error, RequestError) else logging.INFO
        if not _log.isEnabledFor(level):
            return
        record = Record(time(), exchange, sent(environ))
        if self.as_json:
            fields = self.fields(record)
            message = f"{exchange.status} {error.reason}" if error is not None else str(exchange.status)
        else:
            fields, message = {}, self.text(record)
        log_record = logging.LogRecord(_log.name, level, __file__, 0, message, None, None)  # log() would search for its caller
        log_record.fields = fields
        _log.handle(log_record)

    def line(self, record: Record) -> str:
        """The line of one request, in printable ASCII."""
        return json_line(self.fields(record)) if self.as_json else f"{timestamp(record.ended)} {self.text(record)}"

    def text(self, record: Record) -> str:
        """The record as one line of text, without its time."""
        exchange, it = record.exchange, record.sent
        method, target = _escaped(it.method[:MAX_VALUE]), _escaped(self._redacted(it.target, MAX_TARGET))
        took = exchange.elapsed_seconds * 1000
        parts = [f'{exchange.id} {_escaped(it.client)} "{method} {target}" {exchange.status} {exchange.bytes_sent} {took:.1f}ms']
        for name, get in self._columns:
            value = get(record)
            if value is not None or name not in _ONLY_WHERE_KNOWN:
                parts.append(f"{name}={_quoted(value) if name in _QUOTED else _escaped(value)}")
        return " ".join(parts)

    def fields(self, record: Record) -> dict[str, Any]:
        """The record as plain values by field name."""
        return {name: get(record) for name, get in self._columns}

    def _redacted(self, url: str, limit: int) -> str | None:
        if self._secret is not None and "=" in url:
            url = self._secret.sub(r"\1***", url)
        return f"{url[:limit]}…" if len(url) > limit else url or None


def _escaped(value: object) -> str:
    """`value` as one word of printable ASCII without quotes; "-" for None."""
    if value is None:
        return "-"
    text = str(value)
    if _PLAIN(text):
        return text
    return text.encode("unicode_escape").decode("ascii").replace('"', "\\x22").replace(" ", "\\x20") or "-"


def _quoted(value: object) -> str:
    """`value` as printable ASCII in quotes, spaces included; "-" for None."""
    return "-" if value is None else '"' + str(value).encode("unicode_escape").decode("ascii").replace('"', "\\x22") + '"'


def _options(gateway: Gateway) -> AccessLogOptions:
    return gateway.options("access_log") or AccessLogOptions()


def _log_of_all_requests(gateway: Gateway) -> AccessLog | None:
    """The log of all requests; shared by successive gateways while the form of lines is the same. None without one."""
    options = _options(gateway)
    if options.which != "all":
        return None
    form = options.format or gateway.config.log.format
    return gateway.resource("access_log", (options, form), lambda: AccessLog(options, form, StreamWriter.of(sys.stdout)))


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("access_log", AccessLogOptions)


@hookimpl
def rgate_middlewares(gateway: Gateway) -> Middleware | None:
    options = _options(gateway)
    gateway.logs_failed_requests = options.which != "none"
    if options.which == "failed":
        gateway.on_failed_request(AccessLog(options, gateway.config.log.format).log_failed)
    log = _log_of_all_requests(gateway)
    if log is None:
        return None
    add = log.add
    exchange_of = Exchange.of

    def wrap(app: WSGIApplication, options: Any) -> WSGIApplication:
        def logged(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            # Read now: the log has what the client sent, and a middleware may change the environ.
            seen, begun = sent(environ), 0.0

            def begin(
                status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None
            ) -> Callable[[bytes], object]:
                nonlocal begun
                begun = monotonic()
                return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

            exchange_of(environ).on_finish(lambda exchange: add(Record(time(), exchange, seen, begun)))
            return app(environ, begin)

        return logged

    return Middleware("access_log", wrap, modifies_request=False)


@hookimpl
def rgate_lifespan(gateway: Gateway) -> AbstractContextManager[None] | None:
    log = _log_of_all_requests(gateway)
    return gateway.resource("access_log.writing", log, lambda: _flushing(log)) if log is not None else None


@contextmanager
def _flushing(log: AccessLog) -> Iterator[None]:
    try:
        yield
    finally:
        if log.writer is not None and not log.writer.flush(END_SECONDS):
            logging.getLogger("rgate.log").warning("the rest of the access log could not be written")
