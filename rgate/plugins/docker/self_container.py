"""The container that rgate itself runs in, if any. Imports nothing of rgate, so that a test can run it inside a container."""

from __future__ import annotations

import re
import socket
from pathlib import Path

__all__ = ["own_container_id"]

# Docker and podman mount these files from the container's own directory, so the id is in mountinfo under every cgroup version.
_MOUNT = re.compile(r"/([0-9a-f]{64})/(?:userdata/)?(?:hostname|hosts|resolv\.conf) /etc/(?:hostname|hosts|resolv\.conf) ")
_CGROUP = re.compile(r"[/-]([0-9a-f]{64})(?:\.scope)?$", re.MULTILINE)
_SHORT_ID = re.compile(r"[0-9a-f]{12}")


def own_container_id(root: Path = Path("/"), hostname: str = "") -> str:
    """The id, or its first twelve digits; empty outside of a container. It may belong to an engine other than the config's."""
    if found := _MOUNT.search(_text(root / "proc/self/mountinfo")):
        return found[1]
    if found := _CGROUP.search(_text(root / "proc/self/cgroup")):
        return found[1]
    hostname = hostname or socket.gethostname()
    return hostname if (root / ".dockerenv").exists() and _SHORT_ID.fullmatch(hostname) else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # not Linux
        return ""
