"""A route's own limit of the request body, `max_body_bytes`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import BodyTooLarge
from ..http1.environ import REQUEST_STREAM_KEY
from .upload import request_stream

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["BodyLimit"]


class BodyLimit:
    """`app` for requests whose body has at most `max_body_bytes`. Raises BodyTooLarge.

    A Content-Length is checked before `app` is called: the backend gets nothing, and the client has its answer before it has sent
    much (RFC 9110 §15.5.14). A chunked body is checked while it is read: the read that exceeds the limit raises, and the backend
    never gets a complete request.
    """

    def __init__(self, app: WSGIApplication, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        length = environ.get("CONTENT_LENGTH")
        if length:
            if int(length) > self._max_body_bytes:
                raise BodyTooLarge(f"{length} bytes, {self._max_body_bytes} for this route")
        elif "HTTP_TRANSFER_ENCODING" in environ:
            stream = request_stream(environ)
            stream.set_limit(self._max_body_bytes)
            environ["wsgi.input"] = environ[REQUEST_STREAM_KEY] = stream
        return self._app(environ, start_response)
