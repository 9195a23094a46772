"""What the server speaks TLS with: certificates, chosen by the host that a client asks for, and who may be the client."""

from __future__ import annotations

import logging
import ssl
from contextlib import suppress
from time import gmtime, strftime
from typing import TYPE_CHECKING, Final

from .certificates import PemError, dns_names, load_ca, load_cert_chain, load_crl, not_after

if TYPE_CHECKING:
    from ..config.models import CertificateConfig, TLSConfig

__all__ = ["CIPHERS", "ServerTLS"]

# For TLS 1.2, all that a client of the last ten years may want: forward secrecy and authenticated encryption. Those of
# TLS 1.3 are OpenSSL's own, and all good.
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
DAY_SECONDS: Final = 86_400
WARN_DAYS: Final = 14
_log = logging.getLogger("rgate.tls")


class ServerTLS:
    """The contexts of a server. It is read once, from its files; to take up new ones, make another and give it to the server.

    `context` is what every connection begins with. Made before the worker processes are forked, all of them can take up
    each other's sessions, since the key of the session tickets is the context's. Raises PemError.
    """

    def __init__(self, config: TLSConfig) -> None:
        self._config = config
        self._by_name: dict[str, ssl.SSLContext] = {}
        self._ends: dict[str, int] = {}
        self._reminded: float | None = None
        self.quiet = False  # whether another process tells of certificates that end
        contexts = []
        for _, entry in config.certificate_entries():
            context = self._context(entry)
            contexts.append(context)
            with suppress(PemError):  # with `hosts` of its own it need not be one that we can read
                self._ends[entry.certificate] = not_after(entry.certificate, entry.key, entry.key_password)
            for name in entry.hosts or dns_names(entry.certificate, entry.key, entry.key_password):
                self._by_name.setdefault(name, context)
        self.context = contexts[0]
        if len(contexts) > 1:
            self.context.sni_callback = self._choose

    @property
    def asks_clients(self) -> bool:
        """Whether clients are asked for a certificate."""
        return self._config.client_certificates is not None

    def remind(self, now: float) -> str:
        """What an operator should know of certificates that have expired, or will within 14 days; "" if there are none.

        `now` is in seconds since 1970. It is logged as well, the first time and then once a day.
        """
        ending = [_ending(file, end, now) for file, end in self._ends.items() if end - now < WARN_DAYS * DAY_SECONDS]
        if ending and not self.quiet and (self._reminded is None or now - self._reminded >= DAY_SECONDS):
            self._reminded = now
            for line in ending:
                _log.warning("%s", line)
        return "; ".join(ending)

    def _context(self, entry: CertificateConfig) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        # A client that renegotiates makes the server work for nothing; TLS 1.3 has no such thing.
        context.options |= ssl.OP_NO_RENEGOTIATION
        load_cert_chain(context, entry.certificate, entry.key, entry.key_password)
        clients = self._config.client_certificates
        if clients is not None:
            load_ca(context, clients.ca)
            if clients.crl is not None:
                load_crl(context, clients.crl)
            context.verify_mode = ssl.CERT_REQUIRED if clients.require else ssl.CERT_OPTIONAL
        return context

    def _choose(self, tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called by OpenSSL when a client has said which host it wants. A name that is unknown is served by the first."""
        if name:
            host = name.lower().rstrip(".")
            chosen = self._by_name.get(host) or self._by_name.get(f"*.{host.partition('.')[2]}")
            if chosen is not None:
                tls.context = chosen


def _ending(file: str, end: int, now: float) -> str:
    days = int(end - now) // DAY_SECONDS
    when = "today" if not days else "in 1 day" if days == 1 else f"in {days} days"
    verb = "has expired" if end <= now else f"expires {when}"
    return f"the certificate in {file} {verb} ({strftime('%Y-%m-%d %H:%M', gmtime(end))} UTC)"
