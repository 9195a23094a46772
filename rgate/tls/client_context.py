"""TLS contexts for connections to backends: verified by the system's certificate authorities unless the config names others."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from .certificates import load_ca, load_cert_chain

if TYPE_CHECKING:
    from ..config import UpstreamTLS

__all__ = ["client_context"]


def client_context(tls: UpstreamTLS) -> ssl.SSLContext:
    """The SSLContext for connections with these options. Reads the files that they name; raises PemError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif tls.ca is not None:
        load_ca(context, tls.ca)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if tls.certificate is not None:
        load_cert_chain(context, tls.certificate, tls.key, tls.key_password)
    return context
