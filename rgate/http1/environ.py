"""The keys that the gateway adds to a WSGI environ, and how they are made from the environ of another WSGI server.

rgate.target          the Target: routing decides on it, and the backend gets its `raw`
rgate.fields          the header Fields that are forwarded, in order, as they were sent
rgate.peer            the address of the trusted proxy that sent the request; absent when the peer is not one. With it,
                      REMOTE_ADDR is the client's address and wsgi.url_scheme the client's scheme, as the proxy says
rgate.rejection       a GatewayError, or a function that makes one of the environ: the server does not serve the request,
                      and the outer chain answers it with this fault
rgate.unparsed        for a request whose head could not be parsed: method, target and Host as they were sent, as far as they
                      could be found, each "" otherwise

Under rgate's own server only:

rgate.connection      the client's connection, a ClientConnection
rgate.request_stream  the request's body, a RequestStream, unless it is complete in memory (then wsgi.input is a BytesIO)
rgate.trailers        for a chunked body: its trailer fields as (name, value), a list that is empty until the body has been
                      read completely
rgate.upgrade         the protocols that the client asks to switch to, lower-case. The Upgrade header is never forwarded
rgate.proxy_header    true when the connection began with a PROXY header; the peer's address is from this header

rgate's own server sets rgate.target and rgate.fields. Under another one they are made here: it has joined repeated headers, and
a name with "_" cannot be told from one with "-".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from . import fields
from .fields import Field, Fields, encode_field
from .grammar import environ_key, valid_host
from .target import Target, parse_target, target_from_environ_path, without_dot_segments

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = [
    "CONNECTION_KEY",
    "FIELDS_KEY",
    "PEER_KEY",
    "PROXY_HEADER_KEY",
    "REJECTION_KEY",
    "REQUEST_STREAM_KEY",
    "TARGET_KEY",
    "TRAILERS_KEY",
    "UNPARSED_KEY",
    "UPGRADE_KEY",
    "edited_fields",
    "edited_target",
    "from_foreign_environ",
    "original_host",
]

PROXY_HEADER_KEY: Final = "rgate.proxy_header"
TARGET_KEY: Final = "rgate.target"
FIELDS_KEY: Final = "rgate.fields"
CONNECTION_KEY: Final = "rgate.connection"
PEER_KEY: Final = "rgate.peer"
REJECTION_KEY: Final = "rgate.rejection"
REQUEST_STREAM_KEY: Final = "rgate.request_stream"
UNPARSED_KEY: Final = "rgate.unparsed"
UPGRADE_KEY: Final = "rgate.upgrade"
TRAILERS_KEY: Final = "rgate.trailers"

_NOT_COPIED: Final = frozenset(
    {fields.CONTENT_LENGTH, fields.TRANSFER_ENCODING, fields.CONNECTION, fields.EXPECT, fields.UPGRADE}
    | {fields.HOP_BY_HOP, fields.TE, fields.TRAILER, fields.FORWARDED, fields.VIA}
)


def from_foreign_environ(environ: WSGIEnvironment) -> None:
    """Add rgate.target and rgate.fields to the environ of another WSGI server. Raises ValueError for an ambiguous request."""
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    sent = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    target = parse_target(environ["REQUEST_METHOD"], sent or target_from_environ_path(path, environ.get("QUERY_STRING", "")))
    if target.path != path:
        if target.path != without_dot_segments(path):
            raise ValueError("the server's view of the path differs from what was sent")
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = "", target.path
    if not environ.get("QUERY_STRING", "").isascii():
        environ["QUERY_STRING"] = target.query
    if not valid_host(environ.get("HTTP_HOST", "none")):
        raise ValueError("not exactly one valid Host")
    for name in fields.connection_nominated(Field("Connection", environ.get("HTTP_CONNECTION", "")).tokens):
        environ.pop(environ_key(name), None)
    copied = [field for field in map(_field, environ.items()) if field is not None]
    proxy_fields = [field for field in copied if field.kind == fields.PROXY_ONLY]
    kept_fields = Fields((field for field in copied if field.kind != fields.PROXY_ONLY), proxy_fields)
    for field in kept_fields:
        encode_field(*field.pair)  # raises ValueError for an invalid one
    environ[TARGET_KEY] = target
    environ[FIELDS_KEY] = kept_fields


def edited_target(environ: WSGIEnvironment) -> Target:
    """The target for the backend: as it was sent, unless a middleware has changed the path or the query in the environ.

    Raises ValueError when the changed target cannot be sent.
    """
    target: Target = environ[TARGET_KEY]
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    query = environ.get("QUERY_STRING", "")
    if (path, query) == (target.path, target.query):
        return target
    raw = target_from_environ_path(path, "") if path != target.path else target.raw.partition("?")[0]
    if not raw.startswith("/"):
        raise ValueError(f"not a path: {path!r}")
    return parse_target("GET", f"{raw}?{query}" if query else raw)


def edited_fields(environ: WSGIEnvironment) -> list[bytes]:
    """The header lines for the backend: those of the environ, and as they were sent where no middleware has changed them."""
    sent: Fields = environ[FIELDS_KEY]
    joined: dict[str, str] = {}
    for field in (*sent, *sent.proxy_fields):
        separator = "; " if field.kind == fields.COOKIE else ", "
        joined[field.key] = joined[field.key] + separator + field.value if field.key in joined else field.value
    lines = [field.line for field in sent if environ.get(field.key) == joined[field.key]]
    for item in environ.items():
        if joined.get(item[0]) != item[1]:
            changed = _field(item)
            if changed is not None:
                lines.append(encode_field(changed.pair[0], changed.value))
    return lines


def original_host(environ: WSGIEnvironment) -> str:
    """The Host that the client has sent, also when a middleware has changed HTTP_HOST; "" if it sent no Host."""
    sent: Fields = environ[FIELDS_KEY]
    return next((field.value for field in sent if field.kind == fields.HOST), "")


def _field(item: tuple[str, object]) -> Field | None:
    key, value = item
    if key.startswith("HTTP_"):
        name = key[5:].replace("_", "-").title()
    elif key == "CONTENT_TYPE" and value:
        name = "Content-Type"
    else:
        return None
    field = Field(name, str(value))
    return None if field.kind in _NOT_COPIED else field
