"""Notifications to systemd, or to another service manager that sets NOTIFY_SOCKET: sd_notify(3), without its library."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping, MutableMapping

__all__ = ["notify", "notify_main_pid", "notify_reloaded", "notify_reloading", "watchdog_wanted"]

_log = logging.getLogger("rgate.process")


def notify(*assignments: str, environ: Mapping[str, str] = os.environ) -> None:
    """Send assignments: READY=1, RELOADING=1, STOPPING=1, STATUS=…, MAINPID=…, WATCHDOG=1. Without NOTIFY_SOCKET does nothing."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)  # its queue may be full; the gateway does not wait
            sock.sendto("\n".join(assignments).encode(), f"\0{address[1:]}" if address[0] == "@" else address)
    except OSError as error:
        sent = " ".join(assignments)
        _log.warning("cannot notify systemd of %s: %s", sent, error, extra={"dedup_key": (sent, str(error))})


def notify_main_pid(pid: int, environ: MutableMapping[str, str] = os.environ) -> None:
    """Say that another process is the main one. Nothing is sent after that, because systemd accepts messages from no other."""
    notify(f"MAINPID={pid}", "STATUS=", environ=environ)
    environ.pop("NOTIFY_SOCKET", None)


def notify_reloading() -> None:
    """Say that a reload has started, which systemd waits for if it has requested it (Type=notify-reload)."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")


def notify_reloaded(refused: str, requested: bool) -> None:
    """Set the line that `systemctl status` shows ("": none), and end a notify_reloading() if the reload was `requested`."""
    notify(*(("READY=1",) if requested else ()), f"STATUS={'; '.join(refused.splitlines())}")


def watchdog_wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process must send WATCHDOG=1 repeatedly. Once per second is enough for a WatchdogSec of 2 or more."""
    return "WATCHDOG_USEC" in environ and environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
