"""Traffic statistics in SQL, answered at `/stats`.

    GET /stats  →  {"requests_count": {"success": 1520, "error": 3}, "latency_ms": {"average": 1.9, "p95": 4.1, "p99": 9.8}}

Every exchange is counted when it is over: success up to status 399, error above; one whose client has left is neither, but
counts as `client_closed` (status 499), which is there when there are some, and in no latency. Latency is from the request's
arrival to the last of the response. What the gateway answers itself counts too, the local routes do not.
`?by=route,backend,endpoint,status` (one or several) adds `groups`, `?since=1h` leaves out what is older and adds where it
begins. On the gateway's port this is for
those whom `allow` names, by default for this machine, and `by` is for names only (route, backend, status): who forwards bytes
from elsewhere looks like this machine. All of it is at the admin socket. One report is made at a time. The counts are of all
processes that share the database and outlive restarts; `kill -9` loses `flush_seconds` of them. `storage` appears in the
answer when the database is or was in trouble.

With `by` or `since` the report tells of `retries`, too: how many requests took more than one attempt, and how many attempts
these took, in all and by route and backend. `?by=plugin` (and route, backend) tells, in place of requests, how long requests
were inside of each plugin that is `timed`.

A route with `plugins: {stats: false}` is not counted. Options: see StatsOptions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

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
    hookimpl,
)

from .aggregator import Aggregator
from .answer import answering
from .options import StatsOptions
from .query import BY_NAME
from .recorder import Recorder
from .turns import QueryTurns

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["StatsOptions", "recorder_of"]

FLUSH = "stats.flush"  # what worker processes ask of each other before a report


def recorder_of(gateway: Gateway) -> Recorder:
    """The recorder that counts for `gateway`, and for the gateways before and after it as long as its options are the same:
    one per process. Touches no database by itself."""
    options = gateway.options("stats") or StatsOptions()

    def make() -> Recorder:
        from .store import Store  # here, because checking a config or printing help needs no SQLAlchemy (0.3 s)

        store = Store(options.database, retention_days=options.retention_days, max_megabytes=options.max_megabytes)
        return Recorder(store, Aggregator(), flush_seconds=options.flush_seconds)

    return gateway.resource("stats", options.model_copy(update={"path": ""}), make)


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
    pending = recorder_of(gateway).pending
    record = pending.record_timed if gateway.config.timed else pending.record

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
    return {options.path: LocalRoute(answering(turns.line(), by=BY_NAME), allowed, answering(turns.line()))}


@hookimpl
def rgate_lifespan(gateway: Gateway) -> AbstractContextManager[object]:
    recorder = recorder_of(gateway)
    gateway.workers.on_command(FLUSH, lambda _: recorder.flush())
    recorder.notices = gateway.readiness.notices
    recorder.flush_siblings = lambda: gateway.workers.broadcast(FLUSH)
    return recorder
