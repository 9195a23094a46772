"""AllowedClients: whether a request may come in, by where it comes from."""

from __future__ import annotations

import pytest

from rgate import AllowedClients
from rgate.wire.client import TrustedProxies
from rgate.wire.environ import FIELDS_KEY
from rgate.wire.fields import Fields

LOCAL = AllowedClients(["127.0.0.0/8", "::1"])
PRIVATE = AllowedClients(["127.0.0.0/8", "10.1.0.0/16"])
PROXIES = TrustedProxies(["127.0.0.1", "10.9.0.0/16"])


def through_proxy(peer: str, **environ: str) -> dict[str, object]:
    """The environ of a request that a trusted proxy has sent, as the server makes it."""
    made: dict[str, object] = {"REMOTE_ADDR": peer, FIELDS_KEY: Fields(), "wsgi.url_scheme": "http", **environ}
    PROXIES.identify(made)
    return made


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_client_in_an_allowed_network_is_admitted(address: str) -> None:
    assert LOCAL({"REMOTE_ADDR": address, "HTTP_HOST": "localhost"})


@pytest.mark.parametrize("address", ["192.0.2.1", "::2", "fe80::1%eth0", "", "unix:", "localhost"])
def test_client_anywhere_else_is_not_admitted(address: str) -> None:
    assert not LOCAL({"REMOTE_ADDR": address})
    assert not LOCAL({})


def test_nobody_is_admitted_by_no_network() -> None:
    assert not AllowedClients([])({"REMOTE_ADDR": "127.0.0.1"})


@pytest.mark.parametrize(
    "header", ["X_FORWARDED_FOR", "X_FORWARDED_PROTO", "X_FORWARDED_ANYTHING", "FORWARDED", "VIA", "X_REAL_IP", "TRUE_CLIENT_IP"]
)
def test_forwarded_request_of_a_proxy_that_is_not_trusted_is_not_admitted(header: str) -> None:
    assert not LOCAL({"REMOTE_ADDR": "127.0.0.1", f"HTTP_{header}": "127.0.0.1"})


def test_forwarded_request_of_a_trusted_proxy_is_admitted_by_its_client() -> None:
    assert PRIVATE(through_proxy("127.0.0.1", HTTP_X_FORWARDED_FOR="10.1.2.3"))
    assert not PRIVATE(through_proxy("127.0.0.1", HTTP_X_FORWARDED_FOR="192.0.2.1"))
    assert not PRIVATE(through_proxy("127.0.0.1", HTTP_X_FORWARDED_FOR="10.1.2.3, 192.0.2.1")), "the first entry is anybody's"


@pytest.mark.parametrize("claimed", ["127.0.0.1", "127.0.0.1, 10.9.0.7", "127.8.8.8, 10.9.0.7", "::ffff:127.0.0.1", ""])
def test_loopback_is_never_the_client_of_a_forwarded_request(claimed: str) -> None:
    assert not PRIVATE(through_proxy("127.0.0.1", HTTP_X_FORWARDED_FOR=claimed))


def test_trusted_proxy_that_does_not_name_the_client_is_not_admitted_for_it() -> None:
    assert not PRIVATE(through_proxy("127.0.0.1", HTTP_VIA="1.1 proxy"))


def test_trusted_machine_that_asks_by_itself_is_admitted() -> None:
    assert PRIVATE(through_proxy("127.0.0.1"))


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match="localhost"):
        AllowedClients(["localhost"])


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "LOCALHOST:8080", "[::1]:8080", "10.1.2.3", ""])
def test_request_from_loopback_for_this_machine_is_admitted(host: str) -> None:
    assert LOCAL({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": host})


@pytest.mark.parametrize("host", ["shop.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example"])
def test_request_from_loopback_for_another_name_is_not_admitted(host: str) -> None:
    """Of a proxy that passes Host on and nothing of itself; or of a web page whose name leads to 127.0.0.1 by now."""
    assert LOCAL({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": host}) is False


def test_name_does_not_matter_for_a_client_of_another_machine() -> None:
    assert PRIVATE({"REMOTE_ADDR": "10.1.2.3", "HTTP_HOST": "gateway.internal"})
