"""Clients that send at a steady pace and account for every request: what became of it, and when."""

from __future__ import annotations

import http.client
import itertools
import json
import select
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

__all__ = ["KINDS", "TIMEOUT_SECONDS", "Clients", "Outcome", "Threads", "by_answer", "connection_to", "judged", "lost"]

TIMEOUT_SECONDS = 35.0  # longer than any of rgate's own
BODY = b"x" * 200


@dataclass(frozen=True)
class Kind:
    """What a client does again and again: a method, and whether it keeps its connection."""

    method: str
    keeps: bool


KINDS = {
    "GET": Kind("GET", True),
    "GET, new connection": Kind("GET", False),
    "POST": Kind("POST", True),
    "POST, new connection": Kind("POST", False),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. `sent` and `ended` are monotonic seconds.

    status  0 when there was no whole answer
    reason  of an answer that is not good: the gateway's own word, or "backend"; of none: refused, reset, closed, truncated,
            timeout, not_http; and not_mine for a good answer to another request
    who     the instance that answered
    """

    kind: str
    sent: float
    ended: float
    status: int
    reason: str = ""
    who: str = ""

    @property
    def good(self) -> bool:
        """Whether it was answered as it should be."""
        return 200 <= self.status < 300 and not self.reason

    def __str__(self) -> str:
        return "ok" if self.good else f"{self.status or 'lost'} {self.reason}"


class Threads:
    """Threads that run while inside `with`; they must end soon once `_stop` is set."""

    _threads: Sequence[threading.Thread]

    def __init__(self) -> None:
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT_SECONDS + 5)


class Clients(Threads):
    """So many threads, one for each of `kinds` in turn, that together send `per_second` requests while inside `with`.

    The backend has to answer with JSON that says `path`, and may say `instance`, as those of the demo do. Each request's
    query is its own, so that an answer to another one is noticed. `outcomes` may be read at any time.
    """

    def __init__(
        self,
        port: int,
        path: str,
        per_second: float,
        kinds: Iterable[str] = tuple(KINDS) * 2,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.outcomes: list[Outcome] = []
        super().__init__()
        self._port, self._path, self._tls = port, path, tls
        kinds = tuple(kinds)
        self._pause_seconds = len(kinds) / per_second
        self._threads = [
            threading.Thread(target=self._run, args=(kind, f"{number}"), name=f"client-{number}", daemon=True)
            for number, kind in enumerate(kinds)
        ]

    def _run(self, name: str, client: str) -> None:
        kind, connection = KINDS[name], connection_to(self._port, self._tls)
        due = time.monotonic()
        for number in itertools.count():
            due = max(due + self._pause_seconds, time.monotonic() - 1)  # after a long answer no flood
            if self._stop.wait(max(0.0, due - time.monotonic())):
                break
            if connection.sock is not None and (not kind.keeps or _ended(connection)):
                connection.close()
            self.outcomes.append(self._ask(connection, name, kind, f"{self._path}?n={client}-{number}"))
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, name: str, kind: Kind, target: str) -> Outcome:
        sent = time.monotonic()
        status, reason, who = 0, "", ""
        try:
            connection.request(kind.method, target, body=BODY if kind.method == "POST" else None)
            response = connection.getresponse()
            body = response.read()
            status = response.status
            reason, who = judged(status, body, target)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            status, reason = 0, lost(error)
        return Outcome(name, sent, time.monotonic(), status, reason, who)


def by_answer(outcomes: Sequence[Outcome]) -> Counter[str]:
    """How many had which answer."""
    return Counter(map(str, outcomes))


def connection_to(port: int, tls: ssl.SSLContext | None) -> http.client.HTTPConnection:
    """A connection to this machine, not made yet."""
    if tls:
        return http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS, context=tls)
    return http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)


def judged(status: int, body: bytes, target: str) -> tuple[str, str]:
    """The reason why an answer is not good, or nothing, and who has answered."""
    try:
        told = json.loads(body)
    except ValueError:
        return "not_json", ""
    if not 200 <= status < 300:
        return str(told.get("reason") or "backend"), ""
    told = told.get("body", told)  # the envelope
    return "" if told.get("path") == target else "not_mine", str(told.get("instance", ""))


def lost(error: Exception) -> str:
    """The reason why there is no whole answer."""
    match error:
        case TimeoutError():
            return "timeout"
        case ConnectionRefusedError():
            return "refused"
        case http.client.RemoteDisconnected():
            return "closed"
        case http.client.IncompleteRead():
            return "truncated"
        case ConnectionError() | ssl.SSLError():
            return "reset"
    return "not_http" if isinstance(error, http.client.HTTPException) else type(error).__name__


def _ended(connection: http.client.HTTPConnection) -> bool:
    """Whether the server has closed it meanwhile, as it may: any client looks before it sends."""
    return bool(select.select([connection.sock], [], [], 0)[0])
