"""Who the client is. What a request says of the way that it came is believed only from proxies that the operator trusts.

A chain of proxies appends to X-Forwarded-For, each the peer it was called by. So its last entries are written by machines
that one knows, and everything left of them by whoever. The client is the last address that is not a trusted proxy's: the
one that a trusted machine has seen with its own eyes (RFC 7239 §8.1 says why nothing else may be used).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Final

from .environ import ANNOUNCED_KEY, FIELDS_KEY, PEER_KEY
from .fields import CLAIM, FORWARDING_KEYS, Fields

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["IPAllowlist", "TrustedProxies", "is_of_web_page", "normalize_address"]

_OWN_CERTIFICATE: Final = "HTTP_X_FORWARDED_CLIENT_CERT"  # of a client that has shown one to this gateway, which says so itself
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


class IPAllowlist:
    """Whether a client may have what is not for everybody: `IPAllowlist(["10.1.0.0/16"])(environ)`.

    networks  whose machines may. The address that counts is the client's, as everywhere in the chain: REMOTE_ADDR
    hosts     names by which such a machine may ask for this one, beside its addresses and `localhost`

    All of this must hold:

    - The client's address is in `networks`.
    - No web page has made a browser ask: there is no Origin, and no Sec-Fetch-Site but "none", which stands for a person who
      has typed the URL (Fetch Metadata §2.4).
    - The request has not been forwarded, unless a trusted proxy names the client: no header says so, and it is not HTTP/1.0,
      which nginx before 1.29.7 speaks to its backends when nothing else is configured.
    - Host is an address, `localhost` or one of `hosts`; else a browser may ask for a web page whose name has been made to lead
      here (DNS rebinding).
    - A client with an address of loopback has connected to this machine itself: there is no PROXY header, no trusted proxy that
      names it (its loopback is another's), and Host is of loopback too, as there is no other way to get here from there.

    One thing cannot be told from a client on this machine: a proxy on it that forwards bytes, or HTTP/1.1 with a Host of its own,
    and adds nothing. So nothing that a client elsewhere must not see belongs on the gateway's port.
    Raises ValueError for what is no network.
    """

    LOOPBACK: Final = ("127.0.0.0/8", "::1")
    EVERYWHERE: Final = ("0.0.0.0/0", "::/0")

    def __init__(self, networks: Iterable[str], hosts: Iterable[str] = ()) -> None:
        try:
            self._networks = TrustedProxies(networks)
        except ValueError as problem:
            raise ValueError(f"{problem}; write a network like 10.0.0.0/8, or an address like 192.0.2.1") from None
        self._hosts = frozenset(host.lower() for host in hosts)

    def __call__(self, environ: WSGIEnvironment) -> bool:
        client: str = environ.get("REMOTE_ADDR", "")
        if client not in self._networks or is_of_web_page(environ):
            return False
        loopback = _parse(client).is_loopback
        believed = environ.get(PEER_KEY, client) != client
        if loopback and (believed or ANNOUNCED_KEY in environ):
            return False
        if not believed and _is_forwarded(environ):
            return False
        return self._is_for_this_machine(environ.get("HTTP_HOST", ""), loopback)

    def _is_for_this_machine(self, host: str, loopback: bool) -> bool:
        name = (host.partition("]")[0].strip("[") if host.startswith("[") else host.partition(":")[0]).lower()
        if name in ("localhost", ""):
            return True
        try:
            return _parse(name).is_loopback or not loopback
        except ValueError:
            return name in self._hosts


def is_of_web_page(environ: WSGIEnvironment) -> bool:
    """Whether a web page has made a browser send this request, as far as browsers tell."""
    return "HTTP_ORIGIN" in environ or environ.get("HTTP_SEC_FETCH_SITE", "none") != "none"


def _is_forwarded(environ: WSGIEnvironment) -> bool:
    own = _OWN_CERTIFICATE if environ.get("SSL_CLIENT_VERIFY") == "SUCCESS" else ""
    return environ.get("SERVER_PROTOCOL") == "HTTP/1.0" or any(
        key in FORWARDING_KEYS or (key.startswith("HTTP_X_FORWARDED_") and key != own) for key in environ
    )


def normalize_address(address: str) -> str:
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
