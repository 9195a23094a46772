"""The gateway as a WSGI app, to run it under another WSGI server:

    RGATE_CONFIG=config.yml gunicorn --worker-class gthread --threads 32 rgate.wsgi:app
    RGATE_CONFIG=config.yml waitress-serve rgate.wsgi:app
    RGATE_CONFIG=config.yml granian --interface wsgi --blocking-threads 32 rgate.wsgi:app

RGATE_CONFIG names the config, by default config.yml in the working directory; its section `server` has no effect here.

Some things are lost, because the other server does not pass them on: repeated headers arrive joined, "_" in the name of a header
cannot be distinguished from "-", granian has only the decoded path, interim responses and trailers are dropped, the other server
answers `Expect: 100-continue` itself, a client that leaves is noticed only when something is sent to it, and an early answer of a
backend reaches the client only after its upload is complete. rgate's own server has none of these limits, and is several times as
fast.
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
    """A gateway that starts itself in the process that serves it.

    The constructor loads the config at `path`; it raises ConfigError and PluginError. Discovery and plugins start with the first
    request of a process, so that a server may fork after loading, and stop when the process ends, or by close().
    """

    def __init__(self, path: str) -> None:
        registry = Registry()
        self._gateway = build(load(path, registry), registry)
        self._lock = threading.Lock()  # for starting and closing
        self._running = ExitStack()
        self._process = 0  # id of the process in which the gateway runs
        self._at_exit: Finalize | None = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._process != os.getpid():
            self._start()
        return self._gateway(environ, start_response)

    def _start(self) -> None:
        with self._lock:
            if self._process != os.getpid():
                self._running.enter_context(self._gateway.running())
                # multiprocessing's own processes end without atexit but run this; all others run it from atexit.
                self._at_exit = Finalize(None, self.close, exitpriority=0)
                self._process = os.getpid()

    def close(self) -> None:
        """Stop discovery and plugins, after the last request. Another request would start them again."""
        with self._lock:
            if self._process == os.getpid():
                self._process = 0
                if self._at_exit is not None:
                    self._at_exit.cancel()
                self._running.close()


app: WSGIApplication = HostedGateway(os.environ.get("RGATE_CONFIG", "config.yml"))
