"""A gateway as its users run it, in a process of its own, in front of what a test says; and programs that are its clients."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.types import WSGIApplication

import pytest
import yaml
from werkzeug.serving import make_server
from werkzeug.wsgi import get_input_stream

from ..support.processes import GatewayProcess
from ..support.waiting import DEADLINE_SECONDS


def program(name: str) -> str:
    """The path of a program; the test is skipped where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@contextmanager
def gateway(folder: Path, backends: Mapping[str, str], **server: Any) -> Iterator[str]:
    """The URL of a gateway that leads each path prefix to a URL."""
    config = {
        "routes": [{"path_prefix": prefix, "backend": prefix} for prefix in backends],
        "backends": [{"name": prefix, "endpoints": [url]} for prefix, url in backends.items()],
        "server": {"port": 0, **server},
        "plugins": {"disable": ["docker"], "stats": {"database": f"sqlite:///{folder}/stats.db"}},
    }
    file = folder / "config.yml"
    file.write_text(yaml.safe_dump(config))
    with GatewayProcess(file, "--log-level", "debug") as running:
        yield running.url
        running.stop()


@contextmanager
def wsgi_server(app: WSGIApplication) -> Iterator[str]:
    """The URL of a WSGI app on a server of its own, with an end to its input."""

    def limited(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return app({**environ, "wsgi.input": get_input_stream(environ)}, start_response)

    server = make_server("127.0.0.1", 0, limited, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join(DEADLINE_SECONDS)
        server.server_close()


def run(*command: str, cwd: Path | None = None, environ: Mapping[str, str] | None = None, seconds: float = 120) -> str:
    """What a program prints. Fails, with that and its errors, when it fails."""
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
