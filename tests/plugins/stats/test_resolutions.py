"""resolutions: how long counts are kept, and which of them answers a query."""

from __future__ import annotations

import pytest

from rgate.plugins.stats.resolutions import DAY_MINUTES, Resolution, finest_covering, floor, resolutions

from .traffic import NOON_MINUTE

MINUTES, HOURS, DAYS = resolutions(30)
COMPLETE = dict.fromkeys(resolutions(30), 0)


@pytest.mark.parametrize(
    ("minutes_ago", "resolution", "start"),
    [
        (0, MINUTES, NOON_MINUTE),
        (179, MINUTES, NOON_MINUTE - 179),
        (180, MINUTES, NOON_MINUTE - 180),
        (181, HOURS, NOON_MINUTE - 240),
        (8 * DAY_MINUTES, HOURS, NOON_MINUTE - 8 * DAY_MINUTES),
        (8 * DAY_MINUTES + 1, DAYS, NOON_MINUTE - 8 * DAY_MINUTES - 720),
        (400 * DAY_MINUTES, DAYS, NOON_MINUTE - 400 * DAY_MINUTES - 720),
    ],
)
def test_question_is_answered_from_the_finest_that_reaches_back(minutes_ago: int, resolution: Resolution, start: int) -> None:
    assert finest_covering(NOON_MINUTE - minutes_ago, NOON_MINUTE, COMPLETE) == (resolution, start)


def test_question_about_everything_is_answered_from_days() -> None:
    assert finest_covering(None, NOON_MINUTE, COMPLETE) == (DAYS, None)


def test_period_that_was_shortened_does_not_answer_for_what_it_lost() -> None:
    shortened = COMPLETE | {MINUTES: NOON_MINUTE - 10}
    assert finest_covering(NOON_MINUTE - 10, NOON_MINUTE, shortened) == (MINUTES, NOON_MINUTE - 10)
    assert finest_covering(NOON_MINUTE - 11, NOON_MINUTE, shortened) == (HOURS, NOON_MINUTE - 60)


@pytest.mark.parametrize("resolution", resolutions(30))
def test_start_in_use_is_never_past_its_age(resolution: Resolution) -> None:
    assert resolution.oldest_kept(NOON_MINUTE) <= floor(NOON_MINUTE - resolution.kept_minutes, resolution.span_minutes)


def test_hours_are_kept_no_longer_than_days() -> None:
    assert [resolution.kept_minutes for resolution in resolutions(1)] == [180, DAY_MINUTES, DAY_MINUTES]
