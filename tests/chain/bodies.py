"""Response bodies for the tests of the chain."""

from __future__ import annotations

from collections.abc import Iterator


class Body:
    """Blocks, or what is raised in their place; knows whether it has been closed."""

    def __init__(self, *blocks: bytes | Exception) -> None:
        self.blocks = iter(blocks)
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block = next(self.blocks)
        if isinstance(block, Exception):
            raise block
        return block

    def close(self) -> None:
        self.closed += 1
