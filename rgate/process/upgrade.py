"""Starts a successor of this process on the same sockets, for an upgrade without a lost request.

    this process ── starts, with the listening sockets ──→ successor: loads the installed code and the config, finds endpoints
    this process ←────────────────────────────── "ready" ── successor: accepts connections from now on
    this process: accepts no more connections, answers the requests it has, ends

No connection is lost in between: connections that are not accepted yet wait in the sockets' queues, which both processes share.

The successor is started by a small intermediate process, which ends before this process sends MAINPID, so that systemd adopts
the orphan as its own child. On a stop, systemd kills any other main process at once instead of waiting for its end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from ..errors import RgateError
from .socket_activation import FIRST_DESCRIPTOR, READY, REDIRECT, child_environ

if TYPE_CHECKING:
    import socket

__all__ = ["UPGRADE_SECONDS", "UpgradeProcess"]

UPGRADE_SECONDS: Final = 60.0  # how long this process waits for its successor

# The intermediate process: start the command, report its process number, end as it does.
_LAUNCHER: Final = """
import os, signal, sys
tell, command = int(sys.argv[1]), sys.argv[2:]
os.set_inheritable(tell, False)
signal.signal(signal.SIGINT, signal.SIG_DFL)
pid = os.fork()
if not pid:
    os.execve(command[0], command, {**os.environ, "LISTEN_PID": str(os.getpid())})
os.closerange(3, tell)
os.write(tell, b"%d" % pid)
os.close(tell)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
if code < 0:
    os.kill(os.getpid(), -code)
os._exit(code)
"""


class _Listeners(Protocol):
    @property
    def main(self) -> Sequence[socket.socket]: ...

    @property
    def redirect(self) -> Sequence[socket.socket]: ...

    @property
    def externally_owned(self) -> bool: ...


class UpgradeProcess:
    """A process with the same command line, environment and directory as this one, and the same Python.

    Wait until fileno() is readable, for at most UPGRADE_SECONDS, then call finish(). Raises RgateError if it cannot be
    started.
    """

    def __init__(self, listeners: _Listeners, command: list[str] | None = None) -> None:
        if os.getpid() == 1:
            raise RgateError("a container ends with its process 1, so process 1 cannot have a successor; start another container")
        command = command or [sys.executable, *sys.orig_argv[1:]]
        sockets = [*listeners.main, *listeners.redirect]
        names = ["main"] * len(listeners.main) + [REDIRECT] * len(listeners.redirect)
        ready = FIRST_DESCRIPTOR + len(sockets)
        tell = ready + 1
        self._serves = False
        self._receiver, sender = os.pipe()
        told, teller = os.pipe()
        copies: list[int] = []
        try:
            for source in (*(it.fileno() for it in sockets), sender, teller):  # to numbers beyond those that they will have
                copies.append(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, tell + 1))
            self._between = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(tell), *command],
                child_environ(names, ready, listeners.externally_owned),
                file_actions=[(os.POSIX_SPAWN_DUP2, copy, FIRST_DESCRIPTOR + at) for at, copy in enumerate(copies)],
                setsigmask=(),
            )
        except OSError as error:
            os.close(self._receiver)
            os.close(told)
            raise RgateError(f"{sys.executable} cannot be started: {error.strerror}") from error
        finally:
            for descriptor in (*copies, sender, teller):
                os.close(descriptor)
        with open(told, "rb") as pid:
            self.pid = int(pid.read() or 0)
        if not self.pid:
            os.close(self._receiver)
            os.waitpid(self._between, 0)
            raise RgateError("another process cannot be started")

    def fileno(self) -> int:
        """A descriptor that is readable when the process serves or has ended."""
        return self._receiver

    def wait(self) -> None:
        """Wait, at most UPGRADE_SECONDS, and then finish()."""
        poll = select.poll()
        poll.register(self._receiver, select.POLLIN)
        self.finish(in_time=bool(poll.poll(UPGRADE_SECONDS * 1_000)))

    def kill(self) -> None:
        """Kill the process, so that finish() raises. Does nothing if it serves already."""
        if not self._serves:
            _kill(self.pid)

    def finish(self, in_time: bool = True) -> None:
        """Return if the process serves; otherwise kill it and raise RgateError. If not `in_time`, do not wait for it."""
        try:
            if in_time and os.read(self._receiver, len(READY)) == READY:
                self._serves = True
                _kill(self._between)
                os.waitpid(self._between, 0)  # by then it has no children
                return
        finally:
            os.close(self._receiver)
        self.kill()  # no effect if it is ending
        code = os.waitstatus_to_exitcode(os.waitpid(self._between, 0)[1])
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        raise RgateError(f"process {self.pid} {f'ended with {how}' if in_time else 'was not ready in time'}")


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
