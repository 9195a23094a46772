"""The request that a backend gets: the client's, without the fields of the client's own hop."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from rgate.forwarding.forwarded import CDN_LOOP, VIA
from rgate.testing import RawRequest, ScriptedBackend, http_response

from ..http1.test_target import KEPT
from ..support.forwarding import Forwarding, forwarding
from ..support.raw_client import RawClient


@pytest.fixture(scope="module")
def live(backend: ScriptedBackend) -> Iterator[Forwarding]:
    with forwarding(backend) as running:
        yield running


@pytest.fixture
def sent(live: Forwarding, backend: ScriptedBackend) -> Iterator[Callable[[bytes], RawRequest]]:
    """Sends bytes to the gateway; what the backend got for it."""
    with RawClient(live.url) as client:

        def send(request: bytes) -> RawRequest:
            count = len(backend.requests)
            client.send(request)
            response = client.response(request.partition(b" ")[0].decode("latin-1"))
            assert response.status == 200, response.body
            assert len(backend.requests) == count + 1
            return backend.requests[-1]

        yield send


FORWARDED = (
    "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: example.com\r\nX-Forwarded-Port: 80\r\n"
    f"Via: {VIA}\r\n"
).encode()


def get(*headers: str, target: str = "/", method: str = "GET") -> bytes:
    return "".join(f"{line}\r\n" for line in [f"{method} {target} HTTP/1.1", "Host: example.com", *headers, ""]).encode("latin-1")


def own(request: RawRequest) -> list[tuple[str, str]]:
    """The headers without Host and those that the gateway adds."""
    added = ("host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "via")
    return [pair for pair in request.headers if pair[0].lower() not in added]


def test_request_is_passed_on_to_the_byte_with_five_headers_added(sent: Callable[[bytes], RawRequest]) -> None:
    head = b"GET /a%2Fb?q=%31 HTTP/1.1\r\nHost: example.com\r\naCCept:  x \r\nX-A: 1\r\nx-a: 2\r\nE:\r\n"
    assert sent(head + b"\r\n").head == (
        b"GET /a%2Fb?q=%31 HTTP/1.1\r\nHost: example.com\r\naCCept: x\r\nX-A: 1\r\nx-a: 2\r\nE: \r\n" + FORWARDED + b"\r\n"
    )


METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "REPORT", "M-SEARCH", "x!y", "get"]


@pytest.mark.parametrize("method", METHODS)
def test_request_method_is_passed_on(sent: Callable[[bytes], RawRequest], method: str) -> None:
    assert sent(get(method=method)).line == f"{method} / HTTP/1.1"


@pytest.mark.parametrize("target", KEPT.values(), ids=KEPT)
def test_request_target_is_passed_on_byte_for_byte(sent: Callable[[bytes], RawRequest], target: str) -> None:
    assert sent(get(target=target)).line == f"GET {target} HTTP/1.1"


def test_request_target_in_absolute_form_is_passed_on_in_origin_form(sent: Callable[[bytes], RawRequest]) -> None:
    request = sent(get(target="http://real.example:81/x?y"))
    assert request.line == "GET /x?y HTTP/1.1"
    assert request.values("Host") == ["real.example:81"]
    assert request.values("X-Forwarded-Host") == ["real.example:81"]


DROPPED = [
    "Connection: close, X-Foo", "X-Foo: 1", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "TE: deflate",
    "Trailer: X-Sum", "Upgrade: h2c", "HTTP2-Settings: AAA", "Expect: 100-continue", "X_Forwarded_For: evil", "Content_Length: 5",
    "Forwarded: for=evil", "X-Real-IP: evil", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil", "X-Forwarded-Port: 1",
    "X-Forwarded-Prefix: /evil",
]  # fmt: skip


def test_request_headers_of_this_hop_are_not_passed_on(sent: Callable[[bytes], RawRequest]) -> None:
    request = sent(get(*DROPPED, "X-Bar: 2"))
    assert own(request) == [("X-Bar", "2")]
    assert request.head.endswith(FORWARDED + b"\r\n")


@pytest.mark.parametrize("name", ["Host", "Cookie", "Authorization", "Content-Type", "X-Forwarded-For", "Via"])
def test_request_connection_cannot_take_away(sent: Callable[[bytes], RawRequest], name: str) -> None:
    named = sent(get(f"Connection: {name}", "Cookie: a=1", "Authorization: Basic x", "Content-Type: text/plain"))
    assert len(own(named)) == 3
    assert named.head.endswith(FORWARDED + b"\r\n")
    assert named.values("Host") == ["example.com"]


def test_request_forwarded_for_is_appended(sent: Callable[[bytes], RawRequest]) -> None:
    request = sent(get("X-Forwarded-For: 10.0.0.1", "X-Forwarded-For: 10.0.0.2, 10.0.0.3"))
    assert request.values("X-Forwarded-For") == ["10.0.0.1, 10.0.0.2, 10.0.0.3, 127.0.0.1"]


def test_request_forwarded_for_that_is_empty_is_left_out(sent: Callable[[bytes], RawRequest]) -> None:
    assert sent(get("X-Forwarded-For:", "Via:")).head.endswith(FORWARDED + b"\r\n")


def test_request_via_is_appended(sent: Callable[[bytes], RawRequest]) -> None:
    assert sent(get("Via: 1.0 fred, 1.1 p.example (x)", "Via: 1.1 other")).values("Via") == [
        f"1.0 fred, 1.1 p.example (x), 1.1 other, {VIA}"
    ]


def test_request_via_has_the_protocol_that_it_came_in(sent: Callable[[bytes], RawRequest]) -> None:
    """RFC 9110 §7.6.3: received-protocol."""
    old = VIA.replace("1.1 ", "1.0 ")
    stay = "Connection: keep-alive\r\n\r\n"
    assert sent(f"GET / HTTP/1.0\r\nHost: example.com\r\n{stay}".encode()).values("Via") == [old]
    assert sent(get()).values("Via") == [VIA]
    assert sent(f"GET / HTTP/1.0\r\nVia: 1.1 other\r\n{stay}".encode()).values("Via") == [f"1.1 other, {old}"]


LOOPS = {
    "own": VIA, "own, from HTTP/1.0": VIA.replace("1.1 ", "1.0 "),
    "own, last": f"1.1 other, {VIA}", "without a comment": "1.1 rgate", "own, first": f"{VIA} , 1.1 other",
}  # fmt: skip


@pytest.mark.parametrize("via", LOOPS.values(), ids=LOOPS)
def test_request_that_has_been_here_is_a_loop(live: Forwarding, backend: ScriptedBackend, via: str) -> None:
    count = len(backend.requests)
    with RawClient(live.url) as client:
        response = client.get("/", f"Via: {via}")
        assert (response.status, b'"loop"' in response.body) == (508, True)
    assert len(backend.requests) == count


def test_request_without_via_has_cdn_loop_instead(backend: ScriptedBackend) -> None:
    added = FORWARDED.replace(f"Via: {VIA}".encode(), f"CDN-Loop: {CDN_LOOP}".encode())
    with forwarding(backend, via=False) as live, RawClient(live.url) as client:
        for headers in ((), ("Via: 1.1 other",)):
            client.send(get(*headers))
            assert client.response().status == 200
            assert backend.requests[-1].head.endswith(added + b"\r\n"), "nginx does not compress for any Via"
        client.send(get("CDN-Loop: other; x=1"))
        assert client.response().status == 200
        assert backend.requests[-1].values("CDN-Loop") == ["other; x=1", CDN_LOOP]
        for loop in (CDN_LOOP, f"other, {CDN_LOOP};x=1"):
            client.send(get(f"CDN-Loop: {loop}"))
            response = client.response()
            assert (response.status, b'"loop"' in response.body) == (508, True)


def test_request_via_of_another_gateway_of_this_kind_is_no_loop(sent: Callable[[bytes], RawRequest]) -> None:
    assert sent(get("Via: 1.1 rgate (0123abcd)"))


def test_request_cookies_stay_apart_and_whole(sent: Callable[[bytes], RawRequest]) -> None:
    assert own(sent(get("Cookie: a=1; b=2", "Cookie: c=3,4"))) == [("Cookie", "a=1; b=2"), ("Cookie", "c=3,4")]


def test_request_bytes_outside_of_ascii_stay(sent: Callable[[bytes], RawRequest]) -> None:
    assert b"\r\nX-Name: caf\xe9 \xff\r\n" in sent(get("X-Name: caf\xe9 \xff")).head


def test_request_nothing_is_made_up(sent: Callable[[bytes], RawRequest]) -> None:
    assert own(sent(get())) == []


def test_request_of_http_10_becomes_http_11(live: Forwarding, backend: ScriptedBackend) -> None:
    with RawClient(live.url) as client:
        client.send(b"GET /x HTTP/1.0\r\nHost: example.com\r\n\r\n")
        assert client.response().body == b"ok"
    assert backend.requests[-1].line == "GET /x HTTP/1.1"


def test_request_of_http_10_without_host_gets_the_backends(live: Forwarding, backend: ScriptedBackend) -> None:
    with RawClient(live.url) as client:
        client.send(b"GET /x HTTP/1.0\r\n\r\n")
        assert client.response().status == 200
    assert backend.requests[-1].values("Host") == [f"127.0.0.1:{backend.port}"]
    assert backend.requests[-1].values("X-Forwarded-Host") == []


BODIES: dict[str, tuple[bytes, list[tuple[str, str]], bytes]] = {
    "length": (b"Content-Length: 5\r\n\r\nhello", [("Content-Length", "5")], b"hello"),
    "length 0": (b"Content-Length: 0\r\n\r\n", [("Content-Length", "0")], b""),
    "large": (
        b"Content-Length: 300000\r\n\r\n" + b"x" * 300_000, [("Content-Length", "300000")], b"x" * 300_000,
    ),
    "chunked": (
        b"Transfer-Encoding: Chunked\r\n\r\n5;ext=1\r\nhello\r\n0\r\nX-Trailer: 1\r\nHost: evil\r\n\r\n",
        [("Transfer-Encoding", "chunked")],
        b"5\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n",
    ),
    "chunked, empty": (b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [("Content-Length", "0")], b""),
    "with a type": (
        b"Content-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello",
        [("Content-Type", "text/plain"), ("Content-Length", "5")],
        b"hello",
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
@pytest.mark.parametrize(("rest", "headers", "body"), BODIES.values(), ids=BODIES)
def test_request_body_is_passed_on_in_its_framing(
    sent: Callable[[bytes], RawRequest], rest: bytes, headers: list[tuple[str, str]], body: bytes, method: str
) -> None:
    request = sent(method.encode() + b" / HTTP/1.1\r\nHost: example.com\r\n" + rest)
    assert own(request) == headers
    assert request.body == body


def test_request_body_that_is_large_and_chunked_is_passed_on_chunked(live: Forwarding, backend: ScriptedBackend) -> None:
    body = b"".join(b"10000\r\n" + b"x" * 65_536 + b"\r\n" for _ in range(5)) + b"0\r\n\r\n"
    with RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        assert client.response().status == 200
    assert own(backend.requests[-1]) == [("Transfer-Encoding", "chunked")]
    assert backend.requests[-1].body.count(b"x") == 5 * 65_536


def test_request_body_that_is_expected_is_asked_for_and_passed_on(live: Forwarding, backend: ScriptedBackend) -> None:
    with RawClient(live.url) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert client.response().status == 100
        client.send(b"hello")
        assert client.response().status == 200
    assert backend.requests[-1].body == b"hello"


def test_request_reaches_an_endpoint_by_ipv6(backend: ScriptedBackend) -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no ::1")
    heads: list[bytes] = []

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            heads.append(sock.recv(65_536))
            sock.sendall(http_response(b"six"))

    url = f"http://[::1]:{listener.getsockname()[1]}"
    thread = threading.Thread(target=serve)
    thread.start()
    with listener, forwarding(url) as live, RawClient(live.url) as client:
        client.send(b"GET /x HTTP/1.0\r\n\r\n")
        assert client.response().body == b"six"
        thread.join(10)
    assert f"\r\nHost: {url.removeprefix('http://')}\r\n".encode() in heads[0]


# Routes with strip_prefix, endpoints with a base path

STRIPPED = {
    "/api": "/",
    "/api/": "/",
    "/api/x": "/x",
    "/api/a%2Fb?q=%31": "/a%2Fb?q=%31",
    "/api?q": "/?q",
    "/api/x?": "/x?",
    "/api//x": "//x",
    "/%61pi/%7Ex?q": "/~x?q",
    "//api/x%2Fy": "/x%2Fy",
}


@pytest.mark.parametrize(("target", "stripped"), STRIPPED.items())
def test_strip_prefix_takes_away_the_prefix_alone(backend: ScriptedBackend, target: str, stripped: str) -> None:
    with forwarding(backend, route={"path_prefix": "/api", "strip_prefix": True}) as live, RawClient(live.url) as client:
        assert client.get(target).status == 200
    assert backend.requests[-1].line == f"GET {stripped} HTTP/1.1"


def test_strip_prefix_of_the_root_takes_nothing_away(backend: ScriptedBackend) -> None:
    with forwarding(backend, route={"strip_prefix": True}) as live, RawClient(live.url) as client:
        client.get("/x?y")
    assert backend.requests[-1].line == "GET /x?y HTTP/1.1"


def test_base_path_stands_before_every_path(backend: ScriptedBackend) -> None:
    with (
        forwarding(f"{backend.url}/v2/", route={"path_prefix": "/api", "strip_prefix": True}) as live,
        RawClient(live.url) as client,
    ):
        client.get("/api/x%2Fy?z")
        assert backend.requests[-1].line == "GET /v2/x%2Fy?z HTTP/1.1"
        client.get("/api")
        assert backend.requests[-1].line == "GET /v2/ HTTP/1.1"
