"""Fixed endpoints: which URLs are addresses, what is said of the others, and that they end up in the table."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgate import Address, Backend, Config
from rgate.discovery import EndpointTable
from rgate.plugins.static_endpoints import StaticEndpointsOptions, parse_address, rgate_check_config, rgate_discovery_sources


def config(*endpoints: str | dict[str, Any]) -> Config:
    options = StaticEndpointsOptions.model_validate({"endpoints": endpoints})
    legacy = Backend("legacy", options={"static_endpoints": options})
    return Config(backends=(Backend("other", (("app", "other"),)), legacy))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:9000", Address("http", "127.0.0.1", 9000)),
        ("http://127.0.0.1", Address("http", "127.0.0.1", 80)),
        ("https://127.0.0.1", Address("https", "127.0.0.1", 443)),
        ("https://host:8443/", Address("https", "host", 8443)),
        ("http://host:", Address("http", "host", 80)),
        ("HTTP://Host.Example.", Address("http", "host.example.", 80)),
        ("http://my_service-1:1", Address("http", "my_service-1", 1)),
        ("http://host:65535/v2", Address("http", "host", 65_535, "/v2")),
        ("http://host/v2/", Address("http", "host", 80, "/v2")),
        ("http://host/a/b%20c;x=1,~!$&'()*+@:/", Address("http", "host", 80, "/a/b%20c;x=1,~!$&'()*+@:")),
        ("http://host/A/%2f", Address("http", "host", 80, "/A/%2f")),
        ("http://[::1]:9000", Address("http", "::1", 9000)),
        ("https://[2001:DB8::7]/v2", Address("https", "2001:db8::7", 443, "/v2")),
    ],
)
def test_url_that_is_an_address_is_read(url: str, address: Address) -> None:
    assert parse_address(url) == address


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "does not begin with http:// or https:// and a host"),
        ("127.0.0.1:9000", "does not begin with http:// or https://"),
        ("localhost", "does not begin with http:// or https://"),
        ("//host", "does not begin with http:// or https://"),
        ("ftp://host", "does not begin with http:// or https://"),
        ("http:/host", "does not begin with http:// or https://"),
        ("http://", "does not begin with http:// or https:// and a host"),
        ("http:///path", "does not begin with http:// or https:// and a host"),
        ("http://:80", "has no valid host"),
        ("http://host:0", "has port 0; write one from 1 to 65535"),
        ("http://host:65536", "is no URL; write one like"),
        ("http://host:http", "is no URL"),
        ("http://host:+80", "is no URL"),
        ("http://host:8_0", "is no URL"),
        ("http://host:٨٠", "is no URL"),
        ("http://[::1", "is no URL"),
        ("http://[::1]x", ""),
        ("http://::1", "is no URL"),
        ("http://[127.0.0.1]", "is no URL"),
        ("http://[fe80::1%25eth0]", "has no valid host"),
        ("http://[v1.x]", "has no valid host"),
        ("http://256.1.1.1", "has no valid host"),
        ("http://127.1", "has no valid host"),
        ("http://-host", "has no valid host"),
        ("http://a..b", "has no valid host"),
        ("http://hö.example", "has no valid host; write an ASCII name"),
        (f"http://{'a' * 64}", "has no valid host"),
        (f"http://{'.'.join(['abcdefghi'] * 26)}", "has no valid host"),
        ("http://user@host", "carries a user name; leave out what is before the @"),
        ("http://user:pw@host", "carries a user name"),
        ("http://host?", "carries a query or fragment"),
        ("http://host/a?b=c", "carries a query or fragment; end it with the path"),
        ("http://host#", "carries a query or fragment"),
        ("http://host/ü", "has a path with characters or dot segments that cannot be sent"),
        ("http://host/%2", "has a path with characters or dot segments"),
        ("http://host/a|b", "has a path with characters or dot segments"),
        ("http://host/a\\b", "has a path with characters or dot segments"),
        ("http://host/../a", "has a path with characters or dot segments"),
        ("http://host/a/%2E%2e", "has a path with characters or dot segments"),
        ("http://host/.", "has a path with characters or dot segments"),
        (" http://host", "contains spaces or control characters"),
        ("http://host/a b", "contains spaces or control characters"),
        ("http://ho\tst", "contains spaces or control characters"),
        ("http://host/\r\nX: y", "contains spaces or control characters"),
        ("http://host\x00", "contains spaces or control characters"),
    ],
)
def test_url_that_is_none_is_a_problem_at_its_place_with_the_way_out(url: str, message: str) -> None:
    (problem,) = rgate_check_config(config("http://fine:1", url))
    assert problem.path == ("backends", 1, "endpoints", 1)
    assert message in problem.message
    assert repr(url) in problem.message
    assert "; " in problem.message, "the way out is missing"


def test_every_problem_is_found_at_once() -> None:
    problems = list(rgate_check_config(config("a", "http://fine:1", "http://b:0", "http://c?")))
    assert [problem.path[-1] for problem in problems] == [0, 2, 3]


def test_address_that_stands_twice_is_a_problem() -> None:
    (problem,) = rgate_check_config(config("http://host", "http://other", "HTTP://Host:80/"))
    assert problem.path == ("backends", 1, "endpoints", 2)
    assert problem.message == "HTTP://Host:80/ is endpoints[0] already; leave one out"


def test_addresses_become_endpoints_of_their_backend() -> None:
    source = rgate_discovery_sources(config("http://b:1", "https://a/v2"))
    assert source is not None
    table = EndpointTable([Backend("other"), Backend("legacy")], [source])
    table.refresh()
    endpoints = table.snapshot.endpoints
    assert [(e.id, e.name, str(e.address)) for e in endpoints["legacy"]] == [
        ("http://b:1",) * 3,
        ("https://a:443/v2",) * 3,
    ]
    assert endpoints["other"] == ()


def test_config_without_fixed_endpoints_has_no_source() -> None:
    assert rgate_discovery_sources(Config.model_validate({"backends": [{"name": "b", "match_labels": ["a=b"]}]})) is None


@given(st.text() | st.text().map("http://{}".format) | st.text("http://[]:%./?#@\\ a1é\x00\n", max_size=30))
def test_any_text_is_an_address_or_a_problem(url: str) -> None:
    try:
        address = parse_address(url)
    except ValueError as error:
        assert repr(url) in str(error)
    else:
        assert parse_address(str(address)) == address, "what is shown must mean the same"
        assert str(address).isascii()
        assert str(address).isprintable()


def test_endpoint_with_a_weight_has_it_in_the_table() -> None:
    source = rgate_discovery_sources(config("http://a", {"url": "http://b", "weight": 3}, {"url": "http://c", "weight": 0}))
    assert source is not None
    table = EndpointTable([Backend("legacy")], [source])
    table.refresh()
    assert {e.name: e.weight for e in table.snapshot.endpoints["legacy"]} == {
        "http://a:80": 1,
        "http://b:80": 3,
        "http://c:80": 0,
    }


def test_address_that_is_none_is_found_in_either_form() -> None:
    read = config("http://a", {"url": "nonsense"}, {"url": "http://a"})
    assert [str(problem).split(":")[0] for problem in rgate_check_config(read)] == [
        "backends[1].endpoints[1].url",
        "backends[1].endpoints[2].url",
    ]
