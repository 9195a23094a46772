"""Certificates that end: said before it is too late, and once a day."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from rgate.config.models import TLSConfig
from rgate.testing import make_gateway
from rgate.tls.server_context import ServerTLS

from ..support.certificates import authority

END = datetime(2031, 5, 17, 12, 30, tzinfo=UTC)
ENDING = authority().issue("ending.example", not_after=END)
EXPIRED = authority().issue("expired.example", not_after=datetime(2024, 1, 2, 3, 4, tzinfo=UTC))
DAY = 86_400.0


def tls(**options: Any) -> ServerTLS:
    return ServerTLS(TLSConfig(certificate=ENDING.certificate, key=ENDING.key, **options))


@pytest.mark.parametrize(
    ("days", "said"),
    [(14.1, ""), (13.9, "in 13 days"), (1.5, "in 1 day"), (0.5, "expires today"), (-0.1, "has expired"), (-400, "has expired")],
)
def test_certificate_is_told_of_two_weeks_before_its_end(days: float, said: str) -> None:
    note = tls().expiry_warning(END.timestamp() - days * DAY)
    assert said in note and bool(note) == bool(said), note
    if note:
        assert ENDING.certificate in note and "(2031-05-17 12:30 UTC)" in note


def test_certificate_is_told_of_once_a_day(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "rgate.tls")
    served, start = tls(), END.timestamp() - 3 * DAY
    for hours in (0, 1, 23, 24, 30, 47, 48.5, 72):
        assert served.expiry_warning(start + hours * 3_600)
    assert [record.getMessage().split(" (")[0].split(" expires ")[1] for record in caplog.records] == [
        "in 3 days",
        "in 2 days",
        "today",
    ]


def test_certificate_is_told_of_by_one_process_only(caplog: pytest.LogCaptureFixture) -> None:
    served = tls()
    served.logs_expiry = False
    assert served.expiry_warning(END.timestamp())
    assert not caplog.records


def test_certificate_that_has_expired_is_noted_until_another_one_is_there() -> None:
    gateway = make_gateway({"server": {"tls": {"certificate": EXPIRED.certificate, "key": EXPIRED.key}}})
    runtime = gateway.runtime
    runtime.run_maintenance()
    assert "has expired (2024-01-02 03:04 UTC)" in gateway.readiness.warnings["certificates"]
    object.__setattr__(gateway, "tls", tls())  # a gateway is frozen
    runtime.run_maintenance()
    assert "certificates" not in gateway.readiness.warnings
    runtime.stop()


def test_certificate_among_several_is_named() -> None:
    served = tls(certificates=[{"certificate": EXPIRED.certificate, "key": EXPIRED.key}])
    note = served.expiry_warning(END.timestamp() - 20 * DAY)
    assert EXPIRED.certificate in note and ENDING.certificate not in note
