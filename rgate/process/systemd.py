"""What is said to systemd, or to whoever else has set NOTIFY_SOCKET: sd_notify(3), without its library."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping, MutableMapping

__all__ = ["notify", "notify_main_pid", "notify_reloaded", "notify_reloading", "watchdog_wanted"]

_log = logging.getLogger("rgate.process")


def notify(*assignments: str, environ: Mapping[str, str] = os.environ) -> None:
    """Tell it some of READY=1, RELOADING=1, STOPPING=1, STATUS=…, MAINPID=…, WATCHDOG=1. Nothing when nobody wants to know."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)  # its queue may be full; a gateway does not wait for that
            sock.sendto("\n".join(assignments).encode(), f"\0{address[1:]}" if address[0] == "@" else address)
    except OSError as error:
        said = " ".join(assignments)
        _log.warning("cannot tell systemd %s: %s", said, error, extra={"dedup_key": (said, str(error))})


def notify_main_pid(pid: int, environ: MutableMapping[str, str] = os.environ) -> None:
    """Tell it that another process is the main one, and nothing after that, as it listens to no other."""
    notify(f"MAINPID={pid}", "STATUS=", environ=environ)
    environ.pop("NOTIFY_SOCKET", None)


def notify_reloading() -> None:
    """Tell it that the config is read again, as whoever asked for that wants to know when it is over (Type=notify-reload)."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")


def notify_reloaded(refused: str, asked: bool) -> None:
    """Tell it what `systemctl status` is to show, "" for nothing, and the end of a reload_begins() if it was `asked` for."""
    notify(*(("READY=1",) if asked else ()), f"STATUS={'; '.join(refused.splitlines())}")


def watchdog_wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is to say WATCHDOG=1 again and again: once a second is enough for any WatchdogSec of 2 or more."""
    return "WATCHDOG_USEC" in environ and environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
