"""Trailer fields: what may stand after a chunked body (RFC 9110 §6.5).

Whoever receives them may have acted on the head by then, or may merge them into it. So a field that decides how a message is
framed, routed, authenticated or processed is dropped, and whatever a client may not say in a head at all (RFC 9110 §6.5.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .fields import ORDINARY, Field

__all__ = ["announced_trailers", "read_trailers"]

_FORBIDDEN: Final = frozenset(
    {"cache-control", "max-forwards", "pragma", "range", "prefer", "origin", "referer"}  # modify the request
    | {"x-http-method", "x-http-method-override", "x-method-override"}
    | {"authorization", "www-authenticate", "set-cookie", "x-api-key"}  # say who somebody is
    | {"age", "date", "expires", "location", "refresh", "retry-after", "vary", "warning"}  # say what a response is for
)
_FORBIDDEN_STARTS: Final = ("if-", "proxy-", "sec-", "accept", "access-control-", "content-")
_DIGESTS: Final = frozenset({"content-digest", "content-md5"})  # known only when the content is complete, and made for this


def read_trailers(lines: Iterable[bytes]) -> list[tuple[str, str]]:
    """The fields in these lines (see ChunkedDecoder) that may be passed on, as (name as sent, value)."""
    fields = (line.decode("latin-1").partition(":") for line in lines)
    return [(name, value.strip(" \t")) for name, _, value in fields if _is_allowed(name)]


def announced_trailers(value: str) -> str:
    """The value of a Trailer header without what may not be a trailer; "" when nothing is left."""
    return ", ".join(name for name in (each.strip(" \t") for each in value.split(",")) if name and _is_allowed(name))


def _is_allowed(name: str) -> bool:
    field = Field(name, "")
    if field.meaning != ORDINARY or field.name in _FORBIDDEN:
        return False
    return not field.name.startswith(_FORBIDDEN_STARTS) or field.name in _DIGESTS
