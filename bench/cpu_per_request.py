"""How much CPU time the gateway takes per request, measured from outside, with the demo's payment service behind it.

    python bench/cpu_per_request.py [--seconds 5] [--connections 8]

A gateway with one route is started on a free port, and GET requests are sent on keep-alive connections, one thread each, as
fast as they are answered. CPU time is that of the gateway's own processes (Linux's /proc, in steps of 10 ms), so it does
not depend on how fast this program and the service are; requests per second and latency do. Traffic stays on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUEST = b"GET /api/payment HTTP/1.1\r\nHost: bench\r\n\r\n"
WARM_UP_SECONDS = 1.0
CONFIG = """
routes: [{{path_prefix: /api/payment, backend: payment}}]
backends: [{{name: payment, endpoints: ["http://127.0.0.1:{port}"]}}]
"""


@contextmanager
def listening(*command: str) -> Iterator[tuple[int, int]]:
    """The pid and port of a started process that prints its URL."""
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,  # the statistics database goes with it
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout
            found = (re.search(r"http://[\d.]+:(\d+)", line) for line in process.stdout)
            port = next((int(match[1]) for match in found if match), None)
            if port is None:
                sys.exit(f"{' '.join(command)} did not start")
            yield process.pid, port
        finally:
            process.terminate()
            process.wait(30)


def cpu_seconds(pid: int) -> float:
    """What the process and its children have used until now."""
    pids, used_ticks = [pid], 0
    for member in pids:
        pids += map(int, Path(f"/proc/{member}/task/{member}/children").read_text().split())
        fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        used_ticks += int(fields[11]) + int(fields[12])  # utime, stime
    return used_ticks / os.sysconf("SC_CLK_TCK")


def ask_again_and_again(port: int, end: float, latencies_ms: list[float]) -> None:
    """Requests on one connection until `end` (monotonic)."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        while (began := time.monotonic()) < end:
            connection.sendall(REQUEST)
            response = connection.recv(65536)
            head_end = response.find(b"\r\n\r\n") + 4
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", response[:head_end])
            if not response.startswith(b"HTTP/1.1 200") or length is None:
                sys.exit(f"not the expected answer: {response[:200]!r}")
            missing_bytes = head_end + int(length[1]) - len(response)
            while missing_bytes > 0:
                missing_bytes -= len(connection.recv(missing_bytes))
            latencies_ms.append((time.monotonic() - began) * 1000)


def load(port: int, seconds: float, connections: int) -> list[float]:
    """The latencies of all requests of `connections` threads."""
    end = time.monotonic() + seconds
    latencies_ms: list[list[float]] = [[] for _ in range(connections)]
    threads = [threading.Thread(target=ask_again_and_again, args=(port, end, mine)) for mine in latencies_ms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [latency for mine in latencies_ms for latency in mine]


def main() -> None:
    options = argparse.ArgumentParser(description="CPU time that the gateway takes per request.")
    options.add_argument("--seconds", type=float, default=5.0)
    options.add_argument("--connections", type=int, default=8)
    chosen = options.parse_args()
    with (
        tempfile.NamedTemporaryFile("w", suffix=".yml") as config,
        listening(str(ROOT / "backends" / "payment" / "app.py"), "--port", "0") as (_, backend_port),
    ):
        config.write(CONFIG.format(port=backend_port))
        config.flush()
        with listening("-m", "rgate", "--port", "0", "--config", config.name) as (pid, port):
            load(port, WARM_UP_SECONDS, chosen.connections)
            before = cpu_seconds(pid)
            latencies_ms = load(port, chosen.seconds, chosen.connections)
            used = cpu_seconds(pid) - before
    if len(latencies_ms) < 2:
        sys.exit("no connection was answered")
    percentiles = statistics.quantiles(latencies_ms, n=100)
    print(f"{len(latencies_ms):,} requests in {chosen.seconds:g} s on {chosen.connections} connections")
    print(f"CPU per request  {used / len(latencies_ms) * 1e6:8.1f} µs")
    print(f"requests per s   {len(latencies_ms) / chosen.seconds:8.0f}")
    print(f"latency          {percentiles[49]:8.2f} ms median, {percentiles[98]:.2f} ms p99")


if __name__ == "__main__":
    main()
