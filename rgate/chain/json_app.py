"""JSON pages: the WSGI apps of local routes such as `/stats` and `/-/routes`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import GatewayError, MethodNotAllowed, RequestError
from .exchange import ENVIRON_KEY, Exchange

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["JSONHandler", "QueryError", "json_app"]

JSONHandler: TypeAlias = "Callable[[WSGIEnvironment], tuple[int, Any]]"


class QueryError(RequestError):
    """A query string that the page cannot answer: 400. `problem`, which is str() of it, is shown to the client."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.message = f"{problem}."

    def __str__(self) -> str:
        return self.detail


def json_app(get: JSONHandler, post: JSONHandler | None = None, *, indent: int | None = None) -> WSGIApplication:
    """A WSGI app that answers GET and HEAD with what `get(environ)` returns, POST with what `post(environ)` returns.

    A handler returns a status and a value. The value is sent as JSON in UTF-8 with a newline at the end and
    `Cache-Control: no-store`; what json cannot serialize is sent as its str(). `indent` is that of json.dumps.

    A GatewayError that a handler raises is answered in the form of all of the gateway's own answers, with its status and
    headers: QueryError for a query that cannot be used (400), another RequestError with a status of its own. Any other method is
    answered with 405 and `Allow`. Other exceptions are left to the gateway, which answers 500 and logs them.
    """
    handlers = {"GET": get, "HEAD": get}
    if post is not None:
        handlers["POST"] = post
    allow = ("Allow", ", ".join(handlers))

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
        try:
            if method not in handlers:
                headers.append(allow)
                raise MethodNotAllowed
            status, value = handlers[method](environ)
            body = json.dumps(value, indent=indent, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"
        except GatewayError as fault:
            exchange: Exchange = environ.get(ENVIRON_KEY) or Exchange()  # absent when the app is called outside of a gateway
            status, body = fault.status, fault.json(exchange.id)
            headers += fault.headers
            if fault.retry_after_seconds is not None:
                headers.append(("Retry-After", str(fault.retry_after_seconds)))
        headers.append(("Content-Length", str(len(body))))
        start_response(f"{status} {HTTPStatus(status).phrase}", headers)
        return [b"" if method == "HEAD" else body]

    return app
