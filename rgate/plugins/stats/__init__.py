"""stats: traffic statistics in SQL, shown at `/stats`.

    plugins:
      stats:
        database: sqlite:///rgate.db      # default; or postgresql://…
        path: /stats
        retention_days: 30

    GET /stats  →  {"requests_count": {"success": 1520, "error": 3}, "latency_ms": {"average": 1.9, "p95": 4.1, "p99": 9.8}}

Every exchange is counted when it is over: as success with a status below 400, else as error. If the client left before the end
(status 499), it is counted as `client_closed`, which is shown when it is not 0 and is not part of the latencies. Latency is
measured from the arrival of the request to the last byte of the response. Responses that the gateway makes itself are counted,
those of local routes are not. A route with `plugins: {stats: false}` is not counted.

`?by=route,backend,endpoint,status` (one or several of them) adds `groups`. `?since=1h` leaves out older counts and adds the
time at which the rest begins. With either of them, `retries` says how many requests took more than one attempt, and how many
attempts these took, in all and by route and backend. `?by=plugin` (also with route and backend) shows how much time requests
spent in each plugin that is `timed`, instead of requests.

On the gateway's port `/stats` is shown to the clients that `allow` names, by default to those on this machine, and `by` accepts
only route, backend and status, which are names from the config: a forwarder of bytes on this machine makes a remote client look
local. The admin socket shows everything. One report is made at a time (see QueryTurns).

The counts cover all processes that share the database, and survive restarts; `kill -9` loses those of the last `flush_seconds`.
`storage` appears in the answer when the database cannot be used, or could not be used before. Options: see StatsOptions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rgate import (
    Config,
    ConfigProblem,
    ConfigSection,
    Exchange,
    Gateway,
    IPAllowlist,
    LocalRoute,
    LocalRoutes,
    Middleware,
    QueryError,
    hookimpl,
    json_app,
)

from .aggregator import Aggregator
from .query import BY, BY_NAME, Query
from .recorder import Recorder
from .turns import QueryTurns

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["DIALECTS", "StatsOptions", "recorder_of", "stats_app"]

DIALECTS = ("sqlite", "postgresql")
FLUSH = "stats.flush"  # the command by which worker processes make each other save before a report


class StatsOptions(BaseModel):
    """The options of `plugins: {stats: …}`.

    database        SQLAlchemy URL. Default "sqlite:///rgate.db": a file in the current directory ("sqlite:////var/lib/…"
                    is absolute). sqlite or postgresql (whose driver must be installed). Worker processes may share one
                    database, and with postgresql so may machines: counts add up
    path            the path of the page. Default "/stats"
    allow           networks whose clients get an answer on the gateway's port; requests of other clients go on to the routes.
                    Default None: this machine, as far as that can be determined
    hosts           host names by which those clients may address the page, beside the machine's addresses and localhost.
                    Default ()
    flush_seconds   how often counts are saved, and so what `kill -9` may lose. Default 0.5, 0.05 to 1
    retention_days  how long counts are kept. Default 30, 1 to 3,650. Counts by the minute are kept for 3 hours, by the hour
                    for 8 days, by the day for all of it
    max_megabytes   the largest size of an SQLite file (one megabyte is 1,048,576 bytes). From 3/4 of it on, the oldest counts
                    by the minute are dropped first. Default 256, 1 to 1,000,000
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    database: str = "sqlite:///rgate.db"
    path: str = "/stats"
    allow: tuple[str, ...] | None = None
    hosts: tuple[str, ...] = ()
    flush_seconds: Annotated[float, Field(ge=0.05, le=1)] = 0.5
    retention_days: Annotated[int, Field(ge=1, le=3_650)] = 30
    max_megabytes: Annotated[int, Field(ge=1, le=1_000_000)] = 256

    @field_validator("database")
    @classmethod
    def _names_a_database(cls, url: str) -> str:
        scheme, separator, rest = url.partition("://")
        if not separator or scheme.partition("+")[0] not in DIALECTS:
            raise ValueError(f"must be a URL that begins with {' or '.join(f'{name}://' for name in DIALECTS)}")
        if scheme.startswith("sqlite") and rest.strip("/") in ("", ":memory:"):
            raise ValueError("names no file; sqlite:///rgate.db is a file in the current directory")
        return url

    @field_validator("allow")
    @classmethod
    def _are_networks(cls, allow: tuple[str, ...] | None) -> tuple[str, ...] | None:
        IPAllowlist(allow or ())
        return allow

    @field_validator("path")
    @classmethod
    def _is_a_path(cls, path: str) -> str:
        if not path.startswith("/") or any(c in "?#%" or not "!" <= c <= "~" for c in path):
            raise ValueError("must begin with / and hold plain characters only")
        return path


def recorder_of(gateway: Gateway) -> Recorder:
    """The recorder of `gateway`: one per process, shared with the gateways before and after it as long as the options are equal.
    Does not open the database."""
    options = gateway.options("stats") or StatsOptions()

    def make() -> Recorder:
        from .store import Store  # imported late: checking a config or printing help needs no SQLAlchemy (0.3 s)

        store = Store(options.database, retention_days=options.retention_days, max_megabytes=options.max_megabytes)
        return Recorder(store, Aggregator(), flush_seconds=options.flush_seconds)

    return gateway.resource("stats", options.model_copy(update={"path": ""}), make)


def stats_app(
    report: Callable[[Query], dict[str, Any]], wall: Callable[[], float] = time.time, by: Collection[str] = BY
) -> WSGIApplication:
    """The page: `report(query)` as JSON. A query that asks for more than `by` is answered with 400."""

    def show(environ: WSGIEnvironment) -> tuple[int, dict[str, Any]]:
        query = Query.parse(environ.get("QUERY_STRING", ""), wall())
        if hidden := [name for name in query.by if name not in by]:
            raise QueryError(f"by={hidden[0]} is answered at the admin socket only; here {', '.join(by)} are allowed")
        return 200, report(query)

    return json_app(show)


@hookimpl
def rgate_config_sections() -> ConfigSection:
    return ConfigSection("stats", StatsOptions, per_route=True)


@hookimpl
def rgate_check_config(config: Config) -> Iterator[ConfigProblem]:
    for index, route in enumerate(config.routes):
        if route.options.get("stats"):
            message = "a route cannot have options of its own here; false is what keeps it out of the statistics"
            yield ConfigProblem(("routes", index, "plugins", "stats"), message)


@hookimpl
def rgate_middlewares(gateway: Gateway) -> Middleware:
    aggregator = recorder_of(gateway).aggregator
    record = aggregator.record_timed if gateway.config.timed else aggregator.record

    def wrap(app: WSGIApplication, options: StatsOptions | None) -> WSGIApplication:
        def counted(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            Exchange.of(environ).on_finish(record)
            return app(environ, start_response)

        return counted

    return Middleware("stats", wrap, modifies_request=False)


@hookimpl
def rgate_local_routes(gateway: Gateway) -> LocalRoutes:
    options = gateway.options("stats") or StatsOptions()
    turns = QueryTurns(recorder_of(gateway).report)
    allowed = IPAllowlist(IPAllowlist.LOOPBACK if options.allow is None else options.allow, options.hosts)
    return {options.path: LocalRoute(stats_app(turns.queue(), by=BY_NAME), allowed, stats_app(turns.queue()))}


@hookimpl
def rgate_lifespan(gateway: Gateway) -> AbstractContextManager[object]:
    recorder = recorder_of(gateway)
    gateway.workers.on_command(FLUSH, lambda _: recorder.flush())
    recorder.warnings = gateway.readiness.warnings
    recorder.flush_other_workers = lambda: gateway.workers.broadcast(FLUSH)
    return recorder
