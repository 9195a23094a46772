"""IPAllowlist: whether a request may come in, by where it comes from."""

from __future__ import annotations

import pytest

from rgate import IPAllowlist
from rgate.http1.client_address import TrustedProxies
from rgate.http1.environ import FIELDS_KEY, PROXY_HEADER_KEY
from rgate.http1.fields import Fields

LOCAL = IPAllowlist(["127.0.0.0/8", "::1"])
PRIVATE = IPAllowlist(["127.0.0.0/8", "10.1.0.0/16"])
PROXIES = TrustedProxies(["127.0.0.1", "10.9.0.0/16"])


def through_proxy(peer: str, **environ: str) -> dict[str, object]:
    """The environ of a request that a trusted proxy has sent, as the server makes it."""
    made: dict[str, object] = {"REMOTE_ADDR": peer, FIELDS_KEY: Fields(), "wsgi.url_scheme": "http", **environ}
    PROXIES.apply(made)
    return made


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_client_in_an_allowed_network_is_admitted(address: str) -> None:
    assert LOCAL({"REMOTE_ADDR": address, "HTTP_HOST": "localhost"})


@pytest.mark.parametrize("address", ["192.0.2.1", "::2", "fe80::1%eth0", "", "unix:", "localhost"])
def test_client_anywhere_else_is_not_admitted(address: str) -> None:
    assert not LOCAL({"REMOTE_ADDR": address})
    assert not LOCAL({})


def test_nobody_is_admitted_by_no_network() -> None:
    assert not IPAllowlist([])({"REMOTE_ADDR": "127.0.0.1"})


FORWARDED = [
    *("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Anything", "X-Forwarded", "X-Real-IP"),
    *("X-Client-IP", "Client-IP", "True-Client-IP", "X-Cluster-Client-IP", "X-Remote-IP", "X-Remote-Addr", "X-Originating-IP"),
    *("X-ProxyUser-Ip", "X-Original-Forwarded-For", "CF-Connecting-IP", "CF-Connecting-IPv6", "Fastly-Client-IP"),
    *("X-Azure-ClientIP", "X-Envoy-External-Address", "X-Original-URL", "X-Original-URI", "X-Rewrite-URL", "X-Original-Host"),
    *("X-Script-Name", "X-Scheme", "X-Url-Scheme", "Front-End-Https", "CDN-Loop", "X-Forwarded-Client-Cert"),
]


@pytest.mark.parametrize("header", FORWARDED)
@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3"])
def test_forwarded_request_of_a_proxy_that_is_not_trusted_is_not_admitted(header: str, address: str) -> None:
    key = "HTTP_" + header.upper().replace("-", "_")
    assert PRIVATE({"REMOTE_ADDR": address})
    assert not PRIVATE({"REMOTE_ADDR": address, key: "127.0.0.1"})


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3"])
def test_request_in_http_1_0_is_one_of_a_proxy(address: str) -> None:
    """nginx speaks it to its backends as it comes, and says nothing else of itself."""
    assert PRIVATE({"REMOTE_ADDR": address, "SERVER_PROTOCOL": "HTTP/1.1"})
    assert not PRIVATE({"REMOTE_ADDR": address, "SERVER_PROTOCOL": "HTTP/1.0"})


def test_client_certificate_that_this_gateway_has_seen_is_no_sign_of_a_proxy() -> None:
    said = {"REMOTE_ADDR": "10.1.2.3", "HTTP_X_FORWARDED_CLIENT_CERT": "Hash=1"}
    assert PRIVATE({**said, "SSL_CLIENT_VERIFY": "SUCCESS"})
    assert not PRIVATE({**said, "SSL_CLIENT_VERIFY": "NONE"})


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_loopback_that_a_proxy_header_names_is_not_admitted(address: str) -> None:
    assert LOCAL({"REMOTE_ADDR": address})
    assert not LOCAL({"REMOTE_ADDR": address, PROXY_HEADER_KEY: True})
    assert PRIVATE({"REMOTE_ADDR": "10.1.2.3", PROXY_HEADER_KEY: True})


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("ORIGIN", "null"),
        ("ORIGIN", "http://localhost"),
        *(("SEC_FETCH_SITE", s) for s in ("same-origin", "same-site", "cross-site", "")),
    ],
)
@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3"])
def test_web_page_is_not_admitted(header: str, said: str, address: str) -> None:
    assert not PRIVATE({"REMOTE_ADDR": address, "HTTP_HOST": "localhost", f"HTTP_{header}": said})
    assert PRIVATE({"REMOTE_ADDR": address, "HTTP_HOST": "localhost", "HTTP_SEC_FETCH_SITE": "none"}), "a typed URL"


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
        IPAllowlist(["localhost"])


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8080", "localhost", "LOCALHOST:8080", "[::1]:8080", "127.8.8.8", "[::ffff:127.0.0.1]", ""]
)
def test_request_from_loopback_for_this_machine_is_admitted(host: str) -> None:
    assert LOCAL({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": host})


@pytest.mark.parametrize(
    "host", ["shop.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "10.1.2.3", "[::2]"]
)
def test_request_from_loopback_for_another_name_is_not_admitted(host: str) -> None:
    """Of a proxy that passes Host on and nothing of itself; or of a web page whose name now resolves to 127.0.0.1."""
    assert LOCAL({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": host}) is False


@pytest.mark.parametrize(
    ("host", "admitted"),
    [("10.1.0.9:8080", True), ("[fd00::1]", True), ("localhost", True), ("Gateway.internal:80", True), ("evil.example", False)],
)
def test_client_of_another_machine_asks_for_an_address_or_one_of_the_hosts(host: str, admitted: bool) -> None:
    """Its browser may show a web page whose name now resolves to this machine."""
    named = IPAllowlist(["10.1.0.0/16"], hosts=["gateway.internal"])
    assert named({"REMOTE_ADDR": "10.1.2.3", "HTTP_HOST": host}) is admitted
    forwarded = {"REMOTE_ADDR": "10.1.2.3", "rgate.peer": "10.9.0.7", "HTTP_X_FORWARDED_FOR": "10.1.2.3", "HTTP_HOST": host}
    assert named(forwarded) is admitted
    if "ateway" in host:
        assert not PRIVATE({"REMOTE_ADDR": "10.1.2.3", "HTTP_HOST": host})
        assert not IPAllowlist(IPAllowlist.LOOPBACK)({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": host})
