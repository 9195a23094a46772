"""Reports for `rgate stats`: of a running gateway, or out of a database."""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import ProxyHandler, build_opener

from .errors import RgateError

__all__ = ["NoAnswer", "of_database", "of_gateway"]

TIMEOUT_SECONDS = 10
MAX_BYTES = 64 * 1024 * 1024


class NoAnswer(RgateError):
    """There is no report to be had; the message says why."""


def of_gateway(url: str, by: str | None, since: str | None) -> dict[str, Any]:
    """What a running gateway answers at /stats, or at the path of `url` when it has one. Raises NoAnswer."""
    parts = urlsplit(url if "//" in url else f"//{url}", scheme="http")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise NoAnswer(f"{url!r} is no URL of a gateway; write one like http://127.0.0.1:8080")
    query = urlencode({name: value for name, value in (("by", by), ("since", since)) if value})
    asked = parts._replace(path=parts.path if parts.path.strip("/") else "/stats", query=query).geturl()
    try:
        # No proxy: a gateway is asked, not the web.
        with build_opener(ProxyHandler({})).open(asked, timeout=TIMEOUT_SECONDS) as response:
            return _report(response.read(MAX_BYTES), asked)
    except HTTPError as error:
        with error:
            body = error.read(10_000)
        raise NoAnswer(f"{asked} answers {error.code}: {_message(body)}") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        why = " ".join(str(getattr(reason, "strerror", None) or reason).split())
        raise NoAnswer(f"no gateway answers at {asked}: {why}; is it running? --url names another") from None


def of_database(database: str, by: str | None, since: str | None) -> dict[str, Any]:
    """What a database holds, given as a file or as a URL. Raises NoAnswer."""
    from .plugins.stats.query import QueryError  # here, because nothing else of the command line needs SQLAlchemy
    from .plugins.stats.report import report
    from .plugins.stats.trouble import Trouble

    url = database if "://" in database else f"sqlite:///{database}"
    try:
        return report(url, by.split(",") if by else (), since)
    except (QueryError, Trouble) as error:
        raise NoAnswer(str(error)) from error


def _report(body: bytes, asked: str) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found.keys() >= {"requests_count", "latency_ms"}:
        raise NoAnswer(f"what answers at {asked} is no statistics of rgate")
    return found


def _message(body: bytes) -> str:
    """The words of a fault of rgate; otherwise where to look."""
    try:
        return str(json.loads(body)["body"])
    except (ValueError, KeyError, TypeError):
        return "there are no statistics of rgate"
