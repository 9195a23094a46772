"""ResourcePool: what is the same object over reloads, and when it is closed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rgate.runtime.resources import ResourcePool


class Closing:
    """Notes its name when it is closed."""

    def __init__(self, closed: list[str], name: str = "it") -> None:
        self._closed = closed
        self._name = name

    def close(self) -> None:
        self._closed.append(self._name)


class Gateway(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


class World:
    """A pool; `first` is current, and `second` comes after it."""

    def __init__(self) -> None:
        self.first: Any = Gateway()
        self.second: Any = Gateway()
        self.current: Any = self.first
        self.pool = ResourcePool(lambda: self.current)


@pytest.fixture
def world() -> World:
    return World()


def test_gateway_gets_the_same_object_again(world: World) -> None:
    assert world.pool.get_or_create("stats", 1, object, world.first) is world.pool.get_or_create("stats", 1, object, world.first)


@pytest.mark.parametrize(("key", "same"), [({"a": 1}, True), ({"a": 2}, False)])
def test_next_gateway_gets_the_same_object_while_the_key_is_equal(world: World, key: object, same: bool) -> None:
    first = world.pool.get_or_create("stats", {"a": 1}, object, world.first)
    assert (world.pool.get_or_create("stats", key, object, world.second) is first) is same


def test_one_name_with_two_keys_is_refused(world: World) -> None:
    world.pool.get_or_create("stats", 1, object, world.first)
    with pytest.raises(ValueError, match="there is a resource 'stats' already, for 1 and not for 2"):
        world.pool.get_or_create("stats", 2, object, world.first)


def test_object_of_a_gateway_that_drains_is_not_shared_any_more(world: World) -> None:
    first = world.pool.get_or_create("stats", 1, object, world.first)
    world.current = world.second
    assert world.pool.get_or_create("stats", 1, object, Gateway()) is not first  # type: ignore[arg-type]


def test_release_closes_what_no_gateway_holds_the_last_created_first(world: World) -> None:
    closed: list[str] = []
    for name in ("one", "two", "three"):
        world.pool.get_or_create(name, 1, lambda name=name: Closing(closed, name), world.first)  # type: ignore[misc]
    world.pool.get_or_create("without close()", 1, object, world.first)
    world.pool.get_or_create("one", 1, object, world.second)
    world.pool.release(world.first)
    assert closed == ["three", "two"]
    world.pool.release(world.second)
    assert closed == ["three", "two", "one"]


def test_close_that_fails_is_logged_and_the_others_are_closed(world: World, caplog: pytest.LogCaptureFixture) -> None:
    closed: list[str] = []
    world.pool.get_or_create("good", 1, lambda: Closing(closed), world.first)
    world.pool.get_or_create("bad", 1, lambda: Closing(None), world.first)  # type: ignore[arg-type]
    world.pool.release(world.first)
    assert closed == ["it"]
    assert "the resource 'bad' cannot be closed" in caplog.text
