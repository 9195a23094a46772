"""A WSGI middleware that does nothing: what one more stage of the chain costs by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["noop"]


def noop(app: WSGIApplication) -> WSGIApplication:
    """`app`, called through one more function."""

    def call(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return app(environ, start_response)

    return call
