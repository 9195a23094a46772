"""The WSGI apps under `/-/`: JSON, never to be cached."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qsl

from rgate import Exchange, GatewayError, MethodNotAllowed

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["Answer", "acting", "showing"]

Answer: TypeAlias = tuple[int, dict[str, Any]]


def showing(page: Callable[[WSGIEnvironment], Answer]) -> WSGIApplication:
    """An app that answers GET and HEAD with what `page(environ)` has to show."""
    return _answering({"GET": page, "HEAD": page})


def acting(action: Callable[[Mapping[str, str]], Answer], page: Callable[[WSGIEnvironment], Answer]) -> WSGIApplication:
    """An app that does something at POST, with the parameters of the query, and shows `page` at GET and HEAD."""

    def act(environ: WSGIEnvironment) -> Answer:
        return action(dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)))

    return _answering({"GET": page, "HEAD": page, "POST": act})


def _answering(methods: Mapping[str, Callable[[WSGIEnvironment], Answer]]) -> WSGIApplication:
    allowed = ", ".join(methods)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
        try:
            if method not in methods:
                headers.append(("Allow", allowed))
                raise MethodNotAllowed
            code, shown = methods[method](environ)
            body = json.dumps(shown, indent=2, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"
        except GatewayError as fault:
            code, body = fault.status, fault.json(Exchange.of(environ).id)
        headers.append(("Content-Length", str(len(body))))
        start_response(f"{code} {HTTPStatus(code).phrase}", headers)
        return [b"" if method == "HEAD" else body]

    return app
