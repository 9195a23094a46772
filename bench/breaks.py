"""A gateway with everything around it, and ways to break each part while it serves.

A break is a generator: it breaks something, yields while it is broken, and mends it. What it `explains` are the only answers
but good ones that requests may have meanwhile, as Outcome words them; most explain none. It yields the endpoints that it ends,
by name: it explains nothing of what has to do with others.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from .clients import connection_to
from .endpoints import Endpoints, instance
from .gateways import ROOT
from .machine import free_port

__all__ = ["BREAKS", "Break", "World"]

DATABASE_MEGABYTES = 8
DRAIN_SECONDS = 3.0  # so long a gateway that was upgraded keeps its tunnels
UP_SECONDS = 20.0
END_SECONDS = 30.0
_SUCCESSOR = re.compile(r"process (\d+) is starting, to take over")
_PR_SET_CHILD_SUBREAPER = 36


class World:
    """The gateway with two workers, its config, its database on a small file system of its own, and what is behind it."""

    def __init__(self, folder: Path, endpoints: Endpoints, tls: bool) -> None:
        self.endpoints = endpoints
        self.port = free_port()
        self.tls = tls
        self.log = folder / "log"
        self.database = folder / "database" / "rgate.db"
        self._folder = folder
        self._config = folder / "config.yml"
        self.failed: list[str] = []  # what did not come about although it should have
        self._mounted = False
        self._main = 0
        self._code: int | None = None

    def start(self) -> None:
        """Start all of it. Raises OSError when the gateway does not come up."""
        _adopt_orphans()
        self._mounted = os.geteuid() == 0 and _mounts(self.database.parent)
        self.endpoints.start()
        self.write_certificate()
        self.write_config()
        with self.log.open("wb") as log:
            command = [sys.executable, str(ROOT / "rgate.py"), "--port", str(self.port), "--config", str(self._config)]
            files = [(os.POSIX_SPAWN_DUP2, log.fileno(), number) for number in (1, 2)]
            self._main = os.posix_spawn(sys.executable, command, os.environ, file_actions=files)
        until = time.monotonic() + UP_SECONDS
        while " listening on " not in self.log.read_text():
            if time.monotonic() > until or not self.running:
                raise OSError(f"the gateway does not come up:\n{self.log.read_text()}")
            time.sleep(0.02)

    @property
    def pids(self) -> list[int]:
        """The gateway's own process, then its workers."""
        return [self._main, *self.workers()]

    @property
    def has_a_disk(self) -> bool:
        """Whether the database has a file system of its own."""
        return self._mounted

    def stop(self) -> int | None:
        """End the gateway; its exit code, or None when it had to be killed."""
        self.signal(signal.SIGTERM)
        code = self._wait(END_SECONDS)
        if code is None:
            for pid in (*self.workers(), self._main):
                os.kill(pid, signal.SIGKILL)
            self._wait(END_SECONDS)
        return code

    def upgrade(self) -> Iterator[None]:
        """Have the gateway start its successor; yields meanwhile, and returns when there is only that one."""
        told = len(self.log.read_text())
        self.signal(signal.SIGUSR2)
        found = None
        until = time.monotonic() + END_SECONDS
        while found is None and time.monotonic() < until:
            time.sleep(0.02)
            found = _SUCCESSOR.search(self.log.read_text(), told)
        yield
        if found is not None and self._wait(END_SECONDS) == 0:
            self._main, self._code = int(found[1]), None
        else:
            self.failed.append("the gateway was not upgraded")

    def counted(self, tls: ssl.SSLContext | None) -> int:
        """How many requests `/stats` has. Raises OSError and HTTPException."""
        connection = connection_to(self.port, tls)
        try:
            connection.request("GET", "/stats")
            return sum(json.loads(connection.getresponse().read())["requests_count"].values())
        finally:
            connection.close()

    def close(self) -> None:
        """Take everything away."""
        if self._main:
            self.stop()
        self.endpoints.stop()
        places = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for place in reversed([place for place in places if place.startswith(f"{self._folder}/")]):
            subprocess.run(["umount", "--lazy", place], check=False)

    def protect(self) -> Iterator[None]:
        """Have a copy of the database in its place that cannot be written; yields meanwhile, then the database is back.

        A file system on which files are open for writing cannot be made read-only, and permissions mean nothing to root.
        """
        copy = self._folder / "copy" / self.database.name
        _mounts(copy.parent)
        with contextlib.suppress(sqlite3.Error), _connected(self.database) as source, _connected(copy) as target:
            source.backup(target)
        for suffix in ("-wal", "-shm"):  # without them it could not even be read
            copy.with_name(copy.name + suffix).touch()
        place = str(self.database.parent)
        subprocess.run(["mount", "-o", "remount,ro", str(copy.parent)], check=True)
        subprocess.run(["mount", "--bind", str(copy.parent), place], check=True)
        yield
        for mounted in (place, str(copy.parent)):
            subprocess.run(["umount", "--lazy", mounted], check=True)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the gateway, if it still runs."""
        if self.running:
            os.kill(self._main, number)

    @property
    def running(self) -> bool:
        """Whether the gateway has not ended."""
        if self._code is None:
            pid, status = os.waitpid(self._main, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code is None

    def _wait(self, seconds: float) -> int | None:
        until = time.monotonic() + seconds
        while self.running and time.monotonic() < until:
            time.sleep(0.02)
        return self._code

    def workers(self) -> list[int]:
        """The pids of its workers."""
        return [int(pid) for pid in Path(f"/proc/{self._main}/task/{self._main}/children").read_text().split()]

    def write_config(self, **more: Any) -> None:
        """Write a good config, in the place of the one there is."""
        server: dict[str, Any] = {"workers": 2, "drain_seconds": DRAIN_SECONDS}
        if self.tls:
            server["tls"] = {name: str(self._folder / f"{name}.pem") for name in ("certificate", "key")}
        config = {
            "routes": [{"path_prefix": self.endpoints.path, "backend": "orders"}],
            "server": server,
            "plugins": {"stats": {"database": f"sqlite:///{self.database}"}},
            **self.endpoints.config,
            **more,
        }
        self.write(json.dumps(config, indent=1))

    def write(self, text: str) -> None:
        """Put a text in the place of the config file, as editors do."""
        new = self._config.with_suffix(".new")
        new.write_text(text)
        new.replace(self._config)

    def write_certificate(self) -> None:
        """A certificate nobody has seen before."""
        if self.tls:
            where = ["-keyout", str(self._folder / "key.pem"), "-out", str(self._folder / "certificate.pem")]
            how = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=x"]
            subprocess.run(["openssl", "req", *how, *where], check=True, stderr=subprocess.DEVNULL)


def _mounts(folder: Path) -> bool:
    """Make a folder with a small file system of its own; false when only the folder is there."""
    folder.mkdir(exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={DATABASE_MEGABYTES}m", "rgate-chaos", str(folder)]
    return subprocess.run(["mount", *options], stderr=subprocess.DEVNULL).returncode == 0


@contextlib.contextmanager
def _connected(database: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(database, timeout=5, isolation_level=None)) as connection:
        yield connection


def _adopt_orphans() -> None:
    # A gateway that has taken over is the child of one that has ended; this way it becomes ours, and its end can be seen.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


Ended: TypeAlias = frozenset[str] | None
GatewayRuntime: TypeAlias = Callable[[World, random.Random], Iterator[Ended]]


@dataclass(frozen=True)
class Break:
    """`explains`: the answers that requests may have while it lasts; `possible`: what it needs; `miscounts`: whether /stats may
    have other counts afterwards than the clients."""

    name: str
    run: GatewayRuntime
    explains: frozenset[str] = frozenset()
    possible: Callable[[World], bool] = lambda world: True
    miscounts: bool = False


BREAKS: dict[str, Break] = {}


def _break(
    *explains: str, possible: Callable[[World], bool] = lambda world: True, miscounts: bool = False
) -> Callable[[GatewayRuntime], GatewayRuntime]:
    def register(run: GatewayRuntime) -> GatewayRuntime:
        name = run.__name__.replace("_", " ")
        BREAKS[name] = Break(name, run, frozenset(explains), possible, miscounts)
        return run

    return register


# A tunnel ends with the worker or the endpoint that it goes through, and with nothing else.
TUNNEL_ENDED = ("101 closed", "101 reset")


# What was sent to an endpoint that is killed may be done or not: a POST is not sent again.
@_break("502 closed", "503 refused", *TUNNEL_ENDED)
def endpoint_killed(world: World, chance: random.Random) -> Iterator[Ended]:
    number = world.endpoints.kill(chance)
    yield frozenset({instance(number)})
    world.endpoints.start_again(number)


@_break("502 closed", "503 refused", *TUNNEL_ENDED, possible=lambda world: not world.endpoints.announced)
def endpoint_ended(world: World, chance: random.Random) -> Iterator[Ended]:
    number = world.endpoints.end(chance)
    yield frozenset({instance(number)})
    world.endpoints.start_again(number)


@_break(*TUNNEL_ENDED, possible=lambda world: world.endpoints.announced)
def endpoint_restarted(world: World, chance: random.Random) -> Iterator[Ended]:
    number = world.endpoints.end(chance)
    world.endpoints.start_again(number)
    yield frozenset({instance(number)})


@_break("504 response_timeout")
def endpoint_hangs(world: World, chance: random.Random) -> Iterator[None]:
    number = world.endpoints.pause(chance)
    yield
    world.endpoints.resume(number)


@_break("502 closed", "503 refused", "503 no_endpoint", "503 breaker_open", *TUNNEL_ENDED)
def all_endpoints_killed(world: World, chance: random.Random) -> Iterator[None]:
    numbers = [world.endpoints.kill(chance) for _ in range(world.endpoints.count)]
    yield
    for number in numbers:
        world.endpoints.start_again(number)


@_break(possible=lambda world: world.endpoints.announced)
def engine_away(world: World, chance: random.Random) -> Iterator[None]:
    world.endpoints.cut_engine()
    yield
    world.endpoints.restore_engine()


# What a worker had in flight is lost with it.
@_break("lost closed", "lost reset", "lost truncated", *TUNNEL_ENDED, miscounts=True)
def worker_killed(world: World, chance: random.Random) -> Iterator[None]:
    os.kill(chance.choice(world.workers()), signal.SIGKILL)
    yield


@_break()
def worker_hangs(world: World, chance: random.Random) -> Iterator[None]:
    pid = chance.choice(world.workers())
    os.kill(pid, signal.SIGSTOP)
    yield
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


# The old one cuts the tunnels that are left after DRAIN_SECONDS.
@_break(*TUNNEL_ENDED)
def gateway_upgraded(world: World, chance: random.Random) -> Iterator[None]:
    yield from world.upgrade()


@_break()
def database_locked(world: World, chance: random.Random) -> Iterator[None]:
    with _connected(world.database) as lock:
        with contextlib.suppress(sqlite3.Error):
            lock.execute("BEGIN EXCLUSIVE")
        yield


@_break(possible=lambda world: world.has_a_disk)
def database_read_only(world: World, chance: random.Random) -> Iterator[None]:
    yield from world.protect()


@_break(miscounts=True)
def database_deleted(world: World, chance: random.Random) -> Iterator[None]:
    for path in world.database.parent.glob("rgate.db*"):
        path.unlink(missing_ok=True)
    yield


@_break(miscounts=True)
def database_garbled(world: World, chance: random.Random) -> Iterator[None]:
    with contextlib.suppress(OSError), world.database.open("r+b") as file:
        file.write(chance.randbytes(8192))
    yield


@_break(possible=lambda world: world.has_a_disk)
def database_full(world: World, chance: random.Random) -> Iterator[None]:
    filling = world.database.parent / "filling"
    with contextlib.suppress(OSError), filling.open("wb", buffering=0) as file:
        while file.write(bytes(65_536)):
            pass
    yield
    filling.unlink()


@_break()
def config_changed(world: World, chance: random.Random) -> Iterator[None]:
    world.write_config(default_response={"body": f"{chance.random()}", "status_code": 404})
    world.signal(signal.SIGHUP)
    yield


@_break()
def config_spoiled(world: World, chance: random.Random) -> Iterator[None]:
    world.write(chance.choice(["routes: [", "", "routes: [{path_prefix: /, backend: nobody}]", "\0\0"]))
    world.signal(signal.SIGHUP)
    yield
    world.write_config()
    world.signal(signal.SIGHUP)


@_break(possible=lambda world: world.tls and shutil.which("openssl") is not None)
def certificate_renewed(world: World, chance: random.Random) -> Iterator[None]:
    world.write_certificate()
    world.signal(signal.SIGHUP)
    yield


@_break(miscounts=True)
def clients_broken(world: World, chance: random.Random) -> Iterator[None]:
    half = b"POST /api/orders HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nhalf"
    pieces = [b"", b"GET /api", b"\x16\x03\x01", half, b"\0" * 99]
    with contextlib.ExitStack() as stack:
        for number in range(100):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", world.port), 5))
            with contextlib.suppress(OSError):
                sock.sendall(pieces[number % len(pieces)])
            if number % 3 == 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset, instead of an end
        yield
