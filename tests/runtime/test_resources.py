"""What outlives a gateway, and when it is closed."""

from __future__ import annotations

import pytest

from rgate.runtime.resources import ResourcePool


class Closing:
    """Notes its name when it is closed."""

    def __init__(self, closed: list[str], name: str = "it") -> None:
        self._closed = closed
        self._name = name

    def close(self) -> None:
        self._closed.append(self._name)


def test_get_again_is_the_same_object() -> None:
    kept = ResourcePool()
    assert kept.get("stats", 1, object) is kept.get("stats", 1, object)


@pytest.mark.parametrize(("key", "same"), [({"a": 1}, True), ({"a": 2}, False)])
def test_get_of_the_next_is_the_same_while_the_key_is_equal(key: object, same: bool) -> None:
    before = ResourcePool()
    first = before.get("stats", {"a": 1}, object)
    assert (ResourcePool(before).get("stats", key, object) is first) is same


def test_get_for_another_key_is_refused() -> None:
    kept = ResourcePool()
    kept.get("stats", 1, object)
    with pytest.raises(ValueError, match="'stats' is kept already, for 1 and not for 2"):
        kept.get("stats", 2, object)


def test_get_once_settled_takes_nothing_over() -> None:
    before = ResourcePool()
    first = before.get("stats", 1, object)
    after = ResourcePool(before)
    after.settle()
    assert after.get("stats", 1, object) is not first


def test_close_leaves_what_the_next_holds() -> None:
    closed: list[str] = []
    before = ResourcePool()
    for name in ("one", "two"):
        before.get(name, 1, lambda name=name: Closing(closed, name))  # type: ignore[misc]
    before.get("without close()", 1, object)
    after = ResourcePool(before)
    after.get("one", 1, object)
    before.close(beside=after)
    assert closed == ["two"]
    after.close()
    assert closed == ["two", "one"]


def test_close_that_fails_is_logged_and_the_others_are_closed(caplog: pytest.LogCaptureFixture) -> None:
    closed: list[str] = []
    kept = ResourcePool()
    kept.get("good", 1, lambda: Closing(closed))
    kept.get("bad", 1, lambda: Closing(None))  # type: ignore[arg-type]
    kept.close()
    assert closed == ["it"]
    assert "'bad', which no gateway keeps any more, cannot be closed" in caplog.text
