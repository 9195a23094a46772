"""Checks of the TLS options: whether they go together, and whether the files that they name can be used."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import TypeAlias

from ..errors import ConfigProblem
from ..tls.certificates import PemError, authorities_without_list, dns_names, load_ca, load_cert_chain, load_crl
from .models import ClientCertificatesConfig, Config, TLSConfig, UpstreamTLS

__all__ = ["check", "warnings"]

_Path: TypeAlias = "tuple[str | int, ...]"


def check(config: Config) -> Iterator[ConfigProblem]:
    """The problems of `server.tls` and of every backend's `tls`."""
    tls = config.server.tls
    if tls is not None:
        yield from _listener(tls, config.server.port)
        yield from _certificates(tls)
        if tls.client_certificates is not None:
            yield from _clients(tls.client_certificates)
    for index, backend in enumerate(config.backends):
        yield from _upstream(backend.tls, ("backends", index, "tls"))


def warnings(config: Config) -> Iterator[ConfigProblem]:
    """Client CAs without a revocation list when others have one: no certificate that they have issued is accepted."""
    clients = config.server.tls.client_certificates if config.server.tls is not None else None
    if clients is not None and clients.crl is not None:
        for name in authorities_without_list(clients.ca, clients.crl):
            message = f"has no revocation list of the authority {name!r}, so all clients with a certificate from it are refused"
            yield ConfigProblem(("server", "tls", "client_certificates", "crl"), message)


def _listener(tls: TLSConfig, port: int) -> Iterator[ConfigProblem]:
    path: _Path = ("server", "tls")
    if tls.certificate is None:
        if not tls.certificates:
            yield ConfigProblem(path, "needs a certificate")
        for name in ("key", "key_password"):
            if getattr(tls, name) is not None:
                yield ConfigProblem((*path, name), "has no effect unless 'certificate' is also set")
    if tls.redirect_port is None and tls.public_port is not None:
        yield ConfigProblem((*path, "public_port"), "has no effect unless 'redirect_port' is also set")
    if tls.redirect_port and tls.redirect_port == port:
        yield ConfigProblem((*path, "redirect_port"), f"{port} is the port of the TLS listener; choose another, like 80")


def _certificates(tls: TLSConfig) -> Iterator[ConfigProblem]:
    taken: dict[str, _Path] = {}
    for below, entry in tls.certificate_entries():
        path = ("server", "tls", *below)
        try:
            names = entry.hosts or dns_names(entry.certificate, entry.key, entry.key_password)
            if entry.hosts:
                load_cert_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), entry.certificate, entry.key, entry.key_password)
        except PemError as error:
            yield ConfigProblem((*path, error.option), error.problem)
            continue
        if below and not names:
            yield ConfigProblem((*path, "certificate"), f"{entry.certificate} does not name a host; list some under 'hosts'")
        elif taken and names and all(name in taken for name in names):
            first = str(ConfigProblem(taken[names[0]], "")).removesuffix(": ")
            yield ConfigProblem((*path, "certificate"), f"never used: {first} is already for {', '.join(names)}")
        for name in names:
            taken.setdefault(name, (*path, "certificate"))


def _clients(clients: ClientCertificatesConfig) -> Iterator[ConfigProblem]:
    path: _Path = ("server", "tls", "client_certificates")
    yield from _authorities(clients.ca, path)
    if clients.crl is not None:
        try:
            load_crl(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), clients.crl)
        except PemError as error:
            yield ConfigProblem((*path, error.option), error.problem)


def _upstream(tls: UpstreamTLS, path: _Path) -> Iterator[ConfigProblem]:
    if tls.ca is not None:
        yield from _authorities(tls.ca, path)
        if not tls.verify:
            yield ConfigProblem((*path, "verify"), "is false, so 'ca' has no effect; leave one of them out")
    if tls.certificate is not None:
        try:
            load_cert_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), tls.certificate, tls.key, tls.key_password)
        except PemError as error:
            yield ConfigProblem((*path, error.option), error.problem)
        return
    for name in ("key", "key_password"):
        if getattr(tls, name) is not None:
            yield ConfigProblem((*path, name), "has no effect unless 'certificate' is also set")


def _authorities(file: str, path: _Path) -> Iterator[ConfigProblem]:
    try:
        load_ca(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), file)
    except PemError as error:
        yield ConfigProblem((*path, error.option), error.problem)
