"""The server's TLS contexts: certificates chosen by the host that a client asks for, and the verification of clients."""

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

# For TLS 1.2: forward secrecy and authenticated encryption, which every client of the last ten years supports. For TLS 1.3
# OpenSSL's defaults are kept; all of them are safe.
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
DAY_SECONDS: Final = 86_400
WARN_DAYS: Final = 14
_log = logging.getLogger("rgate.tls")


class ServerTLS:
    """The TLS contexts of a server, made from the files that the config names. A reload makes another one.

    Every connection begins with `context`. When it is made before the worker processes are forked, a client can resume its
    session in any of them, since the key of the session tickets belongs to the context. Raises PemError.

    logs_expiry  whether expiry_warning() also logs. The process that starts the workers sets it to False in all but one
    """

    def __init__(self, config: TLSConfig) -> None:
        self._config = config
        self._by_name: dict[str, ssl.SSLContext] = {}
        self._not_after: dict[str, int] = {}
        self._warned_at: float | None = None
        self.logs_expiry = True
        contexts = []
        for _, entry in config.certificate_entries():
            context = self._context(entry)
            contexts.append(context)
            with suppress(PemError):  # with `hosts` in the config its names are not needed
                self._not_after[entry.certificate] = not_after(entry.certificate, entry.key, entry.key_password)
            for name in entry.hosts or dns_names(entry.certificate, entry.key, entry.key_password):
                self._by_name.setdefault(name, context)
        self.context = contexts[0]
        if len(contexts) > 1:
            self.context.sni_callback = self._select_by_name

    @property
    def requests_client_certificates(self) -> bool:
        """Whether the server asks clients for a certificate."""
        return self._config.client_certificates is not None

    def expiry_warning(self, now: float) -> str:
        """Names the certificates that have expired or expire within 14 days; "" if none does.

        `now` is in seconds since 1970. Logged as well, the first time and then once a day.
        """
        ending = [_ending(file, end, now) for file, end in self._not_after.items() if end - now < WARN_DAYS * DAY_SECONDS]
        if ending and self.logs_expiry and (self._warned_at is None or now - self._warned_at >= DAY_SECONDS):
            self._warned_at = now
            for line in ending:
                _log.warning("%s", line)
        return "; ".join(ending)

    def _context(self, entry: CertificateConfig) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        # Renegotiation is a cheap way to keep a server busy; TLS 1.3 does not have it.
        context.options |= ssl.OP_NO_RENEGOTIATION
        load_cert_chain(context, entry.certificate, entry.key, entry.key_password)
        clients = self._config.client_certificates
        if clients is not None:
            load_ca(context, clients.ca)
            if clients.crl is not None:
                load_crl(context, clients.crl)
            context.verify_mode = ssl.CERT_REQUIRED if clients.require else ssl.CERT_OPTIONAL
        return context

    def _select_by_name(self, tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called by OpenSSL with the host that a client asks for. An unknown host is served by the first context."""
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
