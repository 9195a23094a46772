"""`rgate stats`: a report of a running gateway, or from a database."""

from __future__ import annotations

from typing import Any

from .http_client import GatewayUnreachable, ask

__all__ = ["report_from_database", "report_from_gateway"]


def report_from_gateway(url: str, by: str | None, since: str | None) -> dict[str, Any]:
    """The answer of a running gateway at /stats, or at the path of `url` if it has one. Raises GatewayUnreachable."""
    query = {"by": by or None, "since": since or None}
    report, asked = ask(url, "/stats", query, not_there="there are no statistics of rgate")
    if not isinstance(report, dict) or not report.keys() >= {"requests_count", "latency_ms"}:
        raise GatewayUnreachable(f"what answers at {asked} is not a report of rgate")
    return report


def report_from_database(database: str, by: str | None, since: str | None) -> dict[str, Any]:
    """The report from a database, given as a file or as a URL. Raises GatewayUnreachable, naming it without its password."""
    from .. import QueryError
    from ..config.redaction import without_password
    from ..plugins.stats.report import StorageError, report  # imported here because no other command needs SQLAlchemy

    url = database if "://" in database else f"sqlite:///{database}"
    try:
        return report(url, by.split(",") if by else (), since)
    except QueryError as error:
        raise GatewayUnreachable(str(error)) from error
    except StorageError as error:
        name = without_password(database)
        raise GatewayUnreachable(str(error) if name in str(error) else f"{name}: {error}") from error
