"""SuspendedResponse: a response that has not begun, while its request waits for something and holds no thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import TYPE_CHECKING

from ..errors import ClientClosed
from ..http1.environ import CONNECTION_KEY

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from .exchange import Exchange

__all__ = ["SuspendedResponse"]


class SuspendedResponse:
    """What a middleware returns in place of a response body, before start_response, to have its request wait without a thread.

        def app(environ, start_response):
            suspended = SuspendedResponse(environ, seconds=5, go_on=lambda in_time: inner(environ, start_response))
            tell_me_when_it_is_time(suspended.resume)
            return suspended

    `go_on(in_time)` is called once, by a thread of the server, after resume(), or when `seconds` are over (then `in_time` is
    false); it calls start_response and returns the body, returns another SuspendedResponse, or raises a fault. The middleware outside of
    this one has run by then, and does not run again. `on_close` is called once, when the request no longer waits, for whatever
    reason: woken, too late, or because the client has left (then go_on is not called).

    It waits only under rgate's own server (`can_wait(environ)`), and only when whatever stands outside passes the body on
    without reading it: a middleware that reads it at once has go_on(False) called at once. Until the response begins the body
    yields b"" (PEP 3333: the output is not ready).
    """

    __slots__ = (
        "_blocks",
        "_body",
        "_exchange",
        "_go_on",
        "_left",
        "_lock",
        "_on_end",
        "_on_resume",
        "_resumed",
        "in_time",
        "until",
    )

    def __init__(
        self,
        environ: WSGIEnvironment,
        seconds: float,
        go_on: Callable[[bool], Iterable[bytes]],
        on_close: Callable[[], object] = lambda: None,
    ) -> None:
        self._exchange: Exchange = environ["rgate.exchange"]
        self.until = monotonic() + seconds
        self.in_time = False
        self._go_on: Callable[[bool], Iterable[bytes]] | None = go_on
        self._on_end: Callable[[], object] | None = on_close
        self._on_resume: Callable[[], object] | None = None
        self._lock = threading.Lock()
        self._resumed = self._left = False
        self._body: Iterable[bytes] = ()
        self._blocks: Iterator[bytes] | None = None
        self._exchange.suspended = self

    @staticmethod
    def can_wait(environ: WSGIEnvironment) -> bool:
        """Whether the server of this request lets it wait without a thread."""
        return CONNECTION_KEY in environ

    @property
    def resumed(self) -> bool:
        """Whether it no longer waits."""
        return self._resumed

    def resume(self) -> None:
        """Have the request go on. From any thread; never waits; only the first call of this and expire() counts."""
        self._resume(in_time=True)

    def expire(self) -> None:
        """Have it go on although what it waits for has not happened."""
        self._resume(in_time=False)

    def cancel(self) -> None:
        """The client has left."""
        self._left = True
        self._resume(in_time=False)

    def when_resumed(self, on_resume: Callable[[], object]) -> None:
        """Have `on_resume` called once, as soon as the request is to go on; at once when it is already. The server's own."""
        with self._lock:
            if not self._resumed:
                self._on_resume = on_resume
                return
        on_resume()

    def _resume(self, in_time: bool) -> None:
        with self._lock:
            if self._resumed:
                return
            self._resumed, self.in_time = True, in_time
            on_resume = self._on_resume
        if on_resume is not None:
            on_resume()

    def _end(self) -> None:
        on_close, self._on_end = self._on_end, None
        if on_close is not None:
            on_close()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._blocks is None:
            exchange = self._exchange
            if exchange.suspended is self:
                exchange.suspended = None
            self._end()
            if self._left:
                raise ClientClosed("before the response")
            go_on, self._go_on = self._go_on, None
            if go_on is None:
                raise StopIteration
            self._body = go_on(self.in_time)
            self._blocks = iter(self._body)
            if exchange.suspended is not None:
                return b""
        return next(self._blocks)

    def close(self) -> None:
        """Give up waiting, or close the body of the response that has begun."""
        self._go_on = None
        self._end()
        close = getattr(self._body, "close", None)
        if close is not None:
            close()
