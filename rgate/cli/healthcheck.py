"""`rgate healthcheck`: whether a gateway is ready for requests, for container engines and scripts. Imports next to nothing."""

from __future__ import annotations

import sys
from typing import Final

from ..serving.runtime_dir import admin_sockets
from .http_client import DEFAULT_URL, Response, parse_url, request

__all__ = ["check", "run"]

DEFAULT_PORT: Final = 8080
READY_PATH: Final = "/-/ready"
TIMEOUT_SECONDS: Final = 4.0
MAX_BYTES: Final = 65_536


def run(url: str | None = None) -> int:
    """Print a line and return the exit code: 0 if the gateway is ready, 1 if it is not, 2 if `url` is not a URL.

    Without a `url`: the admin socket of the gateway at port 8080, else the only admin socket on this machine, else port 8080.
    """
    try:
        ready, line = check(_default_url() if url is None else url)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(line, file=sys.stdout if ready else sys.stderr)
    return 0 if ready else 1


def check(url: str = DEFAULT_URL) -> tuple[bool, str]:
    """Whether the gateway at `url` is ready, and a line that says so or why not. Raises ValueError if it is not a URL.

    The path is /-/ready unless the URL has another one; any status but 200 means that it is not ready. The certificate is not
    verified: the gateway usually runs on this machine, and nothing is sent to it.
    """
    address = parse_url(url)
    path = address.path or READY_PATH
    try:
        response = request(address, path, verify=False, timeout_seconds=TIMEOUT_SECONDS, max_bytes=MAX_BYTES)
    except (OSError, ValueError) as error:
        return False, f"no gateway answers at {url}: {getattr(error, 'strerror', None) or error}"
    if response.status == 200:
        return True, "ready"
    return False, _why_not(url, path, response)


def _default_url() -> str:
    sockets = [each for each in admin_sockets() if each.accessible]
    chosen = [each for each in sockets if each.port == DEFAULT_PORT and not each.host] or sockets
    return f"unix:{chosen[0].path}" if len(chosen) == 1 else DEFAULT_URL


def _why_not(url: str, path: str, response: Response) -> str:
    answer = response.json
    if response.status == 503 and isinstance(answer, dict) and "ready" in answer:
        reasons = answer.get("reasons")
        words = [f"{name}: {reason}" for name, reason in reasons.items()] if isinstance(reasons, dict) else []
        return f"not ready: {'; '.join(words) or 'no reason given'}"
    if path == READY_PATH:
        return f"{url} answers {response.status} at {path}; is this rgate, and may this machine ask (plugins.admin.probes)?"
    return f"{url} answers {response.status}"
