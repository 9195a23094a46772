"""The PROXY protocol on a listener: the proxy names the client, and no other peer can."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from rgate.testing import ScriptedBackend, http_response

from ..support.forwarding import Forwarding, forwarding
from ..support.raw_client import RawClient
from ..support.serving import send_apart
from ..support.tls_client import TLS, MemoryClient

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def binary(source: str, destination: str, command: int = 0x21) -> bytes:
    body = ip_address(source).packed + ip_address(destination).packed + struct.pack("!HH", 5678, 443)
    return SIGNATURE + struct.pack("!BBH", command, 0x21 if ":" in source else 0x11, len(body)) + body


HEADERS: dict[str, tuple[bytes, str]] = {
    "v1": (b"PROXY TCP4 203.0.113.5 192.0.2.1 5678 443\r\n", "203.0.113.5"),
    "v1, IPv6": (b"PROXY TCP6 2001:db8::5 2001:db8::1 5678 443\r\n", "2001:db8::5"),
    "v1, unknown": (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    "v2": (binary("203.0.113.5", "192.0.2.1"), "203.0.113.5"),
    "v2, IPv6": (binary("2001:db8::5", "::1"), "2001:db8::5"),
    "v2, IPv4 in IPv6": (binary("::ffff:203.0.113.5", "::1"), "203.0.113.5"),
    "v2, local": (binary("203.0.113.5", "192.0.2.1", 0x20), "127.0.0.1"),
    "v2, unix": (SIGNATURE + struct.pack("!BBH", 0x21, 0x31, 216) + bytes(216), "127.0.0.1"),
}


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    with ScriptedBackend(http_response(b"ok")) as running:
        yield running


@pytest.fixture
def live(backend: ScriptedBackend) -> Iterator[Forwarding]:
    with forwarding(backend, proxy_protocol=True) as running:
        yield running


@pytest.mark.parametrize(("header", "client"), HEADERS.values(), ids=HEADERS)
def test_connection_announced_is_the_clients(live: Forwarding, backend: ScriptedBackend, header: bytes, client: str) -> None:
    with RawClient(live.url) as raw:
        raw.send(header + GET + GET)
        assert [raw.response().body for _ in range(2)] == [b"ok", b"ok"], "the header is for the connection, not for a request"
    assert [request.values("X-Forwarded-For") for request in backend.requests] == [[client], [client]]


@pytest.mark.parametrize(("header", "client"), HEADERS.values(), ids=HEADERS)
def test_connection_announced_byte_by_byte_is_the_same(
    live: Forwarding, backend: ScriptedBackend, header: bytes, client: str
) -> None:
    whole = header + GET
    with RawClient(live.url) as raw:
        raw.send(*[whole[at : at + 1] for at in range(len(whole))])
        assert raw.response().body == b"ok"
    assert backend.requests[-1].values("X-Forwarded-For") == [client]


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_connection_announced_at_every_split_is_the_same(live: Forwarding, backend: ScriptedBackend, name: str) -> None:
    header, client = HEADERS[name]
    whole = header + GET
    for at in range(1, len(whole)):
        with RawClient(live.url) as raw:
            if at > len(header):
                send_apart(live.server, raw, whole[:at])
                raw.send(whole[at:])
            else:
                raw.send(whole[:at], whole[at:])
            assert raw.response().body == b"ok", f"cut at {at}"
    assert {request.values("X-Forwarded-For")[0] for request in backend.requests} == {client}


@pytest.mark.parametrize(
    "garbage", [GET, b"\x16\x03\x01", b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1 \r\n" + GET, SIGNATURE + b"\x31\x11\0\0"]
)
def test_connection_that_is_not_announced_is_closed_without_a_word(
    live: Forwarding, backend: ScriptedBackend, garbage: bytes
) -> None:
    with RawClient(live.url) as raw:
        raw.send(garbage)
        assert raw.is_closed()
    assert not backend.requests


def test_header_twice_is_no_request(live: Forwarding, backend: ScriptedBackend) -> None:
    with RawClient(live.url) as raw:
        raw.send(HEADERS["v1"][0] * 2 + GET)
        assert raw.response().status == 400
    assert not backend.requests


def test_header_between_requests_is_no_request(live: Forwarding, backend: ScriptedBackend) -> None:
    """A client behind the proxy cannot say that it is another one."""
    with RawClient(live.url) as raw:
        raw.send(HEADERS["v1"][0] + GET)
        assert raw.response().body == b"ok"
        raw.send(b"PROXY TCP4 127.0.0.1 192.0.2.1 5678 443\r\n" + GET)
        assert raw.response().status == 400
    assert len(backend.requests) == 1


def test_header_from_a_peer_that_is_not_trusted_is_no_request(backend: ScriptedBackend) -> None:
    with forwarding(backend, proxy_protocol=True, trusted_proxies=["10.0.0.0/8"]) as live:
        with RawClient(live.url) as raw:
            raw.send(HEADERS["v1"][0] + GET)
            assert raw.response().status == 400
        with RawClient(live.url) as raw:
            assert raw.get("/").body == b"ok", "a peer that is not a proxy speaks for itself"
    assert [request.values("X-Forwarded-For") for request in backend.requests] == [["127.0.0.1"]]


def test_header_from_a_trusted_peer_is_believed_and_its_client_is_not(backend: ScriptedBackend) -> None:
    with forwarding(backend, proxy_protocol=True, trusted_proxies=["127.0.0.1"]) as live, RawClient(live.url) as raw:
        raw.send(HEADERS["v1"][0] + GET.replace(b"Host: x\r\n", b"Host: x\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 6.6.6.6\r\n"))
        assert raw.response().body == b"ok"
    (request,) = backend.requests
    assert request.values("X-Forwarded-Proto") == ["http"], "the client is not trusted because its proxy is"
    assert request.values("X-Real-IP") == []


def test_trusted_proxy_behind_another_one_is_believed(backend: ScriptedBackend) -> None:
    trusted = ["127.0.0.1", "203.0.113.5"]
    with forwarding(backend, proxy_protocol=True, trusted_proxies=trusted) as live, RawClient(live.url) as raw:
        raw.send(HEADERS["v1"][0] + GET.replace(b"Host: x\r\n", b"Host: x\r\nX-Forwarded-Proto: https\r\n"))
        assert raw.response().body == b"ok"
    assert backend.requests[0].values("X-Forwarded-Proto") == ["https"]


def test_header_that_is_late_ends_the_connection_without_a_word(backend: ScriptedBackend) -> None:
    with forwarding(backend, proxy_protocol=True, head_seconds=0.2) as live:
        for begun in (b"", b"PROXY TCP4 1"):
            with RawClient(live.url) as raw:
                if begun:
                    raw.send(begun)
                assert raw.is_closed()


def test_request_after_a_header_that_is_late_is_408(backend: ScriptedBackend) -> None:
    with forwarding(backend, proxy_protocol=True, head_seconds=0.2) as live, RawClient(live.url) as raw:
        raw.send(HEADERS["v1"][0] + b"GET / HT")
        assert raw.response().status == 408


def test_client_that_half_closes_within_its_header_is_forgotten_at_once(live: Forwarding) -> None:
    with RawClient(live.url) as raw:
        raw.send(b"PROXY TCP4 1")
        raw.half_close()
        assert raw.is_closed()


def test_client_that_leaves_within_its_header_is_forgotten(live: Forwarding) -> None:
    with RawClient(live.url) as raw:
        raw.send(b"PROXY TCP4 1")
        raw.half_close()
        raw.reset()
    with RawClient(live.url) as raw:
        raw.send(HEADERS["v1"][0] + GET)
        assert raw.response().body == b"ok"


@pytest.mark.parametrize("pause", [False, True], ids=["at once", "apart"])
def test_header_before_a_tls_handshake_is_read(backend: ScriptedBackend, pause: bool) -> None:
    with forwarding(backend, proxy_protocol=True, **TLS) as live, RawClient(live.url) as raw:
        client = MemoryClient()
        header, hello = HEADERS["v2"][0], client.to_send()
        raw.send(header, hello) if pause else raw.send(header + hello)
        client.take(raw.sock.recv(65_536))
        client.shake_hands_over(raw.sock)
        client.tls.write(GET)
        raw.send(client.to_send())
        assert client.read_over(raw.sock).startswith(b"HTTP/1.1 200 OK\r\n")
    (request,) = backend.requests
    assert (request.values("X-Forwarded-For"), request.values("X-Forwarded-Proto")) == (["203.0.113.5"], ["https"])
