"""Which container rgate itself runs in, if any."""

from __future__ import annotations

import re
import socket
from pathlib import Path

__all__ = ["own_container_id"]

# Docker and podman mount these files of the container's own directory into it, so the id is there under every cgroup version.
_MOUNT = re.compile(r"/([0-9a-f]{64})/(?:userdata/)?(?:hostname|hosts|resolv\.conf) /etc/(?:hostname|hosts|resolv\.conf) ")
_CGROUP = re.compile(r"[/-]([0-9a-f]{64})(?:\.scope)?$", re.MULTILINE)
_SHORT_ID = re.compile(r"[0-9a-f]{12}")


def own_container_id(root: Path = Path("/"), hostname: str = "") -> str:
    """The id, whole or its first twelve digits; empty outside of a container. It need not be one of the engine we ask."""
    if found := _MOUNT.search(_text(root / "proc/self/mountinfo")):
        return found[1]
    if found := _CGROUP.search(_text(root / "proc/self/cgroup")):
        return found[1]
    hostname = hostname or socket.gethostname()
    return hostname if (root / ".dockerenv").exists() and _SHORT_ID.fullmatch(hostname) else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # no Linux
        return ""
