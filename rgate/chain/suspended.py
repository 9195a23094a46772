"""SuspendedResponse: a response that has not begun, while its request waits for something without holding a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import TYPE_CHECKING

from ..errors import ClientClosed
from ..http1.environ import CONNECTION_KEY
from .body_wrapper import close_body

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from .exchange import Exchange

__all__ = ["SuspendedResponse"]


class SuspendedResponse:
    """Returned by a middleware instead of a response body, before start_response, to suspend its request.

        def app(environ, start_response):
            def on_resume(in_time):
                return inner(environ, start_response)

            suspended = SuspendedResponse(environ, timeout_seconds=5, on_resume=on_resume)
            waiting.append(suspended)  # any thread may call suspended.resume()
            return suspended

    `on_resume(in_time)` is called once, in a thread of the server: after resume(), or with `in_time` false when
    `timeout_seconds` have passed. It calls start_response and returns a body, returns another SuspendedResponse, or raises a
    fault. The middleware outside of this one has returned by then and does not run again. `on_close()` is called once, when the
    request stops waiting for whatever reason: it was resumed, has timed out, or its client has left (then `on_resume` is not
    called).

    A request can be suspended only under rgate's own server (`can_wait(environ)`), and only if every middleware outside passes
    the body on without reading it: if one reads it at once, `on_resume(False)` is called at once. Until the response begins the
    body yields b"", which PEP 3333 has for output that is not ready.

    deadline   monotonic seconds at which it times out
    in_time    whether resume() was called before that
    """

    __slots__ = (
        "_blocks",
        "_body",
        "_client_has_left",
        "_exchange",
        "_listener",
        "_lock",
        "_on_close",
        "_on_resume",
        "_resumed",
        "deadline",
        "in_time",
    )

    def __init__(
        self,
        environ: WSGIEnvironment,
        timeout_seconds: float,
        on_resume: Callable[[bool], Iterable[bytes]],
        on_close: Callable[[], object] = lambda: None,
    ) -> None:
        self._exchange: Exchange = environ["rgate.exchange"]
        self.deadline = monotonic() + timeout_seconds
        self.in_time = False
        self._on_resume: Callable[[bool], Iterable[bytes]] | None = on_resume
        self._on_close: Callable[[], object] | None = on_close
        self._listener: Callable[[], object] | None = None
        self._lock = threading.Lock()  # of _resumed and _listener
        self._resumed = self._client_has_left = False
        self._body: Iterable[bytes] = ()
        self._blocks: Iterator[bytes] | None = None
        self._exchange.suspended = self

    @staticmethod
    def can_wait(environ: WSGIEnvironment) -> bool:
        """Whether the server of this request can suspend it."""
        return CONNECTION_KEY in environ

    @property
    def resumed(self) -> bool:
        """Whether it no longer waits."""
        return self._resumed

    def resume(self) -> None:
        """Let the request continue. From any thread; never blocks. Only the first call of this, expire() or cancel() counts."""
        self._resume(in_time=True)

    def expire(self) -> None:
        """Let the request continue although what it waits for has not happened."""
        self._resume(in_time=False)

    def cancel(self) -> None:
        """The client has left: the body raises ClientClosed."""
        self._client_has_left = True
        self._resume(in_time=False)

    def when_resumed(self, callback: Callable[[], object]) -> None:
        """Call `callback` once, when the request may continue; at once if it may already. Only the server calls this."""
        with self._lock:
            if not self._resumed:
                self._listener = callback
                return
        callback()

    def _resume(self, in_time: bool) -> None:
        with self._lock:
            if self._resumed:
                return
            self._resumed, self.in_time = True, in_time
            listener = self._listener
        if listener is not None:
            listener()

    def _stop_waiting(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._blocks is None:
            exchange = self._exchange
            if exchange.suspended is self:
                exchange.suspended = None
            self._stop_waiting()
            if self._client_has_left:
                raise ClientClosed("before the response")
            on_resume, self._on_resume = self._on_resume, None
            if on_resume is None:
                raise StopIteration
            self._body = on_resume(self.in_time)
            self._blocks = iter(self._body)
            if exchange.suspended is not None:
                return b""
        return next(self._blocks)

    def close(self) -> None:
        """Stop waiting, or close the body of the response that has begun."""
        self._on_resume = None
        self._stop_waiting()
        close_body(self._body)
