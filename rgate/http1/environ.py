"""What the gateway keeps in a WSGI environ beside the standard keys, and how to make it under another server.

rgate.target   the Target: what routing decides on and what the backend gets
rgate.fields   the header fields that may be passed on, in order, as they were sent

rgate.client   the client's connection, under rgate's own server only: `on_disconnect` is called when the client leaves early,
               `send_interim()` sends an interim response, `flush_head()` the response's head before its body comes,
               `take_over()` makes it a tunnel
rgate.trailers the trailer fields of the request as (name, value), under rgate's own server only, for a chunked body only: a
               list that is empty until the body has been read to its end
rgate.upgrade  the protocols that the client asks to switch to, lower-case, under rgate's own server only; the Upgrade
               header itself is never passed on
rgate.peer     the address of the trusted proxy that the request came from; absent when it came from anybody else. Then
               REMOTE_ADDR is the client's address and wsgi.url_scheme what the client used, as that proxy says
rgate.announced  true when the connection began with a PROXY header, so that its peer is what that says
rgate.refused  a GatewayError, or what makes one of the environ: the server does not serve the request, and the outer chain
               answers it
rgate.sent     of a request that could not be read: method, target and Host as they were sent, as far as they could be told,
               each "" where there was none

rgate's own server sets the first two. Under any other WSGI server they are made from the environ here: repeated headers have
been joined by then, and a name with "_" can no longer be told from one with "-".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from . import fields
from .fields import Field, Fields, forward_line, valid_host
from .target import Target, parse_target, target_from_environ_path, without_dot_segments

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = [
    "ANNOUNCED_KEY",
    "CONNECTION_KEY",
    "FIELDS_KEY",
    "PEER_KEY",
    "REJECTION_KEY",
    "REQUEST_STREAM_KEY",
    "SENT_KEY",
    "TARGET_KEY",
    "TRAILERS_KEY",
    "UPGRADE_KEY",
    "adopt",
    "edited_fields",
    "edited_target",
    "sent_host",
]

ANNOUNCED_KEY: Final = "rgate.announced"
TARGET_KEY: Final = "rgate.target"
FIELDS_KEY: Final = "rgate.fields"
CONNECTION_KEY: Final = "rgate.connection"
PEER_KEY: Final = "rgate.peer"
REJECTION_KEY: Final = "rgate.rejection"
REQUEST_STREAM_KEY: Final = "rgate.request_stream"
SENT_KEY: Final = "rgate.sent"
UPGRADE_KEY: Final = "rgate.upgrade"
TRAILERS_KEY: Final = "rgate.trailers"

_NOT_COPIED: Final = frozenset(
    {fields.CONTENT_LENGTH, fields.TRANSFER_ENCODING, fields.CONNECTION, fields.EXPECT, fields.UPGRADE}
    | {fields.HOP_BY_HOP, fields.TE, fields.TRAILER, fields.FORWARDED, fields.VIA}
)


def adopt(environ: WSGIEnvironment) -> None:
    """Give the environ of another WSGI server the keys above. Raises ValueError when the request has no single reading."""
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
    for name in fields.removable(Field("Connection", environ.get("HTTP_CONNECTION", "")).tokens):
        environ.pop("HTTP_" + name.upper().replace("-", "_"), None)
    copied = [field for field in map(_field, environ.items()) if field is not None]
    claims = [field for field in copied if field.meaning == fields.CLAIM]
    adopted = Fields((field for field in copied if field.meaning != fields.CLAIM), claims)
    for field in adopted:
        forward_line(*field.pair)  # raises for what no header may be
    environ[TARGET_KEY] = target
    environ[FIELDS_KEY] = adopted


def edited_target(environ: WSGIEnvironment) -> Target:
    """The target after middleware has had its way: as sent, unless the path or query in environ was changed.

    Raises ValueError when what it was changed to cannot be sent.
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
    """The header lines to pass on after middleware has had its way: what environ says, as it was sent where unchanged."""
    sent: Fields = environ[FIELDS_KEY]
    joined: dict[str, str] = {}
    for field in (*sent, *sent.claims):
        separator = "; " if field.meaning == fields.COOKIE else ", "
        joined[field.key] = joined[field.key] + separator + field.value if field.key in joined else field.value
    lines = [field.line for field in sent if environ.get(field.key) == joined[field.key]]
    for item in environ.items():
        if joined.get(item[0]) != item[1]:
            changed = _field(item)
            if changed is not None:
                lines.append(forward_line(changed.pair[0], changed.value))
    return lines


def sent_host(environ: WSGIEnvironment) -> str:
    """The Host that the client has sent, whatever middleware has made of it; "" when it has sent none."""
    sent: Fields = environ[FIELDS_KEY]
    return next((field.value for field in sent if field.meaning == fields.HOST), "")


def _field(item: tuple[str, object]) -> Field | None:
    key, value = item
    if key.startswith("HTTP_"):
        name = key[5:].replace("_", "-").title()
    elif key == "CONTENT_TYPE" and value:
        name = "Content-Type"
    else:
        return None
    field = Field(name, str(value))
    return None if field.meaning in _NOT_COPIED else field
