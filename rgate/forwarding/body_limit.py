"""A route's own limit of the request body: nothing that is known to be larger reaches the backend, and no other as a whole."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import BodyTooLarge

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["BodyLimit"]


class BodyLimit:
    """`app` for requests whose body has at most `max_body_bytes`. Raises BodyTooLarge.

    By the Content-Length before `app` is called, so that the client has its answer before it has sent much (RFC 9110
    §15.5.14); with the chunked coding as soon as more has come, out of the read that meets it.
    """

    def __init__(self, app: WSGIApplication, max_body_bytes: int) -> None:
        self._app = app
        self._most = max_body_bytes

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        length = environ.get("CONTENT_LENGTH")
        if length:
            if int(length) > self._most:
                raise BodyTooLarge(f"{length} bytes, {self._most} for this route")
        elif "HTTP_TRANSFER_ENCODING" in environ:
            stream = environ["wsgi.input"]
            if hasattr(stream, "set_limit"):  # rgate's own server
                stream.set_limit(self._most)
            else:
                environ["wsgi.input"] = _Counted(stream, self._most)
        return self._app(environ, start_response)


class _Counted(io.RawIOBase):
    """Another server's wsgi.input, up to a limit."""

    def __init__(self, stream: Any, most: int) -> None:
        self._stream = stream
        self._left = most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        block: bytes = self._stream.read(len(view))
        self._left -= len(block)
        if self._left < 0:
            raise BodyTooLarge("more than this route takes")
        view[: len(block)] = block
        return len(block)
