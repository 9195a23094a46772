"""What a socket may be waited for, by epoll's numbers, which the server uses where there is no epoll too.

`EPOLL` says whether the system has it (Linux).
"""

from __future__ import annotations

import select
from typing import Final

__all__ = ["EDGE", "EPOLL", "EXCLUSIVE", "FAILED", "GONE", "READABLE", "WRITABLE"]

EPOLL: Final = hasattr(select, "epoll")

READABLE: Final = 0x001
WRITABLE: Final = 0x004
FAILED: Final = 0x018  # both halves have ended, mostly by a reset; told of without being asked for
GONE: Final = 0x2000  # the other side has ended its half
EXCLUSIVE: Final = 1 << 28  # of several epolls, wake one
EDGE: Final = 1 << 31  # tell of changes, not of states
