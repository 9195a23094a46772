"""Bits for the events of a socket: epoll's numbers, which the server also uses on systems without epoll.

`EPOLL` says whether the system has epoll (Linux).
"""

from __future__ import annotations

import select
from typing import Final

__all__ = ["EDGE_TRIGGERED", "EPOLL", "EXCLUSIVE", "FAILED", "RDHUP", "READABLE", "WRITABLE"]

EPOLL: Final = hasattr(select, "epoll")

READABLE: Final = 0x001
WRITABLE: Final = 0x004
FAILED: Final = 0x018  # both halves have ended, mostly by a reset; epoll always reports it
RDHUP: Final = 0x2000  # the peer has ended its sending side
EXCLUSIVE: Final = 1 << 28  # of several epolls that watch the descriptor, wake one
EDGE_TRIGGERED: Final = 1 << 31  # report changes, not states
