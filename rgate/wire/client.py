"""Who the client is. What a request says of the way that it came is believed only from proxies that the operator trusts.

A chain of proxies appends to X-Forwarded-For, each the peer it was called by. So its last entries are written by machines
that one knows, and everything left of them by whoever. The client is the last address that is not a trusted proxy's: the
one that a trusted machine has seen with its own eyes (RFC 7239 §8.1 says why nothing else may be used).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Final

from .environ import FIELDS_KEY, PEER_KEY
from .fields import CLAIM, Fields

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["AllowedClients", "TrustedProxies", "plain_address"]

_FORWARDING: Final = frozenset({"HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_REAL_IP", "HTTP_X_CLIENT_IP", "HTTP_TRUE_CLIENT_IP"})
MAX_HOPS: Final = 64  # more trusted proxies in a row than any request passes


class TrustedProxies:
    """The networks (CIDR) whose machines are believed. False when there are none. Raises ValueError for what is no network."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = tuple(map(ip_network, networks))

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, address: str) -> bool:
        try:
            parsed = _parse(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)

    def client(self, peer: str, forwarded_for: str) -> str:
        """The client's address, when the trusted `peer` has sent this X-Forwarded-For: from the right, the first address
        that is not trusted; the leftmost when all are. An entry that is no address hides what stands left of it.
        """
        client = peer
        for entry in reversed(forwarded_for.split(",")[-MAX_HOPS:]):
            try:
                parsed = _parse(_without_port(entry.strip(" \t")))
            except ValueError:
                break
            client = str(parsed)
            if not any(parsed in network for network in self._networks):
                break
        return client

    def identify(self, environ: WSGIEnvironment) -> None:
        """Believe what the request of a trusted peer says: REMOTE_ADDR becomes the client's address, wsgi.url_scheme what
        the client used, and what else only a trusted proxy may say is passed on. The peer is in environ[PEER_KEY].
        """
        environ[PEER_KEY] = peer = environ["REMOTE_ADDR"]
        environ["REMOTE_ADDR"] = client = self.client(peer, environ.get("HTTP_X_FORWARDED_FOR", ""))
        if client != peer:
            environ.pop("REMOTE_PORT", None)  # it was the peer's
        scheme = environ.get("HTTP_X_FORWARDED_PROTO", "").rpartition(",")[2].strip(" \t").lower()
        if scheme in ("http", "https"):
            environ["wsgi.url_scheme"] = scheme
        sent: Fields = environ[FIELDS_KEY]
        believed = [field for field in sent.claims if field.meaning == CLAIM]
        if believed:
            environ[FIELDS_KEY] = Fields([*sent, *believed])


class AllowedClients:
    """Whether a request may come in, by where it comes from: `AllowedClients(["127.0.0.0/8", "::1"])(environ)`.

    The address that counts is the client's, as everywhere in the chain: REMOTE_ADDR. A request that has been forwarded, as
    its headers say, comes in only when a trusted proxy sent it and named the client, because otherwise everybody behind a
    proxy on this machine would come from loopback. For the same reason loopback never counts as the client of a forwarded
    request: it is the loopback of another. And a request from loopback must be for this machine by its Host, which is an
    address or localhost: else a proxy has sent it that says nothing of itself, or a web page whose name has been made to lead
    here (DNS rebinding). Raises ValueError for what is no network.
    """

    def __init__(self, networks: Iterable[str]) -> None:
        try:
            self._networks = TrustedProxies(networks)
        except ValueError as problem:
            raise ValueError(f"{problem}; write a network like 10.0.0.0/8, or an address like 192.0.2.1") from None

    def __call__(self, environ: WSGIEnvironment) -> bool:
        client: str = environ.get("REMOTE_ADDR", "")
        if client not in self._networks:
            return False
        loopback = _parse(client).is_loopback
        if any(key in _FORWARDING or key.startswith("HTTP_X_FORWARDED_") for key in environ):
            return environ.get(PEER_KEY, client) != client and not loopback
        return not loopback or _is_for_this_machine(environ.get("HTTP_HOST", ""))


def _is_for_this_machine(host: str) -> bool:
    name = host.partition("]")[0].strip("[") if host.startswith("[") else host.partition(":")[0]
    if name.lower() in ("localhost", ""):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def plain_address(address: str) -> str:
    """An address as people write it: one of IPv4 that came over an IPv6 socket (::ffff:192.0.2.1) in its own form."""
    return str(_parse(address)) if address.startswith("::ffff:") else address


def _parse(address: str) -> IPv4Address | IPv6Address:
    parsed = ip_address(address.partition("%")[0])
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _without_port(entry: str) -> str:
    """192.0.2.1:5678 and [2001:db8::1]:5678 are written by some proxies (RFC 7239 §6 has them so)."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    host, colon, port = entry.partition(":")
    return host if colon and port.isdigit() and "." in host else entry
