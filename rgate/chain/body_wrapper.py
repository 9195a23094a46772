"""BodyWrapper: a response body around another one. map_body() and close_body(), the two things most often done to a body."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

__all__ = ["BodyWrapper", "close_body", "map_body"]


class BodyWrapper:
    """A response body around another one: passes its blocks on, and its close() too.

    A middleware that has something to do while a response goes by returns a subclass, with its own `__next__` or `close`:

        class Counted(rgate.BodyWrapper):
            def __next__(self) -> bytes:
                block = next(self.blocks)
                self.size += len(block)
                return block

    Never use a generator or generator expression instead: it would not close the inner body, and so leak its connection.

    body      the body inside
    blocks    its iterator; may be replaced
    """

    __slots__ = ("blocks", "body")

    def __init__(self, body: Iterable[bytes]) -> None:
        self.body = body
        try:
            self.blocks: Iterator[bytes] = iter(body)
        except BaseException:
            close_body(body)  # no caller can close the wrapper
            raise

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self.blocks)

    def close(self) -> None:
        """Close the body inside. The server calls it once, after the last block or instead of it."""
        close_body(self.body)


def close_body(body: object) -> None:
    """Call close() of a response body if it has one (PEP 3333)."""
    close = getattr(body, "close", None)
    if close is not None:
        close()


def map_body(body: Iterable[bytes], function: Callable[[bytes], bytes]) -> Iterable[bytes]:
    """`body` with `function(block)` in place of every block. Its close() is still called."""
    return _MappedBody(body, function)


class _MappedBody(BodyWrapper):
    __slots__ = ("_function",)

    def __init__(self, body: Iterable[bytes], function: Callable[[bytes], bytes]) -> None:
        super().__init__(body)
        self._function = function

    def __next__(self) -> bytes:
        return self._function(next(self.blocks))
