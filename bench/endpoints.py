"""What stands behind the gateway while it is put through something: the demo's orders service with an echo for WebSockets, as
processes or containers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from .backend.bodies import JSON
from .gateways import PREFIX, ROOT, fill, program
from .load import connect
from .machine import free_port

__all__ = ["Containers", "Endpoints", "Nginxes", "Processes", "instance"]

ORDERS = ROOT / "backends" / "orders"
ECHO = ROOT / "bench" / "backend" / "echo.py"
UP_SECONDS = 20.0


def instance(number: int) -> str:
    """What an endpoint calls itself."""
    return f"orders-{number}"


class Endpoints(Protocol):
    """Several endpoints of one backend, each known by its number."""

    count: int
    path: str
    """What they answer to."""
    announced: bool
    """Whether the gateway is told when one ends."""
    config: dict[str, Any]
    """What a config says of them."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self, chance: random.Random) -> int: ...
    def end(self, chance: random.Random) -> int: ...
    def pause(self, chance: random.Random) -> int: ...
    def resume(self, number: int) -> None: ...
    def start_again(self, number: int) -> None: ...
    def cut_engine(self) -> None: ...
    def restore_engine(self) -> None: ...


class Processes:
    """At fixed ports of 127.0.0.1, so nobody tells the gateway when one ends."""

    path = "/api/orders"
    announced = False

    def __init__(self, count: int = 3) -> None:
        self.count = count
        self._ports = [free_port() for _ in range(count)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.config = {"backends": [{"name": "orders", "endpoints": [f"http://127.0.0.1:{port}" for port in self._ports]}]}

    def start(self) -> None:
        for number in range(self.count):
            self.start_again(number)

    def stop(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()

    def kill(self, chance: random.Random) -> int:
        number = self._pick(chance)
        self._processes[number].kill()
        self._processes.pop(number).wait()
        return number

    def end(self, chance: random.Random) -> int:
        number = self._pick(chance)
        self._processes[number].terminate()
        self._processes.pop(number).wait()
        return number

    def pause(self, chance: random.Random) -> int:
        number = self._pick(chance)
        self._processes[number].send_signal(signal.SIGSTOP)
        return number

    def resume(self, number: int) -> None:
        self._processes[number].send_signal(signal.SIGCONT)

    def start_again(self, number: int) -> None:
        command = self._command(number)
        env = {**os.environ, "INSTANCE": instance(number), "PYTHONPATH": str(ORDERS)}
        quiet = subprocess.DEVNULL
        self._processes[number] = subprocess.Popen(command, env=env, stdin=quiet, stdout=quiet, stderr=quiet)
        _wait_until_up(self._ports[number])

    def cut_engine(self) -> None: ...

    def restore_engine(self) -> None: ...

    def _command(self, number: int) -> list[str]:
        return [sys.executable, str(ECHO), "--port", str(self._ports[number])]

    def _pick(self, chance: random.Random) -> int:
        return chance.choice(sorted(self._processes))


class Nginxes(Processes):
    """The same with nginx, which has an answer sooner than the gateway has asked."""

    path = PREFIX

    def __init__(self, folder: Path, count: int = 3) -> None:
        super().__init__(count)
        self._folder = folder

    def _command(self, number: int) -> list[str]:
        folder = self._folder / f"nginx-{number}"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        places = {"port": str(self._ports[number]), "folder": str(folder), "json": JSON.decode()}
        text = (ROOT / "bench" / "backend" / "nginx.conf").read_text().replace("daemon off;", "daemon off; master_process off;")
        (folder / "nginx.conf").write_text(fill(text, places))
        return [program("nginx") or "nginx", "-c", str(folder / "nginx.conf")]


class Containers:
    """Found by label, through an address of the engine that can be cut off."""

    path = "/api/orders"
    announced = True

    def __init__(self, folder: Path, count: int = 3) -> None:
        from tests.docker.relay import EngineRelay

        self.count = count
        self._label = f"rgate.chaos={os.getpid()}"
        self._names = [f"rgate-chaos-{os.getpid()}-{number}" for number in range(count)]
        self._running: set[int] = set()
        self._relay = EngineRelay("/var/run/docker.sock", folder / "docker.sock")
        self.config = {
            "backends": [{"name": "orders", "match_labels": [self._label]}],
            "plugins": {"docker": {"host": self._relay.address}},
        }

    def start(self) -> None:
        base = subprocess.run([ROOT / ".ci" / "engine", "base-image"], check=True, capture_output=True, text=True).stdout.strip()
        _docker("build", "--quiet", "--build-arg", f"BASE_IMAGE={base}", "--tag", "rgate-chaos-orders", str(ORDERS))
        self._relay.restore()
        for number, name in enumerate(self._names):
            known = ["--name", name, "--label", self._label, "--env", f"INSTANCE={instance(number)}"]
            reached = ["--publish", "127.0.0.1::8000", "--volume", f"{ECHO}:/srv/echo.py:ro"]
            _docker("run", "--detach", *known, *reached, "rgate-chaos-orders", "python3", "/srv/echo.py")
            self._running.add(number)
            _wait_until_up(self._port(number))

    def stop(self) -> None:
        _docker("rm", "--force", "--volumes", *self._names)
        self._relay.cut()

    def kill(self, chance: random.Random) -> int:
        return self._do("kill", chance)

    def end(self, chance: random.Random) -> int:
        return self._do("stop", chance)

    def pause(self, chance: random.Random) -> int:
        number = chance.choice(sorted(self._running))
        _docker("pause", self._names[number])
        return number

    def resume(self, number: int) -> None:
        _docker("unpause", self._names[number])

    def start_again(self, number: int) -> None:
        _docker("start", self._names[number])
        self._running.add(number)

    def cut_engine(self) -> None:
        self._relay.cut()

    def restore_engine(self) -> None:
        self._relay.restore()

    def _do(self, what: str, chance: random.Random) -> int:
        number = chance.choice(sorted(self._running))
        self._running.remove(number)
        _docker(what, self._names[number])
        return number

    def _port(self, number: int) -> int:
        return int(_docker("port", self._names[number], "8000/tcp").split(":")[-1])


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def _wait_until_up(port: int) -> None:
    until = time.monotonic() + UP_SECONDS
    while time.monotonic() < until:
        try:
            connect(port, 2.0).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise OSError(f"nothing listens at port {port}")
