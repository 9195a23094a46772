"""The account of a chaos run, its plan, and when a soak is flat."""

from __future__ import annotations

import random
from typing import Any

import pytest

from bench.breaks import BREAKS
from bench.chaos import Happened, account, plan
from bench.clients import Outcome
from bench.soak import FAULTS, TOLERANCE, flat
from bench.tunnels import Tunnel

KILLED = Happened(BREAKS["endpoint killed"], 10.0, 12.0, frozenset({"one"}))
LOCKED = Happened(BREAKS["database locked"], 20.0, 22.0)


def outcome(sent: float, status: int = 200, reason: str = "") -> Outcome:
    return Outcome("GET", sent, sent + 0.01, status, reason)


@pytest.mark.parametrize(
    "bad, unexplained",
    [
        (outcome(11.0, 502, "closed"), 0),
        (outcome(13.5, 502, "closed"), 0),
        (outcome(9.0, 502, "closed"), 1),
        (outcome(15.0, 502, "closed"), 1),
        (outcome(11.0, 500, "internal"), 1),
        (outcome(11.0, 0, "reset"), 1),
        (outcome(21.0, 502, "closed"), 1),
        (outcome(11.0, 200, "not_mine"), 1),
    ],
    ids=["while", "shortly after", "before", "long after", "other answer", "lost", "other break", "mixed up"],
)
def test_account_explains_an_answer_only_by_a_break_that_may_cause_it_at_that_moment(bad: Outcome, unexplained: int) -> None:
    lines, count = account([outcome(8.0), bad], [KILLED, LOCKED])
    assert count == unexplained, lines
    assert any("2 sent" in line for line in lines)
    assert any(str(bad) in line for line in lines)


def test_account_explains_by_what_was_broken_last() -> None:
    again = Happened(BREAKS["all endpoints killed"], 13.0, 14.0)
    lines, _ = account([outcome(13.5, 502, "closed")], [KILLED, again])
    assert any("all endpoints killed; explains 1 of 502 closed" in line for line in lines), lines


def test_account_explains_the_end_of_a_tunnel_by_what_was_broken_then_and_not_before() -> None:
    def tunnel(sent: float, reason: str = "", who: str = "one") -> Tunnel:
        return Tunnel("WebSocket", sent, sent + 0.01, 101, reason, who, echoes=50)

    ended = [tunnel(11.0, "closed"), tunnel(21.0, "closed"), tunnel(30.0)]
    lines, count = account([outcome(8.0), *ended], [KILLED, LOCKED])
    assert count == 1, lines
    assert any("1 sent: 1 answered, 0 lost" in line for line in lines)
    assert any("3 tunnels asked for: 3 opened, 150 echoes" in line for line in lines)
    assert any("2 101 closed" in line for line in lines)
    assert any("1 ended by their client" in line for line in lines)


def test_account_explains_the_end_of_a_tunnel_only_by_the_end_of_its_own_endpoint() -> None:
    def count(who: str) -> int:
        return account([Tunnel("WebSocket", 11.0, 11.1, 101, "closed", who)], [KILLED])[1]

    assert (count("one"), count("another")) == (0, 1)


def test_plan_is_the_seeds_and_breaks_everything() -> None:
    possible = list(BREAKS.values())
    steps = list(plan(possible, 120, random.Random(7)))
    assert steps == list(plan(possible, 120, random.Random(7)))
    assert steps != list(plan(possible, 120, random.Random(8)))
    assert {step.broken.name for step in steps} == set(BREAKS)


def test_break_explains_only_answers_as_they_are_told() -> None:
    reasons = {answer for each in BREAKS.values() for answer in each.explains}
    parts = [answer.partition(" ") for answer in reasons]
    told = [str(outcome(0, 0 if word == "lost" else int(word), reason)) for word, _, reason in parts]
    assert sorted(told) == sorted(reasons)


def test_soak_knows_its_faults() -> None:
    assert set(FAULTS) - {""} <= set(BREAKS)


def test_soak_is_flat_unless_something_has_grown_over_the_last_half() -> None:
    def samples(*memory: float) -> list[dict[str, Any]]:
        return [{**dict.fromkeys(TOLERANCE, 100.0), "pss_mb": value} for value in memory]

    assert flat(samples(*[50] * 4, *[100] * 12)) == {}
    assert flat(samples(*[100] * 12, *[104] * 4)) == {}
    assert flat(samples(*[100] * 12, *[110] * 4)) == {"pss_mb": "100.0 → 110.0"}
    assert flat(samples(1, 100)) == {}
