"""A gateway as its users run it, in a process of its own, in front of what a test says; and programs that are its clients."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
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

from ..waiting import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]


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
    command = [sys.executable, str(ROOT / "rgate.py"), "--config", str(file), "--log-level", "debug"]
    log = (folder / "gateway.log").open("w+")
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield _listening(process, folder / "gateway.log")
    finally:
        process.terminate()
        try:
            process.communicate(timeout=PATIENCE_SECONDS + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        log.close()


def _listening(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        match = re.search(r"listening on (http://\S+)", line)
        if match:
            # What it says later must not fill the pipe.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return match[1]
    raise AssertionError(f"the gateway does not start: {log.read_text()}")


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
        thread.join(PATIENCE_SECONDS)
        server.server_close()


def run(*command: str, cwd: Path | None = None, environ: Mapping[str, str] | None = None, seconds: float = 120) -> str:
    """What a program prints. Fails, with that and its errors, when it fails."""
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
