"""Backends that stay up for a whole run, and one gateway before them at a time."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Self

from .backend.bodies import JSON
from .gateways import PREFIX, Gateway, fill, program
from .load import Figures, ask, connect, request, wrk
from .machine import Cores, Process, foreign_seconds, free_port, pin

__all__ = ["CannotStart", "Rig", "Serving", "on_one_line"]

BACKEND = Path(__file__).with_name("backend")
UP_SECONDS = 20.0
WARM_UP_SECONDS = 1.0
MEGABYTE = 1_048_576
GIGABYTE = 1_073_741_824


class CannotStart(Exception):
    """A program does not answer; the message says what it wrote."""


@dataclass(frozen=True)
class Serving:
    """A gateway that answers. `process` is None for the load that goes to the backend directly."""

    port: int
    process: Process | None
    start_seconds: float

    def url(self, path: str) -> str:
        """Where a path of the backend's is reached."""
        return f"http://127.0.0.1:{self.port}{PREFIX}{path}"


class Rig:
    """The cores, the two backends and how long to measure. A context manager: the backends end with it."""

    def __init__(self, cores: Cores, seconds: float) -> None:
        self.cores = cores
        self.seconds = seconds
        self._stack = ExitStack()
        self._backends: dict[str, Process] = {}
        self._ports: dict[str, int] = {}

    def __enter__(self) -> Self:
        try:
            self._start_nginx()
            self._start_bodies()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def serving(self, gateway: Gateway, backend: str = "nginx", cores: Iterable[int] = ()) -> Iterator[Serving]:
        """The gateway, started and answering, with one of the backends ("nginx" or "bodies") behind it.

        It runs on `cores`, by default on the gateway's one. Raises CannotStart.
        """
        behind = self._ports[backend]
        if not gateway.command:
            yield Serving(behind, None, 0.0)
            return
        port = free_port()
        with tempfile.TemporaryDirectory(prefix="rgate-bench-") as name:
            folder = Path(name)
            folder.chmod(0o755)  # nginx's worker may be another user
            began = time.monotonic()
            with gateway.start(port, behind, list(cores) or [self.cores.gateway], folder) as process:
                _wait_until_up(process, port)
                yield Serving(port, process, time.monotonic() - began)
                _tell_troubles(gateway, process)

    def load(self, serving: Serving, path: str, connections: int, kind: str = "plain", body_bytes: int = 0) -> dict[str, float]:
        """A second of warm-up, then `seconds` of wrk: what it saw, and what the gateway's processes used meanwhile."""
        wrk(serving.url(path), connections, WARM_UP_SECONDS, [self.cores.load], kind, body_bytes)
        return self.measured(serving, path, connections, kind, body_bytes)

    def measured(
        self, serving: Serving, path: str, connections: int, kind: str = "plain", body_bytes: int = 0
    ) -> dict[str, float]:
        """The same without the warm-up."""
        process = serving.process
        began, foreign, used = time.monotonic(), foreign_seconds(), process.cpu_seconds() if process else 0.0
        seen = wrk(serving.url(path), connections, self.seconds, [self.cores.load], kind, body_bytes)
        metrics = _of_figures(seen)
        if process:
            metrics["cpu_us"] = 1e6 * (process.cpu_seconds() - used) / max(seen.requests, 1)
            metrics["rss_mb"] = process.memory_mb()
        metrics["foreign_cores"] = max(0.0, (foreign_seconds() - foreign) / (time.monotonic() - began))
        return metrics

    def together(self, servings: Sequence[Serving], connections: int) -> dict[str, float]:
        """Two cores full of load: two times `connections`, shared out among gateways that have one worker or two in all.

        CPU time and requests are of all of them.
        """
        processes = [serving.process for serving in servings if serving.process]
        cores = self.cores.spare or self.cores.both
        urls = [servings[number % len(servings)].url("") for number in range(2)]
        began, foreign, used = time.monotonic(), foreign_seconds(), sum(process.cpu_seconds() for process in processes)
        with ThreadPoolExecutor(len(urls)) as threads:
            seen = list(threads.map(lambda url: wrk(url, connections, self.seconds, cores), urls))
        requests = max(sum(figures.requests for figures in seen), 1)
        return {
            "cpu_us": 1e6 * (sum(process.cpu_seconds() for process in processes) - used) / requests,
            "requests_per_second": sum(figures.requests / figures.seconds for figures in seen),
            "errors": sum(figures.errors for figures in seen),
            "timeouts": sum(figures.timeouts for figures in seen),
            "foreign_cores": max(0.0, (foreign_seconds() - foreign) / (time.monotonic() - began)),
        }

    @contextmanager
    def backends_on(self, cores: Iterable[int]) -> Iterator[None]:
        """The backends run on these cores while inside."""
        cores = list(cores)
        for process in self._backends.values():
            process.pin(cores)
        try:
            yield
        finally:
            for process in self._backends.values():
                process.pin([self.cores.load])

    def spread(self, processes: Sequence[Process]) -> None:
        """Pin workers to the two cores in turn; a gateway without children is its own worker."""
        cores = cycle((self.cores.gateway, self.cores.load))
        for process in processes:
            first, *others = process.pids
            for pid in others or [first]:
                pin(pid, [next(cores)])

    def _start_nginx(self) -> None:
        folder = self._folder()
        with (folder / "megabyte").open("wb") as file:
            file.write(b"x" * MEGABYTE)
        with (folder / "gigabyte").open("wb") as file:
            file.truncate(GIGABYTE)  # a hole: it takes no room
        port = free_port()
        places = {"port": str(port), "folder": str(folder), "json": JSON.decode()}
        (folder / "nginx.conf").write_text(fill((BACKEND / "nginx.conf").read_text(), places))
        self._start("nginx", port, [program("nginx") or "nginx", "-c", str(folder / "nginx.conf")], folder)

    def _start_bodies(self) -> None:
        port = free_port()
        self._start("bodies", port, [sys.executable, str(BACKEND / "bodies.py"), str(port)], self._folder())

    def _folder(self) -> Path:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rgate-bench-")))
        folder.chmod(0o755)
        return folder

    def _start(self, name: str, port: int, command: list[str], folder: Path) -> None:
        process = self._stack.enter_context(Process(command, [self.cores.load], folder))
        _wait_until_up(process, port)
        self._backends[name], self._ports[name] = process, port


def _of_figures(seen: Figures) -> dict[str, float]:
    return {
        "requests_per_second": seen.requests / seen.seconds,
        "p50_ms": seen.p50_ms,
        "p99_ms": seen.p99_ms,
        "errors": seen.errors,
        "timeouts": seen.timeouts,
    }


def _wait_until_up(process: Process, port: int) -> None:
    until = time.monotonic() + UP_SECONDS
    head = request("GET", PREFIX, port)
    while time.monotonic() < until and not process.ended:
        try:
            with connect(port, 2.0) as sock:
                if ask(sock, head):
                    return
        except OSError:
            pass
        time.sleep(0.002)
    raise CannotStart(process.log.read_text(errors="replace").strip()[-1_000:] or "it wrote nothing")


def _tell_troubles(gateway: Gateway, process: Process) -> None:
    """rgate's own complaints are a finding, whatever the figures say."""
    if not gateway.name.startswith("rgate"):
        return
    lines = process.log.read_text(errors="replace").splitlines()
    troubles = [line for line in lines if " ERROR " in line or " WARNING " in line or line.startswith(("Traceback", "Exception"))]
    for line in troubles[:5]:
        print(f"    {gateway.name} wrote: {line}", file=sys.stderr)


def on_one_line(metrics: dict[str, float]) -> str:
    """Metrics on one line."""
    return json.dumps({name: round(value, 3) for name, value in metrics.items()})
