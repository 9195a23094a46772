"""What goes to the backend about the way a request has come: X-Forwarded-*, Forwarded, Via or CDN-Loop.

X-Forwarded-For is always appended the peer. The others are this gateway's own view, unless a trusted proxy has sent them:
then its view stands, because it has seen more of the way (RFC 7239 §8.1; CVE-2024-45410 is what happens otherwise).

Via tells this gateway its own requests. Where the config leaves it out (`server.via`), because servers like nginx do not
compress for a proxy that sends it, CDN-Loop does (RFC 8586), which no server reads for anything else.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from ..errors import LoopDetected
from ..http1.environ import PEER_KEY
from ..http1.fields import forward_line

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["CDN_LOOP", "CDN_LOOP_KEY", "VIA", "VIA_KEY", "forwarded_headers", "trusted_forwarded_headers"]

VIA_KEY: Final = "HTTP_VIA"
CDN_LOOP_KEY: Final = "HTTP_CDN_LOOP"

_INSTANCE: Final = secrets.token_hex(4)
_NAME: Final = f"rgate ({_INSTANCE})"  # the comment tells this gateway from others of its kind (RFC 9110 §7.6.3)
VIA: Final = f"1.1 {_NAME}"
CDN_LOOP: Final = f"rgate-{_INSTANCE}"
_LOOPS: Final = ("1.1 rgate", "1.0 rgate", VIA, f"1.0 {_NAME}")


def forwarded_headers(
    before: str, passed: str, passed_key: str, prefix: str, peer: str, scheme: str, host: str, protocol: str = "HTTP/1.1"
) -> bytes:
    """The header lines for a request of a peer that is not trusted. `before` is its X-Forwarded-For, `passed` what its header
    `passed_key` (VIA_KEY or CDN_LOOP_KEY) says, `prefix` what the route takes away from the path, `protocol` the request's.
    Raises Loop, and ValueError for what no header may be.
    """
    return b"".join(
        [
            *_line("X-Forwarded-For", _appended(before, peer)),
            *_line("X-Forwarded-Proto", scheme),
            *_line("X-Forwarded-Host", host),
            *_line("X-Forwarded-Port", _port(host, scheme)),
            *_line("X-Forwarded-Prefix", prefix),
            _passed_line(passed_key, passed, protocol),
        ]
    )


def trusted_forwarded_headers(environ: WSGIEnvironment, passed_key: str, prefix: str, host: str) -> bytes:
    """The same for a request of a trusted proxy, with what it says. Raises the same."""
    peer: str = environ[PEER_KEY]
    said = environ.get
    scheme = said("HTTP_X_FORWARDED_PROTO") or environ["wsgi.url_scheme"]
    host = said("HTTP_X_FORWARDED_HOST") or host
    forwarded = said("HTTP_FORWARDED")
    return b"".join(
        [
            *_line("X-Forwarded-For", _appended(said("HTTP_X_FORWARDED_FOR", ""), peer)),
            *_line("X-Forwarded-Proto", scheme),
            *_line("X-Forwarded-Host", host),
            *_line("X-Forwarded-Port", said("HTTP_X_FORWARDED_PORT") or _port(host, scheme)),
            *_line("X-Forwarded-Prefix", said("HTTP_X_FORWARDED_PREFIX", "").rstrip("/") + prefix),
            *_line("Forwarded", f"{forwarded}, for={_node(peer)}" if forwarded else ""),
            _passed_line(passed_key, said(passed_key, ""), environ["SERVER_PROTOCOL"]),
        ]
    )


def _line(name: str, value: str) -> tuple[bytes, ...]:
    return (forward_line(name, value),) if value else ()


def _appended(before: str, last: str) -> str:
    return f"{before}, {last}" if before and last else before or last


def _node(address: str) -> str:
    """An address as Forwarded has it (RFC 7239 §6)."""
    return f'"[{address}]"' if ":" in address else address


def _port(host: str, scheme: str) -> str:
    """The port that the client has addressed; "" when it named no host."""
    port = host.rpartition("]")[2].partition(":")[2]
    return (port or ("443" if scheme == "https" else "80")) if host else ""


def _passed_line(key: str, passed: str, protocol: str) -> bytes:
    if key == CDN_LOOP_KEY:
        if any(entry.partition(";")[0].strip() == CDN_LOOP for entry in passed.split(",")):
            raise LoopDetected(passed)
        return forward_line("CDN-Loop", CDN_LOOP)  # what came is among the client's own lines
    if any(entry.strip() in _LOOPS for entry in passed.split(",")):
        raise LoopDetected(passed)
    return forward_line("Via", _appended(passed, f"{'1.0' if protocol == 'HTTP/1.0' else '1.1'} {_NAME}"))
