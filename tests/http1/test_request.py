"""Request heads: one reading or a refusal."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rgate.errors import (
    BodyTooLarge,
    ExpectationFailed,
    HeadTooLarge,
    NotImplementedByGateway,
    RequestError,
    TargetTooLong,
    VersionNotSupported,
)
from rgate.http1.environ import FIELDS_KEY, TARGET_KEY
from rgate.http1.request import RequestHead, RequestParser

HOST = b"Host: example.com"


def read(*headers: bytes, line: bytes = b"GET /x HTTP/1.1", host: Sequence[bytes] = (HOST,)) -> RequestHead:
    return RequestParser().parse(b"\r\n".join([line, *host, *headers]))


def passed(request: RequestHead) -> list[tuple[str, str]]:
    return [field.pair for field in request.fields if field.name != "host"]


REFUSED: dict[str, tuple[bytes, type[RequestError]]] = {
    # Framing
    "length beside coding": (b"Content-Length: 5\r\nTransfer-Encoding: chunked", RequestError),
    "coding beside length": (b"Transfer-Encoding: chunked\r\nContent-Length: 5", RequestError),
    "two lengths": (b"Content-Length: 5\r\nContent-Length: 6", RequestError),
    "two equal lengths": (b"Content-Length: 5\r\nContent-Length: 5", RequestError),
    "list of lengths": (b"Content-Length: 5, 6", RequestError),
    "list of equal lengths": (b"Content-Length: 5, 5", RequestError),
    "length with plus": (b"Content-Length: +5", RequestError),
    "negative length": (b"Content-Length: -1", RequestError),
    "hex length": (b"Content-Length: 0x5", RequestError),
    "length with underscore": (b"Content-Length: 1_0", RequestError),
    "empty length": (b"Content-Length:", RequestError),
    "length in unicode digits": (b"Content-Length: \xd9\xa5", RequestError),
    "length in superscript latin-1": (b"Content-Length: \xb2", RequestError),
    "length with zeros in front": (b"Content-Length: 005", RequestError),
    "length of two zeros": (b"Content-Length: 00", RequestError),
    "length over 63 bit": (b"Content-Length: 9223372036854775808", RequestError),
    "coding identity": (b"Transfer-Encoding: identity", RequestError),
    "coding chunked, identity": (b"Transfer-Encoding: chunked, identity", RequestError),
    "coding identity, chunked": (b"Transfer-Encoding: identity, chunked", NotImplementedByGateway),
    "coding gzip, chunked": (b"Transfer-Encoding: gzip, chunked", NotImplementedByGateway),
    "coding quoted": (b'Transfer-Encoding: "chunked"', RequestError),
    "coding empty": (b"Transfer-Encoding:", RequestError),
    "coding xchunked": (b"Transfer-Encoding: xchunked", RequestError),
    "coding with parameter": (b"Transfer-Encoding: chunked;q=1", RequestError),
    "coding with comma": (b"Transfer-Encoding: chunked,", RequestError),
    "coding twice": (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", RequestError),
    "coding twice, second one unknown": (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x", RequestError),
    "coding behind a vertical tab": (b"Transfer-Encoding: \x0bchunked", RequestError),
    "coding before a form feed": (b"Transfer-Encoding: chunked\x0c", RequestError),
    "coding before 0x85": (b"Transfer-Encoding: chunked\x85", RequestError),
    "coding behind 0xA0": (b"Transfer-Encoding: \xa0chunked", RequestError),
    "coding with a kelvin sign": (b"Transfer-Encoding: chun\xe2\x84\xaaed", RequestError),
    "coding in a list with something that is not a token": (b"Transfer-Encoding: g zip, chunked", RequestError),
    "two types": (b"Content-Type: text/plain\r\nContent-Type: text/html", RequestError),
    # Lines
    "bare CR in a value": (b"X: a\rb", RequestError),
    "bare CR as line end": (b"X: a\rContent-Length: 5", RequestError),
    "bare LF in a value": (b"X: a\nContent-Length: 5", RequestError),
    "NUL in a value": (b"X: a\x00b", RequestError),
    "folded line": (b"X: a\r\n b", RequestError),
    "folded line by a tab": (b"X: a\r\n\tb", RequestError),
    "space before the colon": (b"Transfer-Encoding : chunked", RequestError),
    "tab before the colon": (b"Transfer-Encoding\t: chunked", RequestError),
    "no colon": (b"nothing", RequestError),
    "empty name": (b": x", RequestError),
    "name that is not a token": (b"X(: x", RequestError),
    # Host
    "two hosts": (b"Host: example.com", RequestError),
    "two different hosts": (b"Host: other.com", RequestError),
    # Expect
    "unknown expectation": (b"Expect: 200-ok", ExpectationFailed),
    "two expectations": (b"Expect: 100-continue\r\nExpect: x", ExpectationFailed),
    "empty expectation": (b"Expect:", ExpectationFailed),
}


@pytest.mark.parametrize(("headers", "error"), REFUSED.values(), ids=REFUSED)
def test_request_with_more_than_one_reading_is_refused(headers: bytes, error: type[RequestError]) -> None:
    with pytest.raises(RequestError) as caught:
        read(headers)
    assert type(caught.value) is error


REFUSED_LINES: dict[str, tuple[bytes, type[RequestError]]] = {
    "folded first header": (b"GET /x HTTP/1.1\r\n Host: example.com", RequestError),
    "empty": (b"", RequestError),
    "no version (HTTP/0.9)": (b"GET /x", RequestError),
    "HTTP/0.9": (b"GET /x HTTP/0.9", VersionNotSupported),
    "HTTP/2.0": (b"GET /x HTTP/2.0", VersionNotSupported),
    "HTTP/3.0": (b"GET /x HTTP/3.0", VersionNotSupported),
    "HTTP/2": (b"PRI * HTTP/2", RequestError),
    "HTTP/2 preface": (b"PRI * HTTP/2.0", VersionNotSupported),
    "HTTP/1": (b"GET /x HTTP/1", RequestError),
    "HTTP/1.": (b"GET /x HTTP/1.", RequestError),
    "HTTP/1.10": (b"GET /x HTTP/1.10", RequestError),
    "HTTP/01.1": (b"GET /x HTTP/01.1", RequestError),
    "http/1.1": (b"GET /x http/1.1", RequestError),
    "HTTP-1.1": (b"GET /x HTTP-1.1", RequestError),
    "HTTP/1.1 and more": (b"GET /x HTTP/1.1 x", RequestError),
    "space at the end": (b"GET /x HTTP/1.1 ", RequestError),
    "space first": (b" GET /x HTTP/1.1", RequestError),
    "two spaces": (b"GET  /x HTTP/1.1", RequestError),
    "two spaces before the version": (b"GET /x  HTTP/1.1", RequestError),
    "tab": (b"GET\t/x HTTP/1.1", RequestError),
    "space in the target": (b"GET /a b HTTP/1.1", RequestError),
    "no target": (b"GET HTTP/1.1", RequestError),
    "no method": (b"/x HTTP/1.1", RequestError),
    "method that is not a token": (b"G(T /x HTTP/1.1", RequestError),
    "method with obs-text": (b"G\xc9T /x HTTP/1.1", RequestError),
    "control byte in the target": (b"GET /\x01 HTTP/1.1", RequestError),
    "NUL in the target": (b"GET /\x00 HTTP/1.1", RequestError),
    "bytes that are not UTF-8 in the target": (b"GET /caf\xe9 HTTP/1.1", RequestError),
    "host above ASCII in the target": (b"GET http://caf\xc3\xa9/ HTTP/1.1", RequestError),
    "byte above ASCII in the method": (b"G\xc3T / HTTP/1.1", RequestError),
    "fragment": (b"GET /x#y HTTP/1.1", RequestError),
    "dot segments": (b"GET /a/../x HTTP/1.1", RequestError),
    "CONNECT": (b"CONNECT example.com:443 HTTP/1.1", NotImplementedByGateway),
    "TRACE": (b"TRACE /x HTTP/1.1", NotImplementedByGateway),
    "asterisk with GET": (b"GET * HTTP/1.1", RequestError),
    "absolute with a user": (b"GET http://user:secret@example.com/ HTTP/1.1", RequestError),
    "absolute with a bad port": (b"GET http://example.com:99999/ HTTP/1.1", RequestError),
    "another scheme": (b"GET ftp://example.com/ HTTP/1.1", RequestError),
    "target over 16 KiB": (b"GET /%b HTTP/1.1" % (b"x" * 16_384), TargetTooLong),
    "line over 16 KiB that is malformed": (b"GET /%b\x01 HTTP/1.1" % (b"x" * 16_384), TargetTooLong),
    "CR in the line": (b"GET /x HTTP/1.1\r", RequestError),
    "LF as line end": (b"GET /x HTTP/1.1\nHost: y", RequestError),
}


@pytest.mark.parametrize(("line", "error"), REFUSED_LINES.values(), ids=REFUSED_LINES)
def test_request_line_outside_the_grammar_is_refused(line: bytes, error: type[RequestError]) -> None:
    with pytest.raises(RequestError) as caught:
        read(line=line)
    assert type(caught.value) is error


@pytest.mark.parametrize("line", [line for line, _ in REFUSED_LINES.values() if b"\r\n" not in line and b"\n" not in line])
def test_request_line_is_judged_alone_as_with_its_headers(line: bytes) -> None:
    with pytest.raises(RequestError):
        RequestParser().check_request_line(line)


def test_check_line_lets_a_good_line_pass() -> None:
    reader = RequestParser()
    reader.check_request_line(b"GET /x HTTP/1.1")
    reader.check_request_line(b"GET /x HTTP/1.1")


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "M-SEARCH", "x!y", "get"]
)
def test_request_method_that_is_a_token_is_read(method: str) -> None:
    request = read(line=f"{method} /x HTTP/1.1".encode())
    assert request.method == request.environ["REQUEST_METHOD"] == method


def test_request_in_full_is_what_wsgi_wants() -> None:
    request = read(
        b"Content-Type: text/plain", b"Content-Length: 5", b"X-Name: caf\xe9", b"Accept: a", b"accept: b",
        line=b"POST /a%2Fb//c?q=%31 HTTP/1.1",
    )  # fmt: skip
    assert request.environ.pop(TARGET_KEY) is request.target
    assert request.environ.pop(FIELDS_KEY) is request.fields
    assert request.environ == {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/a/b//c",
        "QUERY_STRING": "q=%31",
        "RAW_URI": "/a%2Fb//c?q=%31",
        "REQUEST_URI": "/a%2Fb//c?q=%31",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "example.com",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "5",
        "HTTP_X_NAME": "caf\xe9",
        "HTTP_ACCEPT": "a, b",
    }
    assert passed(request) == [("Content-Type", "text/plain"), ("X-Name", "caf\xe9"), ("Accept", "a"), ("accept", "b")]
    assert (request.http_minor, request.keep_alive, request.content_length, request.chunked) == (1, True, 5, False)


def test_request_chunked_is_known_whatever_the_case() -> None:
    request = read(b"transfer-encoding: CHUNKED")
    assert request.chunked
    assert request.content_length is None
    assert request.environ["HTTP_TRANSFER_ENCODING"] == "chunked"
    assert passed(request) == []


def test_request_coding_in_http_10_is_refused() -> None:
    with pytest.raises(RequestError):
        read(b"Transfer-Encoding: chunked", line=b"POST /x HTTP/1.0")


def test_request_version_1_2_counts_as_1_1() -> None:
    assert read(line=b"GET /x HTTP/1.2").http_minor == 1


@pytest.mark.parametrize(
    ("line", "headers", "keep_alive"),
    [
        (b"GET / HTTP/1.1", [], True),
        (b"GET / HTTP/1.1", [b"Connection: close"], False),
        (b"GET / HTTP/1.1", [b"Connection: Keep-Alive, CLOSE"], False),
        (b"GET / HTTP/1.1", [b"Connection: keep-alive", b"Connection: close"], False),
        (b"GET / HTTP/1.1", [b"Connection: x"], True),
        (b"GET / HTTP/1.0", [], False),
        (b"GET / HTTP/1.0", [b"Connection: Keep-Alive"], True),
        (b"GET / HTTP/1.0", [b"Connection: keep-alive, close"], False),
        (b"GET / HTTP/1.0", [b"Connection: x"], False),
    ],
)
def test_request_persistence_is_read(line: bytes, headers: list[bytes], keep_alive: bool) -> None:
    assert read(*headers, line=line).keep_alive is keep_alive


HOP_BY_HOP = [b"Keep-Alive: 5", b"Proxy-Connection: close", b"TE: deflate", b"Trailer: X", b"Upgrade: h2c", b"HTTP2-Settings: x"]


@pytest.mark.parametrize("header", [*HOP_BY_HOP, b"Connection: x", b"X_Forwarded_For: 1", b"a_b: c"])
def test_request_header_of_this_hop_or_with_underscore_is_dropped(header: bytes) -> None:
    request = read(header)
    assert passed(request) == []
    assert not [key for key in request.environ if key.startswith("HTTP_") and key != "HTTP_HOST"]


@pytest.mark.parametrize(("name", "value"), [("TE", "deflate, Trailers"), ("Expect", "100-Continue")])
def test_request_header_of_this_hop_that_the_forwarder_acts_on_is_in_environ_alone(name: str, value: str) -> None:
    request = read(f"{name}: {value}".encode(), f"Connection: {name}, X-Foo".encode(), b"X-Foo: 1")
    assert passed(request) == []
    assert request.environ[f"HTTP_{name.upper()}"] == {"TE": "trailers", "Expect": "100-continue"}[name]
    old = read(f"{name}: {value}".encode(), line=b"GET / HTTP/1.0")
    assert f"HTTP_{name.upper()}" not in old.environ


def test_request_trailers_are_announced_for_a_chunked_body_alone() -> None:
    announced = (b"Trailer: X-Sum, Host", b"Trailer: Content-Length,X-Forwarded-For , X-More")
    request = read(*announced, b"Transfer-Encoding: chunked")
    assert (passed(request), request.environ["HTTP_TRAILER"]) == ([("Trailer", "X-Sum, X-More")], "X-Sum, X-More")
    assert passed(read(*announced, b"Content-Length: 5")) == []
    assert passed(read(b"Trailer: Host", b"Transfer-Encoding: chunked")) == []


TAKES_INTERIM = {
    "nothing": ((), b"GET / HTTP/1.1", (False, True, False)),
    "navigates": ((b"Sec-Fetch-Mode: navigate",), b"GET / HTTP/1.1", (True, True, False)),
    "fetches": ((b"Sec-Fetch-Mode: cors",), b"GET / HTTP/1.1", (False, True, False)),
    "expects": ((b"Expect: 100-continue",), b"PUT / HTTP/1.1", (True, True, False)),
    "HTTP/1.0": ((b"Sec-Fetch-Mode: navigate", b"Expect: 100-continue"), b"GET / HTTP/1.0", (False, False, False)),
}


@pytest.mark.parametrize(("headers", "line", "takes"), TAKES_INTERIM.values(), ids=TAKES_INTERIM)
def test_request_takes_interim_responses_by_what_it_says(
    headers: tuple[bytes, ...], line: bytes, takes: tuple[bool, ...]
) -> None:
    for setting, expected in zip(("auto", "all", "none"), takes, strict=True):
        reader = RequestParser()
        reader.interim_responses = setting
        assert reader.parse(b"\r\n".join([line, b"Host: x", *headers])).takes_interim is expected


def test_request_header_named_by_connection_is_dropped() -> None:
    request = read(b"Connection: close, X-Foo", b"x-foo: 1", b"X-Bar: 2", b"X-FOO: 3", b"Connection: x-baz", b"X-Baz: 4")
    assert passed(request) == [("X-Bar", "2")]
    assert "HTTP_X_FOO" not in request.environ
    assert "HTTP_X_BAZ" not in request.environ


NOT_NOMINATED = {
    "Cookie": "a=b",
    "Authorization": "Basic x",
    "Content-Type": "text/plain",
    "X-Forwarded-For": "1.2.3.4",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "x",
    "X-Real-IP": "1.2.3.4",
    "Forwarded": "for=x",
    "Via": "1.1 x",
}


@pytest.mark.parametrize(("name", "value"), NOT_NOMINATED.items(), ids=NOT_NOMINATED)
def test_request_header_that_connection_cannot_name_stays(name: str, value: str) -> None:
    without = read(f"{name}: {value}".encode())
    named = read(f"Connection: {name}, host, content-length".encode(), f"{name}: {value}".encode())
    assert named.environ.keys() - {FIELDS_KEY} == without.environ.keys() - {FIELDS_KEY}
    assert passed(named) == passed(without)


def test_request_framing_that_connection_names_stays() -> None:
    request = read(b"Connection: content-length, transfer-encoding", b"Content-Length: 5")
    assert request.content_length == 5
    assert read(b"Connection: transfer-encoding", b"Transfer-Encoding: chunked").chunked


@pytest.mark.parametrize("header", [b"Forwarded: for=x", b"X-Forwarded-For: x", b"X-Real-IP: x", b"Via: 1.1 x"])
def test_request_header_about_the_way_is_seen_but_not_passed_on(header: bytes) -> None:
    request = read(header)
    assert passed(request) == []
    assert len(request.environ) == len(read().environ) + 1


def test_request_cookies_are_joined_by_semicolons() -> None:
    request = read(b"Cookie: a=1", b"Cookie: b=2,3", b"Accept: x", b"Cookie: c=4")
    assert request.environ["HTTP_COOKIE"] == "a=1; b=2,3; c=4"
    assert passed(request) == [("Cookie", "a=1"), ("Cookie", "b=2,3"), ("Accept", "x"), ("Cookie", "c=4")]


@pytest.mark.parametrize(
    "host",
    [[], [b"Host:"], [b"Host: a b"], [b"Host: a/b"], [b"Host: u@h"], [b"Host: a, b"], [b"Host: h:x"], [b"Host: x", b"Host: x"]],
)
def test_request_without_exactly_one_valid_host_is_refused(host: list[bytes]) -> None:
    with pytest.raises(RequestError, match="Host"):
        read(host=host)


def test_request_http_10_may_have_no_host() -> None:
    request = read(line=b"GET /x HTTP/1.0", host=[])
    assert "HTTP_HOST" not in request.environ
    assert request.environ["SERVER_PROTOCOL"] == "HTTP/1.0"


def test_request_authority_of_the_target_replaces_host() -> None:
    request = read(b"X: 1", line=b"GET http://real.example:81/x HTTP/1.1", host=[b"Host: evil.example"])
    assert request.environ["HTTP_HOST"] == "real.example:81"
    assert request.environ["RAW_URI"] == "/x"
    assert [field.pair for field in request.fields] == [("Host", "real.example:81"), ("X", "1")]


def test_request_expectation_is_met_in_http_11_only() -> None:
    assert read(b"Expect: 100-Continue").expects_continue
    assert not read(b"Expect: 100-continue", line=b"GET / HTTP/1.0").expects_continue
    assert not read(b"Expect: x", line=b"GET / HTTP/1.0").expects_continue


@pytest.mark.parametrize(
    ("line", "headers", "upgrade"),
    [
        (b"GET / HTTP/1.1", [b"Connection: Upgrade", b"Upgrade: WebSocket"], "websocket"),
        (b"GET / HTTP/1.1", [b"Connection: upgrade, http2-settings", b"Upgrade: h2c", b"Upgrade: x"], "h2c, x"),
        (b"GET / HTTP/1.1", [b"Upgrade: websocket"], ""),
        (b"GET / HTTP/1.1", [b"Connection: keep-alive", b"Upgrade: websocket"], ""),
        (b"GET / HTTP/1.1", [b"Connection: upgrade"], ""),
        (b"GET / HTTP/1.0", [b"Connection: upgrade", b"Upgrade: websocket"], ""),
    ],
)
def test_request_upgrade_is_noticed_when_connection_names_it(line: bytes, headers: list[bytes], upgrade: str) -> None:
    assert read(*headers, line=line).upgrade == upgrade


def test_request_target_above_ascii_is_percent_encoded() -> None:
    head = RequestParser().parse(b"GET /caf\xc3\xa9?q=\xc3\xa9&r=%20 HTTP/1.1\r\nHost: x")
    assert head.target.raw == "/caf%C3%A9?q=%C3%A9&r=%20"
    assert head.environ["PATH_INFO"] == "/caf\xc3\xa9"
    assert head.environ["QUERY_STRING"] == "q=%C3%A9&r=%20"
    assert head.environ["RAW_URI"] == head.environ["REQUEST_URI"] == head.target.raw


def test_request_limits_hold_at_their_edge() -> None:
    reader = RequestParser(max_target_bytes=10, max_headers=3, max_body_bytes=5)
    head = b"POST /%b HTTP/1.1\r\nHost: x\r\nContent-Length: %d" + b"\r\nX: 1"
    assert reader.parse(head % (b"a" * 9, 5)).content_length == 5
    with pytest.raises(TargetTooLong):
        reader.parse(head % (b"a" * 10, 5))
    with pytest.raises(HeadTooLarge):
        reader.parse(head % (b"", 5) + b"\r\nY: 1")
    with pytest.raises(BodyTooLarge):
        reader.parse(head % (b"", 6))


def test_request_target_of_8000_bytes_works() -> None:
    assert len(read(line=b"GET /%b HTTP/1.1" % (b"x" * 7_999)).target.raw) == 8_000


def test_request_200_headers_work_and_201_do_not() -> None:
    assert len(read(*[b"X: %d" % number for number in range(199)]).fields) == 200
    with pytest.raises(HeadTooLarge):
        read(*[b"X: %d" % number for number in range(200)])


def test_request_head_that_comes_again_is_remembered() -> None:
    reader = RequestParser()
    head = b"GET /x HTTP/1.1\r\nHost: x\r\nX: 1"
    reader.parse(head)
    request = reader.parse(head)
    assert reader.head_cache[head] is request


SECRETS = [
    *(b"Authorization: Basic x", b"Cookie: a", b"X-Api-Key: x", b"X-Auth-Token: x", b"Api-Key: x", b"X-Access-Token: x"),
    *(b"X-CSRF-Token: x", b"X-Amz-Security-Token: x", b"X-Vault-Token: x", b"Ocp-Apim-Subscription-Key: x", b"Private-Token: x"),
    *(b"Cf-Access-Jwt-Assertion: x", b"Mcp-Session-Id: x", b"Idempotency-Key: x", b"X-Password: x", b"X-Hub-Signature-256: x"),
    b"Referer: https://x/?a=b&access_token=x",
]


@pytest.mark.parametrize("header", [*SECRETS, b"X: " + b"a" * 1_024])
def test_request_head_with_credentials_or_a_large_one_is_not_kept(header: bytes) -> None:
    reader = RequestParser()
    for _ in range(2):
        reader.parse(b"GET / HTTP/1.1\r\nHost: x\r\n" + header)
    assert not reader.head_cache


@pytest.mark.parametrize(
    "query", [b"access_token=x", b"a=1&api_key=x", b"a&X-Amz-Signature=x", b"code=x", b"a[password]=x", b"a;sid=x"]
)
def test_request_line_with_credentials_is_not_kept(query: bytes) -> None:
    reader = RequestParser()
    for _ in range(3):
        reader.parse(b"GET /reset?%b HTTP/1.1\r\nHost: x" % query)
    assert not reader._line_cache and not reader.head_cache


def test_request_line_with_an_ordinary_query_is_kept() -> None:
    reader = RequestParser()
    for _ in range(2):
        reader.parse(b"GET /search?q=token&page=2&postcode=1&sort=key HTTP/1.1\r\nHost: x\r\nReferer: http://x/?q=a")
    assert reader._line_cache and reader.head_cache


def test_request_reader_memory_is_bounded() -> None:
    reader = RequestParser()
    for number in range(4_000):
        for _ in range(2):
            reader.parse(b"GET /%d HTTP/1.1\r\nHost: x" % number)
        assert 0 < reader.head_cache.bytes <= RequestParser.MAX_HEADS_BYTES
        assert 0 < reader._line_cache.bytes <= RequestParser.MAX_LINES_BYTES
    assert len(reader.head_cache) < 4_000 > len(reader._line_cache)
    reader._line_cache.clear()
    for _ in range(2):
        reader.parse(b"GET /%b HTTP/1.1\r\nHost: x" % (b"a" * RequestParser.MAX_LINE_BYTES))
    assert not reader._line_cache
