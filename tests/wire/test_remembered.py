"""Remembered: what has come twice is kept, and no more than a fixed number of it."""

from __future__ import annotations

from rgate.wire.remembered import Remembered


def test_what_comes_again_is_kept() -> None:
    remembered: Remembered[bytes, int] = Remembered(10)
    remembered.offer(b"a", 1)
    assert remembered.get(b"a") is None, "it may never come again"
    remembered.offer(b"a", 1)
    assert remembered.get(b"a") == 1


def test_what_comes_once_pushes_nothing_out() -> None:
    remembered: Remembered[int, int] = Remembered(10)
    for _ in range(2):
        remembered.offer(-7, 1)
    for key in range(1, 100_000):
        remembered.offer(key, 2)
    assert remembered == {-7: 1}


def test_when_it_is_full_it_begins_anew() -> None:
    remembered: Remembered[int, int] = Remembered(10)
    for key in range(11):
        for _ in range(2):
            remembered.offer(key, key)
    assert remembered == {10: 10}
