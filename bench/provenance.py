"""What was measured, on what and when: without it figures mean nothing."""

from __future__ import annotations

import datetime
import re
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from rgate.version import VERSION

from .gateways import GATEWAYS, ROOT, Gateway, program
from .machine import description

__all__ = ["provenance"]

_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)*")


def provenance(gateways: Iterable[str]) -> dict[str, object]:
    """The date, the machine, and versions of rgate and of these gateways."""
    versions = {name: _version(GATEWAYS[name]) for name in gateways if GATEWAYS[name].asked_version}
    return {"date": datetime.date.today().isoformat(), "rgate": _rgate(), "versions": versions, **description()}


def _rgate() -> str:
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = "+" if commit and _output("git", "-C", str(ROOT), "status", "--porcelain", "--", "rgate") else ""
    return f"{VERSION} ({commit}{changed})" if commit else VERSION


def _version(gateway: Gateway) -> str:
    if gateway.module:
        try:
            return version(gateway.asked_version)
        except PackageNotFoundError:
            return "?"
    found = _VERSION.search(_output(program(gateway.program) or gateway.program, gateway.asked_version))
    return found[0] if found else "?"


def _output(*command: str) -> str:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (ended.stdout + ended.stderr).strip() if ended.returncode == 0 else ""
