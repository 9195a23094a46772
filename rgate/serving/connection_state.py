"""The states of a client connection, and the one table of what may follow what.

`Connection.state` is a plain attribute, assigned a few times per request, so production code pays nothing for the table.
The test suite replaces the attribute with one that looks each assignment up in TRANSITIONS and raises for an illegal one
(tests/serving/checked_states.py); tests/serving/test_connection_state.py makes every transition happen.

Only the thread that holds `Connection.lock` changes the state. Any thread may read it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

__all__ = ["INCOMPLETE", "IN_FLIGHT", "TRANSITIONS", "UNUSED", "State"]


class State(enum.Enum):
    """The states of a connection.

    `Connection.deadline` is a time in the states marked (d), after which the server stops waiting, and None in the others.
    """

    OPENING = "opening"  # (d) the PROXY header or the TLS handshake is incomplete
    IDLE = "idle"  # (d) no byte of the next request has arrived
    READING_HEAD = "reading head"  # (d) the head of a request is incomplete
    BUFFERING_BODY = "buffering body"  # (d) the body is incomplete, and no thread waits for it
    EXPIRED = "expired"  # (d) the deadline has passed or the place is needed; what arrived in time is still read
    BUSY = "busy"  # a thread runs the app or sends its response
    SUSPENDED = "suspended"  # the app has suspended its response; no thread waits
    RELAYED = "relayed"  # the stream relay sends the rest of the response
    YIELDED = "yielded"  # (d) other connections are served before the remaining pipelined requests
    CLOSING_IDLE = "closing idle"  # (d) idle for too long; closed unless a request has arrived meanwhile
    LINGERING = "lingering"  # (d) our half is shut down; what the client still sends is discarded (RFC 9112 §9.6)
    TUNNELLED = "tunnelled"  # the connection has left HTTP (101) and belongs to the tunnels
    CLOSED = "closed"


# No request has begun, or the next one can still be refused without harm.
UNUSED: Final = (State.IDLE, State.OPENING)

# A request has begun to arrive, and no thread works on it.
INCOMPLETE: Final = (State.READING_HEAD, State.BUFFERING_BODY)

# The connection may hold a request, and with it the settings of the time at which that began.
IN_FLIGHT: Final = (
    *INCOMPLETE,
    State.EXPIRED,
    State.CLOSING_IDLE,
    State.BUSY,
    State.SUSPENDED,
    State.RELAYED,
)

# The states that may follow each state.
TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    # BUSY follows OPENING or IDLE at once when the connection is rejected: the answer is sent without a request.
    State.OPENING: frozenset(
        {State.IDLE, State.EXPIRED, State.CLOSING_IDLE, State.BUSY, State.LINGERING, State.CLOSED}  # LINGERING: no TLS
    ),
    State.IDLE: frozenset({State.READING_HEAD, State.EXPIRED, State.CLOSING_IDLE, State.BUSY, State.CLOSED}),
    State.READING_HEAD: frozenset(
        {State.IDLE, State.BUFFERING_BODY, State.EXPIRED, State.BUSY, State.CLOSED}  # IDLE: only empty lines have arrived
    ),
    State.BUFFERING_BODY: frozenset({State.EXPIRED, State.BUSY, State.CLOSED}),
    # BUSY: the request is complete after all, or answered 408. LINGERING: no TLS.
    State.EXPIRED: frozenset({State.IDLE, State.BUSY, State.LINGERING, State.CLOSED}),
    State.BUSY: frozenset(
        {State.BUSY, State.IDLE, State.READING_HEAD, State.BUFFERING_BODY, State.YIELDED}  # the next request, if there is one
        | {State.SUSPENDED, State.RELAYED, State.TUNNELLED, State.LINGERING, State.CLOSED}
    ),
    State.SUSPENDED: frozenset({State.BUSY, State.CLOSED}),
    State.RELAYED: frozenset({State.BUSY, State.CLOSED}),
    State.YIELDED: frozenset({State.READING_HEAD, State.CLOSED}),
    State.CLOSING_IDLE: frozenset({State.READING_HEAD, State.BUFFERING_BODY, State.BUSY, State.LINGERING, State.CLOSED}),
    State.LINGERING: frozenset({State.CLOSED}),
    State.TUNNELLED: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}
