"""Reports for `rgate stats`: of a running gateway, or out of a database."""

from __future__ import annotations

from typing import Any

from .http_client import GatewayUnreachable, ask

__all__ = ["GatewayUnreachable", "of_database", "of_gateway"]


def of_gateway(url: str, by: str | None, since: str | None) -> dict[str, Any]:
    """What a running gateway answers at /stats, or at the path of `url` when it has one. Raises GatewayUnreachable."""
    query = {"by": by or None, "since": since or None}
    found, asked = ask(url, "/stats", query, not_there="there are no statistics of rgate")
    if not isinstance(found, dict) or not found.keys() >= {"requests_count", "latency_ms"}:
        raise GatewayUnreachable(f"what answers at {asked} is no statistics of rgate")
    return found


def of_database(database: str, by: str | None, since: str | None) -> dict[str, Any]:
    """What a database holds, given as a file or as a URL. Raises GatewayUnreachable, whose message names it without a password."""
    from .. import QueryError
    from ..config.redaction import without_password
    from ..plugins.stats.report import StorageError, report

    url = database if "://" in database else f"sqlite:///{database}"
    try:
        return report(url, by.split(",") if by else (), since)
    except QueryError as error:
        raise GatewayUnreachable(str(error)) from error
    except StorageError as error:
        name = without_password(database)
        raise GatewayUnreachable(str(error) if name in str(error) else f"{name}: {error}") from error
