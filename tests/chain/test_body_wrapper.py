"""BodyWrapper, map_body() and close_body()."""

from __future__ import annotations

import pytest

from rgate import BodyWrapper, close_body, map_body

from .bodies import Body


def test_map_body_changes_every_block_and_closes() -> None:
    inner = Body(b"a", b"b")
    body = map_body(inner, bytes.upper)
    assert list(body) == [b"A", b"B"]
    body.close()  # type: ignore[attr-defined]
    assert inner.closed == 1


def test_map_body_of_a_list_can_be_closed() -> None:
    body = map_body([b"a"], bytes.upper)
    assert list(body) == [b"A"]
    body.close()  # type: ignore[attr-defined]


class Counted(BodyWrapper):
    size_bytes = 0

    def __next__(self) -> bytes:
        block = super().__next__()
        self.size_bytes += len(block)
        return block


def test_subclass_sees_every_block_and_closes_what_is_inside() -> None:
    inner = Body(b"a", b"bc")
    body = Counted(inner)
    assert list(body) == [b"a", b"bc"]
    body.close()
    assert (body.size_bytes, inner.closed) == (3, 1)


def test_exception_of_the_inside_comes_out() -> None:
    body = BodyWrapper(Body(b"a", KeyError("x")))
    assert next(body) == b"a"
    with pytest.raises(KeyError):
        next(body)


@pytest.mark.parametrize("body", [None, [b"a"], (b"a",)])
def test_close_body_of_what_has_no_close_does_nothing(body: object) -> None:
    close_body(body)
