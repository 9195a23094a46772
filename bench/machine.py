"""The machine: which cores, what limits, and what processes use of it (Linux's /proc)."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cores", "Process", "description", "foreign_seconds", "free_port", "held", "keep_restart_only", "raise_file_limit"]

WANTED_FILES = 65_536
STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Cores:
    """Which cores are whose. The gateway has one alone, and load and backends another, so that CPU time per request does
    not depend on the load generator. `spare` are those that are left for the load when two workers take both."""

    gateway: int
    load: int
    spare: frozenset[int]

    @property
    def both(self) -> frozenset[int]:
        """For two workers."""
        return frozenset((self.gateway, self.load))

    @classmethod
    def of_this_process(cls) -> Cores:
        """The first cores that this process may use. Raises OSError when there is only one."""
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < 2:
            raise OSError("two cores are needed: one for the gateway, one for load and backends")
        return cls(usable[0], usable[1], frozenset(usable[2:] if len(usable) > 3 else ()))


@contextmanager
def keep_restart_only(cores: Iterable[int]) -> Iterator[None]:
    """What this thread starts inside runs on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def raise_file_limit() -> int:
    """Let this process and what it starts open as many files as possible, at most 65,536. Returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # only root may go above the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (WANTED_FILES, max(hard, WANTED_FILES)))
        return WANTED_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, WANTED_FILES), hard))
    return min(hard, WANTED_FILES)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


# As where it is installed: Python need not compile it at every start.
_INSTALLED = {"PYTHONDONTWRITEBYTECODE": ""}


class Process:
    """A started program with all its descendants; its output goes to a file. stop() ends it, and nothing else."""

    def __init__(self, command: Sequence[str], cores: Iterable[int], folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = folder / "log"
        with keep_restart_only(cores), self.log.open("wb") as log:
            self._popen = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **_INSTALLED, "HOME": str(folder), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        """Whether it has come to an end by itself."""
        return self._popen.poll() is not None

    @property
    def pids(self) -> list[int]:
        """The process itself first, then its descendants."""
        return _family(self._popen.pid)

    def cpu_seconds(self) -> float:
        """CPU time that they have used until now, to the nanosecond."""
        return sum(map(_cpu_seconds, self.pids))

    def memory_mb(self, kind: str = "Rss") -> float:
        """What they hold in memory; kind "Pss" counts a page that n processes share as 1/n of a page each."""
        return sum(_kb(pid, "smaps_rollup", kind) for pid in self.pids) / 1024

    def peak_mb(self) -> float:
        """The most that they have held since forget_peak()."""
        return sum(_kb(pid, "status", "VmHWM") for pid in self.pids) / 1024

    def forget_peak(self) -> None:
        """Let peak_mb() begin anew."""
        for pid in self.pids:
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def threads(self) -> int:
        """How many threads they have together."""
        return sum(_kb(pid, "status", "Threads") for pid in self.pids)

    def pin(self, cores: Iterable[int]) -> None:
        """Let all its threads run on these cores only."""
        for pid in self.pids:
            pin(pid, cores)

    def stop(self) -> None:
        """End it and its descendants: asked first, after five seconds forced."""
        for ending in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, ending)  # its own group since start_new_session
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(STOP_SECONDS)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)  # a child that has outlived it

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def held(pids: Iterable[int]) -> dict[str, float]:
    """What processes hold together: memory, descriptors, threads. One that has ended holds nothing."""
    told = {"rss_mb": 0.0, "pss_mb": 0.0, "descriptors": 0, "threads": 0}
    for pid in pids:
        told["rss_mb"] += _kb(pid, "smaps_rollup", "Rss") / 1024
        told["pss_mb"] += _kb(pid, "smaps_rollup", "Pss") / 1024
        told["threads"] += _kb(pid, "status", "Threads")
        with contextlib.suppress(OSError):
            told["descriptors"] += len(os.listdir(f"/proc/{pid}/fd"))
    return told


def pin(pid: int, cores: Iterable[int]) -> None:
    """Let all threads of one process run on these cores only."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), cores)


def foreign_seconds() -> float:
    """CPU time of everything on this machine that this process has not started, since some moment in the past.

    The difference of two calls tells how quiet the machine was in between.
    """
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return busy - sum(map(_cpu_seconds, _family(os.getpid()))) - ended.ru_utime - ended.ru_stime


def description() -> dict[str, str | int]:
    """What figures depend on."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {
        "cpu": cpu.partition(":")[2].strip() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release().partition("-")[0],
        "python": f"{platform.python_version()} (built {platform.python_build()[1]}, {platform.python_compiler()})",
    }


def _family(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(entry))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _cpu_seconds(pid: int) -> float:
    try:
        return time.clock_gettime(~pid << 3 | 2)  # the process's CPU clock: clock_getcpuclockid(3), finer than the ticks in stat
    except OSError:
        return 0.0


def _kb(pid: int, file: str, key: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
    return 0
