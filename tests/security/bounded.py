"""A gateway in a process of its own whose memory is limited. `python -m tests.security.bounded URL OPTIONS` serves before URL.

It prints its own URL, then, for every line that it reads, how much memory it has taken at most since it began to serve, in
bytes. It ends at the end of its input. When it needs more than the limit, it dies.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
from pathlib import Path

from rgate.serving.server import Server
from rgate.testing import running_gateway

MORE_BYTES = 1_000_000_000  # of address space; most of it is reserved for stacks and never used


def status(name: str) -> int:
    """A figure of this process, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1_024


def main(backend: str, options: str) -> None:
    """Serve until the end of the input."""
    threading.stack_size(262_144)
    config = {
        "server": {"port": 0, "drain_seconds": 0, **json.loads(options)},
        "backends": [{"name": "backend", "endpoints": [backend]}],
        "routes": [{"path_prefix": "/", "backend": "backend"}],
    }
    with running_gateway(config) as gateway:
        server = Server(gateway, gateway.config.server)
        thread = threading.Thread(target=server.run)
        thread.start()
        resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + MORE_BYTES,) * 2)
        before = status("VmHWM")
        print(server.url, flush=True)
        for _ in sys.stdin:
            print(status("VmHWM") - before, server.threads, flush=True)
        server.stop()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    main(*sys.argv[1:])
