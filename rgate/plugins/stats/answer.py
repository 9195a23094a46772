"""The WSGI app at `/stats`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from rgate import Exchange, GatewayError, MethodNotAllowed, RequestError

from .query import BY, Query, QueryError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["answering"]


def answering(
    report: Callable[[Query], dict[str, Any]], wall: Callable[[], float] = time.time, by: Collection[str] = BY
) -> WSGIApplication:
    """An app that answers GET and HEAD with `report(query)` as JSON, never to be cached.

    A query that cannot be read, or asks for more than `by`, gets 400, another method 405, one that may not wait 503, all in the
    shape of all of rgate's own answers.
    """

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
        try:
            if method not in ("GET", "HEAD"):
                headers.append(("Allow", "GET, HEAD"))
                raise MethodNotAllowed
            query = Query.parse(environ.get("QUERY_STRING", ""), wall())
            if hidden := [name for name in query.by if name not in by]:
                raise QueryError(f"by={hidden[0]} is answered at the admin socket only; here {', '.join(by)} are allowed")
            status, body = HTTPStatus.OK, json.dumps(report(query), allow_nan=False).encode() + b"\n"
        except QueryError as problem:
            fault = RequestError(str(problem))
            fault.message = f"{problem}."
            status, body = _own_answer(fault)
        except GatewayError as fault:
            headers += [*fault.headers, *([("Retry-After", "1")] if fault.status == 503 else [])]
            status, body = _own_answer(fault)
        headers.append(("Content-Length", str(len(body))))
        start_response(f"{status.value} {status.phrase}", headers)
        return [b"" if method == "HEAD" else body]

    return answer


def _own_answer(fault: GatewayError) -> tuple[HTTPStatus, bytes]:
    # Local routes have no exchange; a fresh one has an id that is nobody else's.
    return HTTPStatus(fault.status), fault.json(Exchange().id)
