"""Trailer fields: which may follow a chunked body (RFC 9110 §6.5).

The recipient may have acted on the head before they arrive, or may merge them into it. So a field that decides how a message is
framed, routed, authenticated or processed is dropped, and so is any field that a client may not send in a head (RFC 9110
§6.5.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .fields import ORDINARY, Field

__all__ = ["announced_trailers", "read_trailers"]

_FORBIDDEN: Final = frozenset(
    {"cache-control", "max-forwards", "pragma", "range", "prefer", "origin", "referer"}  # modify the request
    | {"x-http-method", "x-http-method-override", "x-method-override"}
    | {"authorization", "www-authenticate", "set-cookie", "x-api-key"}  # authenticate
    | {"age", "date", "expires", "location", "refresh", "retry-after", "vary", "warning"}  # control the use of a response
)
_FORBIDDEN_STARTS: Final = ("if-", "proxy-", "sec-", "accept", "access-control-", "content-")
_DIGESTS: Final = frozenset({"content-digest", "content-md5"})  # known only at the end of the content; defined as trailers


def read_trailers(lines: Iterable[bytes]) -> list[tuple[str, str]]:
    """The fields in these lines (see ChunkedDecoder) that may be forwarded, as (name as sent, value)."""
    fields = (line.decode("latin-1").partition(":") for line in lines)
    return [(name, value.strip(" \t")) for name, _, value in fields if _is_allowed(name)]


def announced_trailers(value: str) -> str:
    """The value of a Trailer header without the fields that may not be trailers; "" when none is left."""
    return ", ".join(name for name in (each.strip(" \t") for each in value.split(",")) if name and _is_allowed(name))


def _is_allowed(name: str) -> bool:
    field = Field(name, "")
    if field.kind != ORDINARY or field.name in _FORBIDDEN:
        return False
    return not field.name.startswith(_FORBIDDEN_STARTS) or field.name in _DIGESTS
