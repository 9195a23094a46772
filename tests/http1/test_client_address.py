"""The client's address, from the headers of a trusted proxy."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgate.http1.client_address import TrustedProxies, normalize_address
from rgate.http1.environ import FIELDS_KEY, PEER_KEY
from rgate.http1.fields import ORDINARY, Field, Fields

PROXIES = TrustedProxies(["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"])


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "10.255.255.255", "192.0.2.7", "::ffff:10.1.2.3", "2001:db8::1", "2001:db8::1%e"]
)
def test_trusted_address_in_a_network_is_trusted(address: str) -> None:
    assert address in PROXIES


@pytest.mark.parametrize(
    "address", ["11.0.0.1", "192.0.2.8", "2001:db9::1", "::ffff:11.0.0.1", "::", "", "unix:", "10.0.0", "10.0.0.1/8", "010.0.0.1"]
)
def test_trusted_anything_else_is_not(address: str) -> None:
    assert address not in PROXIES


def test_trusted_nobody_is_by_default() -> None:
    assert not TrustedProxies()
    assert "127.0.0.1" not in TrustedProxies()
    assert PROXIES


CLIENTS: dict[str, tuple[str, str]] = {
    "nothing said": ("", "10.0.0.9"),
    "one entry": ("203.0.113.5", "203.0.113.5"),
    "forged entries stand left of the one that the proxy saw": ("127.0.0.1, 10.0.0.1, 203.0.113.5", "203.0.113.5"),
    "trusted proxies in a row": ("6.6.6.6, 203.0.113.5, 10.0.0.2, 192.0.2.7", "203.0.113.5"),
    "all are trusted": ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
    "IPv6": ("2001:db9::5, 2001:db8::1", "2001:db9::5"),
    "IPv6 in brackets with a port": ("[2001:db9::5]:443", "2001:db9::5"),
    "IPv6 in brackets": ("[2001:db9::5]", "2001:db9::5"),
    "IPv4 with a port": ("203.0.113.5:5678", "203.0.113.5"),
    "IPv4 in IPv6": ("::ffff:203.0.113.5", "203.0.113.5"),
    "no spaces": ("203.0.113.5,10.0.0.2", "203.0.113.5"),
    "tabs": ("203.0.113.5,\t10.0.0.2 ", "203.0.113.5"),
    "an entry that is not an address hides those left of it": ("203.0.113.5, unknown", "10.0.0.9"),
    "the same between proxies": ("203.0.113.5, _hidden, 10.0.0.2", "10.0.0.2"),
    "empty entry": ("203.0.113.5, , 10.0.0.2", "10.0.0.2"),
    "an address with leading zeros is not one": ("010.0.0.1", "10.0.0.9"),
    "name": ("evil.example", "10.0.0.9"),
}


@pytest.mark.parametrize(("said", "client"), CLIENTS.values(), ids=CLIENTS)
def test_client_is_the_last_address_that_is_not_trusted(said: str, client: str) -> None:
    assert PROXIES.client("10.0.0.9", said) == client


def test_client_of_an_endless_list_of_trusted_proxies_is_found_soon() -> None:
    assert PROXIES.client("10.0.0.9", "203.0.113.5," + "10.0.0.1," * 10_000 + "10.0.0.2") == "10.0.0.1"


_addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6), st.sampled_from([ip_address("10.0.0.2"), ip_address("::1")]))
_entries = st.one_of(_addresses, st.text("0123456789.: []x\t", max_size=12))


@given(st.lists(_entries, max_size=6))
def test_client_is_always_an_address_that_was_said_or_the_peer(entries: list[object]) -> None:
    """Whether an entry stands for an address is for the other tests; here none is made up."""
    client = ip_address(PROXIES.client("10.0.0.9", ",".join(map(str, entries))))
    said = {entry for entry in entries if not isinstance(entry, str)}
    said |= {mapped for entry in said if (mapped := getattr(entry, "ipv4_mapped", None))}
    said |= {address for entry in entries if isinstance(entry, str) for address in _written_in(entry)}
    assert client in said | {ip_address("10.0.0.9")}


def _written_in(entry: str) -> list[IPv4Address | IPv6Address]:
    """Every address that can be read somewhere in a text."""
    found = []
    for begin, end in combinations(range(len(entry) + 1), 2):
        with suppress(ValueError):
            found.append(ip_address(entry[begin:end]))
    return found


def environ(**said: str) -> dict[str, Any]:
    fields = [Field(name.replace("_", "-"), value) for name, value in said.items()]
    passed = Fields((f for f in fields if f.kind == ORDINARY), (f for f in fields if f.kind != ORDINARY))
    keys = {field.key: field.value for field in fields}
    return {"REMOTE_ADDR": "10.0.0.9", "REMOTE_PORT": "1234", "wsgi.url_scheme": "http", FIELDS_KEY: passed, **keys}


def test_identify_believes_address_and_scheme() -> None:
    made = environ(X_Forwarded_For="6.6.6.6, 203.0.113.5", X_Forwarded_Proto="HTTPS")
    PROXIES.apply(made)
    assert (made["REMOTE_ADDR"], made[PEER_KEY], made["wsgi.url_scheme"]) == ("203.0.113.5", "10.0.0.9", "https")
    assert "REMOTE_PORT" not in made, "the port is the proxy's, not the client's"


def test_identify_without_a_word_leaves_the_peer() -> None:
    made = environ(Accept="x")
    PROXIES.apply(made)
    assert (made["REMOTE_ADDR"], made[PEER_KEY], made["REMOTE_PORT"]) == ("10.0.0.9", "10.0.0.9", "1234")


@pytest.mark.parametrize(
    ("said", "scheme"), [("https, http", "http"), ("http,https", "https"), ("wss", "http"), ("", "http"), ("javascript", "http")]
)
def test_identify_takes_the_scheme_that_the_nearest_proxy_saw(said: str, scheme: str) -> None:
    made = environ(X_Forwarded_Proto=said)
    PROXIES.apply(made)
    assert made["wsgi.url_scheme"] == scheme


def test_identify_passes_on_what_only_a_proxy_may_say_and_changes_no_shared_list() -> None:
    made = environ(Accept="x", X_Forwarded_User="me", X_Real_IP="203.0.113.5", X_Forwarded_Proto="https")
    shared = made[FIELDS_KEY]
    PROXIES.apply(made)
    assert [field.name for field in made[FIELDS_KEY]] == ["accept", "x-forwarded-user", "x-real-ip"]
    assert [field.name for field in shared] == ["accept"], "heads are shared by requests that are the same"


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("::1", "::1"),
        ("::ffff:cb00:7105", "203.0.113.5"),
        ("", ""),
    ],
)
def test_plain_address_is_as_people_write_it(address: str, plain: str) -> None:
    assert normalize_address(address) == plain
