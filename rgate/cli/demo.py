"""The demo: one payment and two orders services, with which rgate can be tried.

By default they are child processes. To rgate they are like containers: instances with labels that a discovery source lists. That
source is a plugin like any other, defined here and registered for the demo only.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import TypeAlias

from ..config import Config
from ..discovery.model import Address, Instance
from ..errors import ConfigProblem, RgateError
from ..plugin.hookspecs import DiscoverySource, hookimpl
from ..plugin.registry import Registry

__all__ = ["CONFIG", "SERVICES", "DemoUnavailable", "LocalProcesses", "backends"]

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIG = CHECKOUT / "config.yml"
COMPOSE_FILE = CHECKOUT / "docker-compose.yml"
SERVICES = (("payment", 1), ("orders", 2))
"""The services, each with the number of its instances."""

START_SECONDS = 10.0
STOP_SECONDS = 5.0
WATCH_SECONDS = 0.2

Demo: TypeAlias = "tuple[Callable[[], Registry], Sequence[str], Callable[[], object]]"


class DemoUnavailable(RgateError):
    """The demo cannot run here; the message says what it needs."""


def labels_of(service: str) -> dict[str, str]:
    """The labels that docker-compose.yml gives a service."""
    return {"app_name": service, "env": "production"}


@contextmanager
def backends(docker: bool) -> Iterator[Demo]:
    """Run the backends while inside. Yields a factory of the registry to load CONFIG with, the hints to print, and a function
    that kills the backends. Raises DemoUnavailable.
    """
    missing = [path.name for path in (CONFIG, COMPOSE_FILE, CHECKOUT / "backends") if not path.exists()]
    if missing:
        what = " and no ".join(missing)
        raise DemoUnavailable(
            f"the demo needs a checkout of rgate, but there is no {what} in {CHECKOUT}; in a checkout run: make demo"
        )
    # Before and after the gateway serves, SIGTERM must end what has been started here, as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _containers() if docker else _processes() as demo:
            yield demo
    finally:
        signal.signal(signal.SIGTERM, before)


# As processes


class LocalProcess:
    """A service as a child process, on a free port of 127.0.0.1. Raises DemoUnavailable if it does not start."""

    def __init__(self, service: str, name: str) -> None:
        self.name = name
        self.labels = labels_of(service)
        command = [sys.executable, str(CHECKOUT / "backends" / service / "app.py"), "--port", "0"]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "INSTANCE": name, "HOST": "127.0.0.1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it has a line for every request
            start_new_session=True,  # so that after Ctrl-C the gateway drains before its backends end
        )
        self.pid = self._process.pid
        try:
            self.address = Address("http", "127.0.0.1", self._announced_port())
        except BaseException:
            self.stop()
            raise

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Terminate it, and kill it if that takes longer than STOP_SECONDS."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def kill(self) -> None:
        """Kill it."""
        self._process.send_signal(signal.SIGKILL)

    def _announced_port(self) -> int:
        """The port in the line that it prints when it starts."""
        output, printed, deadline = self._process.stdout, b"", monotonic() + START_SECONDS
        while output and b"\n" not in printed and select.select([output], [], [], max(0, deadline - monotonic()))[0]:
            block = os.read(output.fileno(), 4096)
            if not block:
                break
            printed += block
        match = re.search(rb"http://[^\s/]+:(\d+)", printed)
        if match is None:
            command = " ".join(map(str, self._process.args)) if isinstance(self._process.args, list) else ""
            raise DemoUnavailable(f"{self.name} does not start; to see why, run: {command}")
        return int(match[1])


class LocalProcesses:
    """The plugin that lists the processes: a discovery source with a watch."""

    name = "local_processes"

    def __init__(self, processes: Iterable[LocalProcess]) -> None:
        self._processes = tuple(processes)

    @hookimpl
    def rgate_discovery_sources(self, config: Config) -> DiscoverySource:
        return self

    def list(self) -> Iterator[Instance]:
        for process in self._processes:
            if process.exit_code is None:
                yield Instance(process.name, process.name, process.labels, process.address)
            else:
                yield Instance(process.name, process.name, process.labels, reason=f"ended with exit code {process.exit_code}")

    def watch(self, changed: Callable[[], None], stop: threading.Event) -> None:
        before = [process.exit_code for process in self._processes]
        while not stop.wait(WATCH_SECONDS):
            now = [process.exit_code for process in self._processes]
            if now != before:
                before = now
                changed()


class _DemoRegistry(Registry):
    """Without the plugin docker, because the demo's config would also match containers with the same labels."""

    def activate(self, wanted: Collection[str] = (), disabled: Collection[str] = ()) -> list[ConfigProblem]:
        return super().activate(wanted, {*disabled, "docker"})


@contextmanager
def _processes() -> Iterator[Demo]:
    with ExitStack() as stack:
        processes = []
        for service, count in SERVICES:
            for number in range(1, count + 1):
                processes.append(LocalProcess(service, f"{service}-{number}"))
                stack.callback(processes[-1].stop)
        plugin = LocalProcesses(processes)

        def make_registry() -> Registry:
            registry = _DemoRegistry()
            registry.register("local_processes", plugin)
            return registry

        orders = " ".join(str(process.pid) for process in processes if process.labels == labels_of("orders"))

        def kill_all() -> None:
            for process in processes:
                process.kill()

        yield make_registry, _hints(f"kill {orders}"), kill_all


# As containers


@contextmanager
def _containers() -> Iterator[Demo]:
    compose = [*_compose(), "--file", str(COMPOSE_FILE)]
    try:
        if subprocess.run([*compose, "up", "--build", "--detach"], stdin=subprocess.DEVNULL).returncode:
            raise DemoUnavailable(
                f"the containers do not start: see above; the command was: {' '.join(compose)} up --build --detach"
            )
        yield Registry, _hints(f"{' '.join(compose)} stop orders"), lambda: None
    finally:
        subprocess.run([*compose, "down", "--timeout", "2"], stdin=subprocess.DEVNULL)


def _compose() -> Sequence[str]:
    """The command for docker compose here: version 2 is a part of docker, version 1 a separate program."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            break
    else:
        raise DemoUnavailable("the demo with containers needs docker compose, or docker-compose; without them, run: rgate demo")
    if subprocess.run(["docker", "version"], capture_output=True).returncode:
        raise DemoUnavailable("no Docker engine answers (to see why, run: docker version); without one, run: rgate demo")
    return command


def _hints(stop_orders: str) -> Sequence[str]:
    tries = (
        ("curl -i {url}/api/payment", "200 from the payment service, in the envelope that config.yml configures"),
        ("curl -i {url}/api/orders", '200; repeat it, and both orders services answer (see "instance")'),
        ("curl -i {url}/nowhere", "403, the default_response of config.yml"),
        ("curl -s {url}/stats", "the number of requests, and how fast they were answered"),
        (stop_orders, "stops both orders services, which is logged here; /api/orders is then a 503, never a 404"),
    )
    lines = [line for command, outcome in tries for line in (f"  {command}", f"      {outcome}")]
    return ["", "Try, in another terminal:", *lines, "", "Ctrl-C stops the gateway and its backends."]
