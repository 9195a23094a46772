"""Requests from bytes: whatever the pieces they come in, each is answered once and in order."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from rgate.serving.server import Server
from rgate.testing import make_gateway

from ..support.raw_client import RawClient
from ..support.serving import echo, send_apart, serving
from ..support.waiting import eventually


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(echo) as running:
        yield running


@pytest.fixture(scope="module")
def gateway() -> Iterator[Server]:
    """A whole gateway, for the answers that it makes itself."""
    with serving(make_gateway({"routes": [], "backends": []})) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[RawClient]:
    with RawClient(server.url) as connected:
        yield connected


GOOD: dict[str, tuple[bytes, bytes]] = {
    "GET": (b"GET /x?y HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /x?y "),
    "empty lines first": (b"\r\n\r\nGET /x HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /x "),
    "Content-Length": (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", b"POST /x hello"),
    "length 0": (b"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"PUT /x "),
    "GET with a body": (b"GET /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nGET", b"GET /x GET"),
    "chunked": (
        b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;e\r\nllo\r\n0\r\nT: 1\r\n\r\n",
        b"POST /x hello",
    ),
    "body that looks like a request": (
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 28\r\n\r\nGET /y HTTP/1.1\r\nHost: y\r\n\r\n",
        b"POST /x GET /y HTTP/1.1\r\nHost: y\r\n\r\n",
    ),
}  # fmt: skip
AFTER = (b"GET /after HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /after ")


@pytest.mark.parametrize(("request_", "answer"), GOOD.values(), ids=GOOD)
def test_request_and_the_next_one_are_answered(client: RawClient, request_: bytes, answer: bytes) -> None:
    client.send(request_)
    assert client.response().body == answer
    client.send(AFTER[0])
    assert client.response().body == AFTER[1]


@pytest.mark.parametrize(("request_", "answer"), GOOD.values(), ids=GOOD)
def test_request_byte_by_byte_is_answered_the_same(server: Server, client: RawClient, request_: bytes, answer: bytes) -> None:
    whole = request_ + AFTER[0]
    send_apart(server, client, *[whole[at : at + 1] for at in range(len(whole))])
    assert client.response().body == answer
    assert client.response().body == AFTER[1]


@pytest.mark.parametrize(("request_", "answer"), GOOD.values(), ids=GOOD)
def test_request_at_every_split_is_answered_the_same(server: Server, client: RawClient, request_: bytes, answer: bytes) -> None:
    whole = request_ + AFTER[0]
    for at in range(1, len(whole)):
        send_apart(server, client, whole[:at], whole[at:])
        assert client.response().body == answer, f"cut at {at}"
        assert client.response().body == AFTER[1], f"cut at {at}"


def test_requests_pipelined_are_answered_in_order(client: RawClient) -> None:
    client.send(b"".join(request for request, _ in GOOD.values()) * 3)
    assert [client.response().body for _ in range(3 * len(GOOD))] == [answer for _, answer in GOOD.values()] * 3


def test_requests_pipelined_beyond_one_block_are_answered_in_order(client: RawClient) -> None:
    requests = [b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n%b" % (n, b"x" * 1000) for n in range(300)]
    client.send(b"".join(requests))
    for number in range(300):
        assert client.response().body.startswith(b"POST /%d x" % number)


def test_requests_pipelined_beyond_one_block_and_then_the_end_are_answered_and_closed(server: Server, client: RawClient) -> None:
    client.send(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n%b" % (b"x" * 100_000) * 3 + AFTER[0])
    client.half_close()
    assert client.rest().endswith(AFTER[1])
    eventually(lambda: not server.connections, "the end of the stream is seen")


def test_request_head_over_many_blocks_is_read(client: RawClient) -> None:
    headers = b"".join(b"X-%d: %b\r\n" % (n, b"a" * 3_000) for n in range(20))
    client.send(b"GET /x HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
    assert client.response().body == b"GET /x "


REFUSED: dict[str, tuple[bytes, int]] = {
    "length beside coding": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 400),
    "unknown coding": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "space before the colon": (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    "folded line": (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400),
    "bare LF": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "bare LF, then CRLF": (b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
    "bare CR": (b"GET / HTTP/1.1\r\nHost: x\rA: b\r\n\r\n", 400),
    "bare CR first": (b"\rGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "NUL": (b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n", 400),
    "leading space": (b" GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "CONNECT": (b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n", 501),
    "TRACE": (b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", 501),
    "dot segments": (b"GET /a/%2e%2e/b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "unknown expectation": (b"GET / HTTP/1.1\r\nHost: x\r\nExpect: y\r\n\r\n", 417),
    "target too long": (b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "target without end": (b"GET /" + b"a" * 17_000, 414),
    "head too large": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: %b\r\n" % (b"a" * 8_000) * 9 + b"\r\n", 431),
    "head without end": (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 66_000, 431),
    "too many headers": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
}


@pytest.mark.parametrize(("request_", "status"), REFUSED.values(), ids=REFUSED)
def test_request_refused_is_answered_in_the_common_shape_and_the_connection_ends(
    gateway: Server, request_: bytes, status: int
) -> None:
    with RawClient(gateway.url) as client:
        client.send(request_ + AFTER[0])
        response = client.response()
        answer = json.loads(response.body)
        assert answer.keys() == {"status_code", "body", "reason", "request_id"}
        assert response.status == answer["status_code"] == status
        assert response.value("Connection") == "close"
        assert client.is_closed(), "what comes after a refused request must not be answered"


SHORT = {name: vector for name, vector in REFUSED.items() if len(vector[0]) < 1_000}


@pytest.mark.parametrize(("request_", "status"), SHORT.values(), ids=SHORT)
def test_request_refused_byte_by_byte_is_refused_the_same(gateway: Server, request_: bytes, status: int) -> None:
    with RawClient(gateway.url) as client:
        send_apart(gateway, client, *[request_[at : at + 1] for at in range(len(request_))])
        assert client.response().status == status
        assert client.is_closed()


def test_request_refused_behind_a_good_one_comes_second(client: RawClient) -> None:
    client.send(AFTER[0] + b"GET / HTTP/1.1\r\n\r\n")
    assert client.response().body == AFTER[1]
    assert client.rest().startswith(b"HTTP/1.1 ")


def test_request_refused_can_be_read_by_a_client_that_sends_everything_first(gateway: Server) -> None:
    with RawClient(gateway.url) as client:
        client.send(b"POST /x HTTP/1.1\r\n" + b"Host: x\r\n" * 2 + b"Content-Length: 4000000\r\n\r\n", b"x" * 4_000_000)
        assert client.response().status == 400
        assert client.is_closed()


def test_request_head_refused_has_no_body(gateway: Server) -> None:
    with RawClient(gateway.url) as client:
        client.send(b"HEAD / HTTP/1.1\r\n\r\n")
        response = client.response("HEAD")
        assert response.status == 400
        assert client.is_closed(), "an answer to HEAD has no body"


def test_request_refused_early_while_its_head_is_still_coming(gateway: Server) -> None:
    with RawClient(gateway.url) as client:
        client.send(b"GET /\x01 HTTP/1.1\r\n")
        assert client.response().status == 400


def test_request_http_10_closes_unless_asked_to_stay(server: Server) -> None:
    with RawClient(server.url) as client:
        client.send(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        response = client.response()
        assert (response.line, response.value("Connection"), response.body) == ("HTTP/1.1 200 OK", "keep-alive", b"GET /x ")
        client.send(b"GET /y HTTP/1.0\r\n\r\n")
        response = client.response()
        assert (response.value("Connection"), response.body) == ("close", b"GET /y ")
        assert client.is_closed()


def test_request_connection_close_is_obeyed(client: RawClient) -> None:
    client.send(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + AFTER[0])
    response = client.response()
    assert (response.value("Connection"), response.body) == ("close", b"GET /x ")
    assert client.is_closed()


def test_request_connection_stays_silently_in_http_11(client: RawClient) -> None:
    assert client.get("/x").value("Connection") is None


def environ_app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    shown = {key: value for key, value in environ.items() if isinstance(value, (str, bool, tuple))}
    body = json.dumps(shown).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def test_environ_is_what_pep_3333_and_this_server_promise() -> None:
    with serving(environ_app) as server, RawClient(server.url) as client:
        environ = json.loads(client.get("/a%2Fb?q=1", "X-One: 1").body)
        port = client.port
        assert environ.pop("SERVER_PORT") == str(server.port)
        assert re.fullmatch(r"rgate/\S+", environ.pop("SERVER_SOFTWARE"))
        assert len(environ.pop("rgate.target")) == 7
    assert environ == {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a/b",
        "QUERY_STRING": "q=1",
        "RAW_URI": "/a%2Fb?q=1",
        "REQUEST_URI": "/a%2Fb?q=1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "127.0.0.1",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": str(port),
        "HTTP_HOST": "x",
        "HTTP_X_ONE": "1",
        "wsgi.version": [1, 0],
        "wsgi.url_scheme": "http",
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
    }


def test_environ_of_one_request_is_not_that_of_another() -> None:
    seen: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.append(environ)
        environ["HTTP_X_MINE"] = environ["PATH_INFO"] = "edited"
        start_response("200 OK", [])
        return []

    with serving(app) as server, RawClient(server.url) as client:
        for _ in range(2):
            client.get("/x")
    first, second = seen
    assert first is not second
    assert second.keys() == first.keys()
