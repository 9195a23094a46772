"""The gateway as a WSGI app, for those who want to run it under another WSGI server:

    RGATE_CONFIG=config.yml gunicorn --worker-class gthread --threads 32 rgate.wsgi:app
    RGATE_CONFIG=config.yml waitress-serve rgate.wsgi:app
    RGATE_CONFIG=config.yml granian --interface wsgi --blocking-threads 32 rgate.wsgi:app

RGATE_CONFIG names the config, by default config.yml in the working directory; its section `server` does not count here.

What the other server does not pass on is lost: repeated headers come joined, a header's name with "_" cannot be told from
one with "-", granian has the path decoded only, interim responses and trailers are dropped, the other server answers
`Expect: 100-continue` by itself, a client that leaves is noticed only when there is something to send to it, and an early
answer of a backend reaches the client only when its upload is complete. rgate's own server has none of that, and is several
times as fast.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import ExitStack
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING

from .config import load
from .plugin.registry import Registry
from .runtime.gateway import build

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["HostedGateway", "app"]


class HostedGateway:
    """A gateway that starts itself in whichever process serves it.

    Making one loads the config at `path`; raises ConfigError and PluginError. Discovery and plugins begin with the first
    request of a process, so that a server may fork after loading, and end when the process does, or by close().
    """

    def __init__(self, path: str) -> None:
        registry = Registry()
        self._gateway = build(load(path, registry), registry)
        self._starting = threading.Lock()
        self._running = ExitStack()
        self._process = 0  # the one in which the gateway runs
        self._at_exit: Finalize | None = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._process != os.getpid():
            self._start()
        return self._gateway(environ, start_response)

    def _start(self) -> None:
        with self._starting:
            if self._process != os.getpid():
                self._running.enter_context(self._gateway.running())
                # By multiprocessing, because a process that it has made ends without atexit; any other runs it from there.
                self._at_exit = Finalize(None, self.close, exitpriority=0)
                self._process = os.getpid()

    def close(self) -> None:
        """End discovery and plugins; what is in flight should be over. The next request would start them again."""
        with self._starting:
            if self._process == os.getpid():
                self._process = 0
                if self._at_exit is not None:
                    self._at_exit.cancel()
                self._running.close()


app: WSGIApplication = HostedGateway(os.environ.get("RGATE_CONFIG", "config.yml"))
