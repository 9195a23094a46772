"""The header lines that tell a backend about the client and the proxies: X-Forwarded-*, Forwarded, Via or CDN-Loop.

The peer is always appended to X-Forwarded-For. The other fields are this gateway's own view, unless a trusted proxy has sent
them: then its view is kept, because it has seen more of the way (RFC 7239 §8.1; CVE-2024-45410 shows the consequence otherwise).

By Via this gateway recognizes its own requests. Where the config turns it off (`server.via`), because servers like nginx do not
compress for a proxy that sends it, CDN-Loop is used (RFC 8586), which servers use for nothing else.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from ..errors import LoopDetected
from ..http1.environ import PEER_KEY
from ..http1.fields import encode_field
from ..http1.grammar import bracket_host

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["CDN_LOOP", "CDN_LOOP_KEY", "VIA", "VIA_KEY", "forwarded_headers", "trusted_forwarded_headers"]

VIA_KEY: Final = "HTTP_VIA"
CDN_LOOP_KEY: Final = "HTTP_CDN_LOOP"

_INSTANCE: Final = secrets.token_hex(4)
_NAME: Final = f"rgate ({_INSTANCE})"  # the comment distinguishes this gateway from other rgates (RFC 9110 §7.6.3)
VIA: Final = f"1.1 {_NAME}"
CDN_LOOP: Final = f"rgate-{_INSTANCE}"
_LOOPS: Final = ("1.1 rgate", "1.0 rgate", VIA, f"1.0 {_NAME}")


def forwarded_headers(
    forwarded_for: str, loop_value: str, loop_key: str, prefix: str, peer: str, scheme: str, host: str, protocol: str = "HTTP/1.1"
) -> bytes:
    """The header lines for a request of a peer that is not trusted.

    forwarded_for  its X-Forwarded-For
    loop_value     the value of its Via (`loop_key` VIA_KEY) or CDN-Loop (CDN_LOOP_KEY)
    prefix         the part of the path that the route strips
    peer, scheme, host, protocol  the request's

    Raises LoopDetected, and ValueError for values that no header can have.
    """
    return b"".join(
        [
            *_line("X-Forwarded-For", _appended(forwarded_for, peer)),
            *_line("X-Forwarded-Proto", scheme),
            *_line("X-Forwarded-Host", host),
            *_line("X-Forwarded-Port", _port(host, scheme)),
            *_line("X-Forwarded-Prefix", prefix),
            _loop_line(loop_key, loop_value, protocol),
        ]
    )


def trusted_forwarded_headers(environ: WSGIEnvironment, loop_key: str, prefix: str, host: str) -> bytes:
    """The same for a request of a trusted proxy, with the values that it has sent. Raises the same."""
    peer: str = environ[PEER_KEY]
    get = environ.get
    scheme = get("HTTP_X_FORWARDED_PROTO") or environ["wsgi.url_scheme"]
    host = get("HTTP_X_FORWARDED_HOST") or host
    forwarded = get("HTTP_FORWARDED")
    return b"".join(
        [
            *_line("X-Forwarded-For", _appended(get("HTTP_X_FORWARDED_FOR", ""), peer)),
            *_line("X-Forwarded-Proto", scheme),
            *_line("X-Forwarded-Host", host),
            *_line("X-Forwarded-Port", get("HTTP_X_FORWARDED_PORT") or _port(host, scheme)),
            *_line("X-Forwarded-Prefix", get("HTTP_X_FORWARDED_PREFIX", "").rstrip("/") + prefix),
            *_line("Forwarded", f"{forwarded}, for={_node(peer)}" if forwarded else ""),
            _loop_line(loop_key, get(loop_key, ""), environ["SERVER_PROTOCOL"]),
        ]
    )


def _line(name: str, value: str) -> tuple[bytes, ...]:
    return (encode_field(name, value),) if value else ()


def _appended(values: str, last: str) -> str:
    return f"{values}, {last}" if values and last else values or last


def _node(address: str) -> str:
    """An address in the form of Forwarded (RFC 7239 §6)."""
    return f'"{bracket_host(address)}"' if ":" in address else address


def _port(host: str, scheme: str) -> str:
    """The port that the client has addressed; "" without a host."""
    port = host.rpartition("]")[2].partition(":")[2]
    return (port or ("443" if scheme == "https" else "80")) if host else ""


def _loop_line(key: str, loop_value: str, protocol: str) -> bytes:
    if key == CDN_LOOP_KEY:
        if any(entry.partition(";")[0].strip() == CDN_LOOP for entry in loop_value.split(",")):
            raise LoopDetected(loop_value)
        return encode_field("CDN-Loop", CDN_LOOP)  # the values received are among the client's lines
    if any(entry.strip() in _LOOPS for entry in loop_value.split(",")):
        raise LoopDetected(loop_value)
    return encode_field("Via", _appended(loop_value, f"{'1.0' if protocol == 'HTTP/1.0' else '1.1'} {_NAME}"))
