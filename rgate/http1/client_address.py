"""The client's address and scheme. What a request says of its way here is believed only from proxies that the operator trusts.

Each proxy of a chain appends the address of its peer to X-Forwarded-For. So the last entries are written by known machines,
and the entries left of them may be written by anyone. The client is the last address that is not a trusted proxy's: the one
that a trusted machine has seen itself (RFC 7239 §8.1 says why no other may be used).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Final

from .environ import FIELDS_KEY, PEER_KEY, PROXY_HEADER_KEY
from .fields import FORWARDING_KEYS, PROXY_ONLY, Fields

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["IPAllowlist", "TrustedProxies", "is_from_web_page", "normalize_address"]

_OWN_CERTIFICATE: Final = "HTTP_X_FORWARDED_CLIENT_CERT"  # of a client that has shown one to this gateway: written here
MAX_HOPS: Final = 64  # entries of X-Forwarded-For that are looked at; no request passes so many trusted proxies


class TrustedProxies:
    """The networks (CIDR) of the trusted proxies. False without any. Raises ValueError for anything else than a network."""

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
        """The client's address according to the X-Forwarded-For of the trusted `peer`: from the right, the first address that
        is not trusted, or the leftmost one when all are. Entries left of one that is not an address are ignored.
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

    def apply(self, environ: WSGIEnvironment) -> None:
        """Use what the request of a trusted peer says about its client: REMOTE_ADDR becomes the client's address,
        wsgi.url_scheme the client's scheme, and PROXY_ONLY fields are forwarded. environ[PEER_KEY] becomes the peer's address.
        """
        environ[PEER_KEY] = peer = environ["REMOTE_ADDR"]
        environ["REMOTE_ADDR"] = client = self.client(peer, environ.get("HTTP_X_FORWARDED_FOR", ""))
        if client != peer:
            environ.pop("REMOTE_PORT", None)  # it was the peer's
        scheme = environ.get("HTTP_X_FORWARDED_PROTO", "").rpartition(",")[2].strip(" \t").lower()
        if scheme in ("http", "https"):
            environ["wsgi.url_scheme"] = scheme
        sent: Fields = environ[FIELDS_KEY]
        trusted = [field for field in sent.proxy_fields if field.kind == PROXY_ONLY]
        if trusted:
            environ[FIELDS_KEY] = Fields([*sent, *trusted])


class IPAllowlist:
    """Decides whether a client may access something restricted: `IPAllowlist(["10.1.0.0/16"])(environ)`.

    networks  the networks of allowed clients. The address that counts is the client's, as everywhere in the chain: REMOTE_ADDR
    hosts     names by which allowed clients may address this machine, besides its addresses and `localhost`

    All of these conditions must hold:

    - The client's address is in `networks`.
    - The request was not made by a web page: there is no Origin, and Sec-Fetch-Site is absent or "none", which stands for a user
      who has typed the URL (Fetch Metadata §2.4).
    - The request was not forwarded, unless a trusted proxy names the client: no header says so, and it is not HTTP/1.0, which
      nginx before 1.29.7 speaks to its backends by default.
    - Host is an address, `localhost` or one of `hosts`. Otherwise a web page whose name resolves to this machine could make a
      browser send the request (DNS rebinding).
    - A client with a loopback address has connected to this machine itself: there is no PROXY header, no trusted proxy that names
      the client (its loopback address is another machine's), and Host is a loopback address or name, as there is no other way
      from there to here.

    One case cannot be told from a client on this machine: a proxy on it that forwards bytes, or HTTP/1.1 with a Host of its own,
    and adds nothing. So the gateway's port must not serve anything that clients on other machines must not see.
    Raises ValueError for anything else than a network.
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
        if client not in self._networks or is_from_web_page(environ):
            return False
        loopback = _parse(client).is_loopback
        named_by_proxy = environ.get(PEER_KEY, client) != client
        if loopback and (named_by_proxy or PROXY_HEADER_KEY in environ):
            return False
        if not named_by_proxy and _is_forwarded(environ):
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


def is_from_web_page(environ: WSGIEnvironment) -> bool:
    """Whether a web page has made a browser send this request, according to the headers that browsers add."""
    return "HTTP_ORIGIN" in environ or environ.get("HTTP_SEC_FETCH_SITE", "none") != "none"


def _is_forwarded(environ: WSGIEnvironment) -> bool:
    own = _OWN_CERTIFICATE if environ.get("SSL_CLIENT_VERIFY") == "SUCCESS" else ""
    return environ.get("SERVER_PROTOCOL") == "HTTP/1.0" or any(
        key in FORWARDING_KEYS or (key.startswith("HTTP_X_FORWARDED_") and key != own) for key in environ
    )


def normalize_address(address: str) -> str:
    """An IPv4-mapped IPv6 address (::ffff:192.0.2.1, from an IPv6 socket) as an IPv4 address; any other unchanged."""
    return str(_parse(address)) if address.startswith("::ffff:") else address


def _parse(address: str) -> IPv4Address | IPv6Address:
    parsed = ip_address(address.partition("%")[0])
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _without_port(entry: str) -> str:
    """An entry without the port that some proxies add: 192.0.2.1:5678, [2001:db8::1]:5678 (as in RFC 7239 §6)."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    host, colon, port = entry.partition(":")
    return host if colon and port.isdigit() and "." in host else entry
