"""A Docker engine of the test's own, for what a shared one must not be put through: absent, stopped, killed, hung, crowded."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from docker.client import DockerClient

from ..support.waiting import eventually
from .engine import EngineUnavailable, connect

START_LIMIT_SECONDS = 30.0
STOP_LIMIT_SECONDS = 30.0


class PrivateEngine:
    """A dockerd with its files in `home`, in memory; not running until `start()`. Needs root, dockerd, ip and mount.

    It has a bridge of its own (told `--bridge=none`, it would take docker0 away from the engine beside it) and leaves the
    firewall's rules alone: ports that containers publish are served by its proxy process. `home` must be a short
    path: that of a Unix socket has at most 107 bytes. With `containers_outlive_it` containers run on while it is stopped.
    `close()` ends it, its containers too, and takes its files and the bridge away.
    """

    def __init__(self, home: Path) -> None:
        self.containers_outlive_it = False
        self.address = f"unix://{home}/docker.sock"
        self._home = home
        self._dockerd: subprocess.Popen[bytes] | None = None
        self._was_killed = False
        # On a disk, removing the files of some hundred containers takes longer than all else.
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "rgate-test", str(home)], check=True)
        number = os.getpid() % 256  # tests that run side by side are processes with numbers side by side
        self._bridge = f"rgate-test-{number}"
        _ip("link", "add", "name", self._bridge, "type", "bridge")
        _ip("address", "add", f"10.213.{number}.1/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")

    def start(self) -> DockerClient:
        """Start the daemon, or start it again with what it had. The client is the caller's to close."""
        assert self._dockerd is None, "the private engine runs already"
        options = {
            "host": self.address,
            "data-root": f"{self._home}/data",
            "exec-root": f"{self._home}/exec",
            "pidfile": f"{self._home}/dockerd.pid",
            "storage-driver": "overlay2",
            "bridge": self._bridge,
            "iptables": "false",
            "ip-forward": "false",
            "live-restore": str(self.containers_outlive_it).lower(),
        }
        with open(f"{self._home}/dockerd.log", "ab") as log:
            self._dockerd = subprocess.Popen(
                ["dockerd", *(f"--{name}={value}" for name, value in options.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        clients: list[DockerClient] = []

        def answers() -> bool:
            assert self._dockerd and self._dockerd.poll() is None, f"dockerd ended; the end of its log:\n{self.log_tail()}"
            try:
                clients.append(connect(self.address))
            except EngineUnavailable:
                return False
            return True

        eventually(answers, f"the private engine answers; the end of its log:\n{self.log_tail()}", START_LIMIT_SECONDS)
        return clients[0]

    def stop(self) -> None:
        """End the daemon and with it its containers; `start()` starts those again whose restart policy says so."""
        if self._dockerd is not None:
            self._dockerd.terminate()
            self._dockerd.wait(STOP_LIMIT_SECONDS)
            self._dockerd = None

    def kill(self) -> None:
        """End the daemon at once, as running out of memory would. Its containers know nothing of it."""
        assert self._dockerd is not None, "the private engine does not run"
        self._dockerd.kill()
        self._dockerd.wait(STOP_LIMIT_SECONDS)
        self._dockerd, self._was_killed = None, True
        # Its containerd ends with it. Without an init process it stays a zombie, which the next daemon takes for alive.
        Path(f"{self._home}/exec/containerd/containerd.pid").unlink()

    def hang(self) -> None:
        """Have the daemon do nothing any more: it takes connections, and answers none. Until `go_on()`."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Have a daemon that hangs go on where it was."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        self.go_on()
        if self.containers_outlive_it or self._was_killed:
            client = self.start() if self._dockerd is None else connect(self.address)
            for container in client.containers.list(all=True):
                container.remove(force=True, v=True)
            client.close()
        self.stop()
        _ip("link", "delete", self._bridge)
        # dockerd mounts its data-root on itself, and once restarted does not always take that away.
        for mount in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            _, place, *_ = mount.split(" ")
            if place == str(self._home) or place.startswith(f"{self._home}/"):
                subprocess.run(["umount", "--lazy", place], check=True)

    def _signal(self, number: signal.Signals) -> None:
        if self._dockerd is not None:
            self._dockerd.send_signal(number)

    def log_tail(self) -> str:
        return "\n".join(Path(f"{self._home}/dockerd.log").read_text(errors="replace").splitlines()[-15:])


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
