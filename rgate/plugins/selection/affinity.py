"""Affinity of a client to an endpoint: the key of the policy `hash`, and the cookie of a sticky backend."""

from __future__ import annotations

import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING

from rgate import Endpoint, environ_key

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["StickyCookie", "cookie", "key_of"]


def key_of(hash_key: str) -> Callable[[WSGIEnvironment], str]:
    """A function that returns the hash key of an environ. Without the header or cookie, that is the client's address."""
    kind, _, name = hash_key.partition(":")
    if kind == "cookie":
        return lambda environ: cookie(environ, name) or environ.get("REMOTE_ADDR", "")
    if kind == "header":
        key = environ_key(name)
        return lambda environ: environ.get(key) or environ.get("REMOTE_ADDR", "")
    return lambda environ: environ.get("REMOTE_ADDR", "")


def cookie(environ: WSGIEnvironment, name: str) -> str:
    """The value of the first cookie with this name; empty if there is no such cookie."""
    for pair in environ.get("HTTP_COOKIE", "").split(";"):
        found, equals, value = pair.strip().partition("=")
        if equals and found == name:
            return str(value)
    return ""


class StickyCookie:
    """The cookie of one backend. Its value is a keyed hash of an endpoint's id, so it reveals nothing about the endpoint."""

    MAX_REMEMBERED = 10_000

    def __init__(self, backend: str, name: str, secret: str | None = None, max_age_seconds: int | None = None) -> None:
        self._backend = backend
        self._name = name
        self._secret = blake2b((secret or secrets.token_hex()).encode()).digest()
        self._attributes = "; Path=/; HttpOnly; SameSite=Lax" + (f"; Max-Age={max_age_seconds}" if max_age_seconds else "")
        self._values: dict[str, str] = {}

    def lookup(self, environ: WSGIEnvironment, candidates: Sequence[Endpoint]) -> Endpoint | None:
        """The candidate that the request's cookie names; None without such a cookie or candidate."""
        value = cookie(environ, self._name)
        return next((endpoint for endpoint in candidates if self._value(endpoint.id) == value), None) if value else None

    def with_cookie(self, endpoint: Endpoint, environ: WSGIEnvironment, start_response: StartResponse) -> StartResponse:
        """A start_response that adds the cookie for `endpoint`."""
        secure = "; Secure" if environ["wsgi.url_scheme"] == "https" else ""
        header = ("Set-Cookie", f"{self._name}={self._value(endpoint.id)}{self._attributes}{secure}")
        return partial(_start_with, header, start_response)

    def _value(self, id: str) -> str:
        value = self._values.get(id)
        if value is None:
            if len(self._values) >= self.MAX_REMEMBERED:
                self._values.clear()
            digest = blake2b(f"{self._backend}\0{id}".encode(), digest_size=12, key=self._secret).digest()
            value = self._values[id] = urlsafe_b64encode(digest).decode()
        return value


def _start_with(
    header: tuple[str, str], start_response: StartResponse, status: str, headers: list[tuple[str, str]], *exc_info: object
) -> Callable[[bytes], object]:
    return start_response(status, [*headers, header], *exc_info)  # type: ignore[arg-type]
