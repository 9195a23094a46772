"""What is measured: each workload is one comparison, with the gateways that take part in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from .gateways import PREFIX, RGATE, Gateway
from .load import ask, burst, connect, download, hold, request, upload
from .rig import GIGABYTE, MEGABYTE, Rig, Serving

__all__ = ["WORKLOADS", "Metrics", "Workload"]

Metrics = dict[str, float]

IDLE_CONNECTIONS = 10_000
IDLE_ASKED_AGAIN = 200
BURST_REQUESTS = 256
WORKER_CONNECTIONS = 32
SETTLE_SECONDS = 0.5
CALM_SECONDS = 3.0  # threads that a busy time has brought go again
SHRINK_SECONDS = 20.0


@dataclass(frozen=True)
class Workload:
    """One comparison.

    name       what it is called on the command line
    what       one line about it
    measure    one gateway, once
    shown      which figures the table has, in order; the first of them is compared
    only       the gateways that take part; empty for all that are chosen
    also       variants that take part beside those that are chosen, if rgate is among them
    without    gateways that cannot do this, and the reason
    times      so many times the rounds, where the figures compared are nearly the same
    """

    name: str
    what: str
    measure: Callable[[Rig, Gateway], Metrics]
    shown: tuple[str, ...] = ("cpu_us", "requests_per_second", "p50_ms", "p99_ms", "rss_mb", "errors", "timeouts")
    only: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    without: Mapping[str, str] | None = None
    times: int = 1

    def gateways(self, chosen: tuple[str, ...]) -> tuple[str, ...]:
        """Who takes part when the operator has chosen these."""
        if self.only:
            return self.only if RGATE in chosen else ()
        also = self.also if RGATE in chosen else ()
        return tuple(name for name in dict.fromkeys((*chosen, *also)) if name not in (self.without or {}))


def _steady(
    rig: Rig,
    gateway: Gateway,
    *,
    path: str = "",
    backend: str = "nginx",
    connections: int = 32,
    kind: str = "plain",
    body_bytes: int = 0,
) -> Metrics:
    with rig.serving(gateway, backend) as serving:
        return rig.load(serving, path, connections, kind, body_bytes)


def _start(rig: Rig, gateway: Gateway) -> Metrics:
    with rig.serving(gateway) as serving:
        assert serving.process
        for _ in range(64):  # every worker has answered something
            with connect(serving.port) as sock:
                ask(sock, request("GET", PREFIX, serving.port))
        time.sleep(SETTLE_SECONDS)
        process = serving.process
        return {
            "start_seconds": serving.start_seconds,
            "rss_mb": process.memory_mb(),
            "pss_mb": process.memory_mb("Pss"),
            "processes": len(process.pids),
            "threads": process.threads(),
        }


def _burst(rig: Rig, gateway: Gateway) -> Metrics:
    with rig.serving(gateway, backend="bodies") as serving:
        assert serving.process
        time.sleep(SETTLE_SECONDS)
        before = serving.process.threads()
        seen = burst(serving.port, f"{PREFIX}/slow", BURST_REQUESTS, 20.0)
        most = serving.process.threads()
        began = time.monotonic()
        while (after := serving.process.threads()) > before and time.monotonic() - began < SHRINK_SECONDS:
            time.sleep(0.05)
        return {
            "all_answered_seconds": seen.seconds,
            "errors": seen.errors,
            "threads_before": before,
            "threads_at_end": most,
            "threads_after": after,
            "shrink_seconds": time.monotonic() - began,
            "rss_mb": serving.process.memory_mb(),
        }


def _idle(rig: Rig, gateway: Gateway) -> Metrics:
    with rig.serving(gateway) as serving:
        assert serving.process
        without = rig.load(serving, "", 32)
        time.sleep(CALM_SECONDS)
        memory, threads = serving.process.memory_mb(), serving.process.threads()
        held = hold(serving.port, PREFIX, IDLE_CONNECTIONS, 30.0)
        try:
            time.sleep(SETTLE_SECONDS)
            more_memory, more_threads = serving.process.memory_mb() - memory, serving.process.threads() - threads
            during = rig.load(serving, "", 32)
            head = request("GET", PREFIX, serving.port)
            asked = held[:: max(1, len(held) // IDLE_ASKED_AGAIN)]
            lost = sum(not ask(sock, head) for sock in asked)
        finally:
            for sock in held:
                sock.close()
        return {
            "more_mb": more_memory,
            "more_threads": more_threads,
            "held": len(held),
            "lost": lost,
            "cpu_us": during["cpu_us"],
            "cpu_us_before": without["cpu_us"],
            "p99_ms": during["p99_ms"],
            "p99_ms_before": without["p99_ms"],
            "errors": during["errors"] + during["timeouts"],
            "foreign_cores": during["foreign_cores"],
        }


def _gigabyte(rig: Rig, gateway: Gateway) -> Metrics:
    down_seconds, down_mb = _peak(rig, gateway, "nginx", lambda s: download(s.port, f"{PREFIX}/gigabyte"))
    up_seconds, up_mb = _peak(rig, gateway, "bodies", lambda s: upload(s.port, f"{PREFIX}/read", GIGABYTE))
    return {"down_more_mb": down_mb, "up_more_mb": up_mb, "down_seconds": down_seconds, "up_seconds": up_seconds}


def _peak(rig: Rig, gateway: Gateway, backend: str, transfer: Callable[[Serving], float]) -> tuple[float, float]:
    """Seconds of the transfer, and by how many MB the gateway grew meanwhile at most."""
    with rig.serving(gateway, backend=backend) as serving:
        assert serving.process
        time.sleep(SETTLE_SECONDS)
        serving.process.forget_peak()
        before = serving.process.memory_mb()
        seconds = transfer(serving)
        return seconds, serving.process.peak_mb() - before


def _workers(rig: Rig, gateway: Gateway) -> Metrics:
    """Two one-worker gateways, or one of two workers: a worker on each of two cores, 32 connections for each.

    Load and backends run on the same two cores where there are no others, which costs either the same.
    """
    count = 1 if gateway.name == "rgate-2-workers" else 2
    with ExitStack() as stack:
        servings = [stack.enter_context(rig.serving(gateway, cores=rig.cores.both)) for _ in range(count)]
        rig.spread([serving.process for serving in servings if serving.process])
        stack.enter_context(rig.backends_on(rig.cores.spare or rig.cores.both))
        rig.together(servings, WORKER_CONNECTIONS)  # warm-up
        return rig.together(servings, WORKER_CONNECTIONS)


def _json(connections: int, kind: str) -> Callable[[Rig, Gateway], Metrics]:
    return partial(_steady, connections=connections, kind=kind, path="/browser" if kind == "browser" else "")


_TRANSFER = ("requests_per_second", "cpu_us", "p50_ms", "p99_ms", "rss_mb", "errors", "timeouts")
_NOT_IDLE = {"flask": "it closes every connection", "proxy.py": "every connection is a thread"}
_HOLDS_ALL = {"flask": "it holds bodies in memory", "proxy.py": "it gathers them, for minutes"}

_ALL = (
    Workload("json-1", "200 bytes of JSON, 1 connection", _json(1, "plain"), also=("direct",)),
    Workload("json-32", "200 bytes of JSON, 32 connections", _json(32, "plain")),
    Workload("json-256", "200 bytes of JSON, 256 connections", _json(256, "plain")),
    Workload("json-1000", "200 bytes of JSON, 1,000 connections", _json(1000, "plain")),
    *(
        Workload(f"heads-{count}", f"the same at {count:,}, one header line differs in every request", _json(count, "heads"))
        for count in (1, 32, 256, 1000)
    ),
    Workload(
        "browser-32", "heads as browsers and frameworks send them, both differ every time, 32 connections", _json(32, "browser")
    ),
    Workload("connect", "a new connection for every request, 32 at a time", _json(32, "close")),
    Workload(
        "post-10k",
        "POST of 10 kB, 32 connections",
        partial(_steady, path="/read", backend="bodies", kind="body", body_bytes=10_240),
    ),
    Workload("down-1m", "1 MB down, 32 connections", partial(_steady, path="/megabyte"), _TRANSFER),
    Workload(
        "up-1m",
        "1 MB up, 32 connections",
        partial(_steady, path="/read", backend="bodies", kind="body", body_bytes=MEGABYTE),
        _TRANSFER,
    ),
    Workload(
        "stream", "64 chunks of 1 KiB, each sent by itself, 32 connections", partial(_steady, path="/stream", backend="bodies")
    ),
    Workload(
        "slow-256",
        "256 requests at one time to a backend that takes 1 s",
        _burst,
        ("all_answered_seconds", "errors", "threads_before", "threads_at_end", "threads_after", "shrink_seconds", "rss_mb"),
    ),
    Workload(
        "middlewares",
        "small JSON with 0, 5 and 20 no-op middlewares",
        _json(32, "plain"),
        only=(RGATE, "rgate-5", "rgate-20"),
        times=3,
    ),
    Workload("statistics", "small JSON with and without statistics", _json(32, "plain"), only=(RGATE, "rgate-no-stats"), times=3),
    Workload(
        "envelope", "small JSON passed through, and put into the envelope", _json(32, "plain"), only=(RGATE, "rgate-envelope")
    ),
    Workload(
        "workers",
        "two gateways of one worker, and one of two workers, on two cores",
        _workers,
        ("cpu_us", "requests_per_second", "errors", "timeouts"),
        only=(RGATE, "rgate-2-workers"),
        times=3,
    ),
    Workload(
        "idle-10k",
        "10,000 idle keep-alive connections, and small JSON on 32 others",
        _idle,
        ("more_mb", "more_threads", "held", "lost", "cpu_us", "cpu_us_before", "p99_ms", "p99_ms_before", "errors"),
        without=_NOT_IDLE,
    ),
    Workload(
        "start",
        "start-up to the first answer, and memory at rest",
        _start,
        ("start_seconds", "rss_mb", "pss_mb", "processes", "threads"),
        also=("rgate-2-workers", "rgate-3-workers"),
    ),
    Workload(
        "gigabyte",
        "1 GiB down and up: how much memory grows",
        _gigabyte,
        ("down_more_mb", "up_more_mb", "down_seconds", "up_seconds"),
        without=_HOLDS_ALL,
    ),
)
WORKLOADS: Mapping[str, Workload] = {workload.name: workload for workload in _ALL}
