"""The pages at a unix socket, of worker processes that die and of a gateway that is succeeded by another."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from ..waiting import eventually
from .processes import PATIENCE_SECONDS, rgate

CONFIG = """\
server: {{workers: {workers}}}
backends: [{{name: a, endpoints: ["http://127.0.0.1:9"]}}]
routes: [{{path_prefix: /, backend: a}}]
plugins: {{disable: [stats, docker_labels], admin: {{address: "unix:{path}"}}}}
"""


def process_at(path: Path) -> int:
    """The number of the process that answers there; 0 when none does."""
    with suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(b"GET /-/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        response = b"".join(iter(lambda: sock.recv(65_536), b""))
        return int(json.loads(response.partition(b"\r\n\r\n")[2])["process"])
    return 0


def test_unix_socket_is_answered_again_when_the_worker_that_has_it_is_killed() -> None:
    with TemporaryDirectory(prefix="rgate-") as folder:
        path, config = Path(folder) / "admin.sock", Path(folder) / "config.yml"
        config.write_text(CONFIG.format(workers=2, path=path))
        with rgate(config) as processes:
            processes.url()
            for _ in range(2):
                one = eventually(lambda: process_at(path), "somebody answers", PATIENCE_SECONDS)
                os.kill(one, signal.SIGKILL)
                eventually(lambda: process_at(path) not in (0, one), "another answers", PATIENCE_SECONDS)  # noqa: B023
            processes.end(processes.process.pid)
        assert not path.exists()


def test_unix_socket_goes_to_the_successor_and_comes_back_from_one_that_gives_up() -> None:
    with TemporaryDirectory(prefix="rgate-") as folder:
        path, config = Path(folder) / "admin.sock", Path(folder) / "config.yml"
        config.write_text(CONFIG.format(workers=1, path=path))
        with rgate(config) as processes:
            processes.url()
            first = processes.process.pid
            assert eventually(lambda: process_at(path), "it answers", PATIENCE_SECONDS) == first
            second = processes.upgrade(first)
            eventually(lambda: process_at(path) == second, "the successor answers", PATIENCE_SECONDS)
            config.write_text("routes: 1")
            os.kill(second, signal.SIGUSR2)
            processes.until("no upgrade")
            eventually(lambda: process_at(path) == second, "it goes on", PATIENCE_SECONDS)
            processes.end(second)
        assert not path.exists()
