"""What the server speaks TLS with: certificates, chosen by the host that a client asks for, and who may be the client."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

from ..config.certificates import pairs
from ..tls.pem import load_authorities, load_pair, names_of

if TYPE_CHECKING:
    from ..config.models import CertificateConfig, TLSConfig

__all__ = ["CIPHERS", "ServerTLS"]

# For TLS 1.2, all that a client of the last ten years may want: forward secrecy and authenticated encryption. Those of
# TLS 1.3 are OpenSSL's own, and all good.
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"


class ServerTLS:
    """The contexts of a server. It is read once, from its files; to take up new ones, make another and give it to the server.

    `context` is what every connection begins with. Made before the worker processes are forked, all of them can take up
    each other's sessions, since the key of the session tickets is the context's. Raises PemError.
    """

    def __init__(self, config: TLSConfig) -> None:
        self._config = config
        self._by_name: dict[str, ssl.SSLContext] = {}
        contexts = []
        for _, entry in pairs(config):
            context = self._context(entry)
            contexts.append(context)
            for name in entry.hosts or names_of(entry.certificate, entry.key, entry.key_password):
                self._by_name.setdefault(name, context)
        self.context = contexts[0]
        if len(contexts) > 1:
            self.context.sni_callback = self._choose

    @property
    def asks_clients(self) -> bool:
        """Whether clients are asked for a certificate."""
        return self._config.client_certificates is not None

    def _context(self, entry: CertificateConfig) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        # A client that renegotiates makes the server work for nothing; TLS 1.3 has no such thing.
        context.options |= ssl.OP_NO_RENEGOTIATION
        load_pair(context, entry.certificate, entry.key, entry.key_password)
        clients = self._config.client_certificates
        if clients is not None:
            load_authorities(context, clients.ca)
            context.verify_mode = ssl.CERT_REQUIRED if clients.require else ssl.CERT_OPTIONAL
        return context

    def _choose(self, tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called by OpenSSL when a client has said which host it wants. A name that is unknown is served by the first."""
        if name:
            host = name.lower().rstrip(".")
            chosen = self._by_name.get(host) or self._by_name.get(f"*.{host.partition('.')[2]}")
            if chosen is not None:
                tls.context = chosen
