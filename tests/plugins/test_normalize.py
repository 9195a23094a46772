"""normalize: headers of every response, and the envelope around JSON and text."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgate import ConnectionRefused, Middleware, UpstreamTruncated
from rgate.plugins import normalize
from rgate.testing import assert_error, client, make_environ, make_exchange, make_gateway, respond_with, running_gateway

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from werkzeug.test import TestResponse

JSON, TEXT = ("Content-Type", "application/json"), ("Content-Type", "text/plain")
ENVELOPE = normalize.NormalizeOptions(format="envelope")
LIMIT = normalize.NormalizeOptions(format="envelope", max_body_bytes=10)


class Body:
    """A body that knows how far it has been read, and whether it has been closed."""

    def __init__(self, *blocks: bytes, error: Exception | None = None) -> None:
        self.blocks = list(blocks)
        self.read = self.closed = 0
        self.error = error

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self.read < len(self.blocks):
            self.read += 1
            return self.blocks[self.read - 1]
        if self.error:
            raise self.error
        raise StopIteration

    def close(self) -> None:
        self.closed += 1


@cache  # composing a gateway takes a while, and this one has no state
def middleware() -> Middleware:
    return normalize.rgate_middlewares(make_gateway())


class Start:
    """A start_response that remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[tuple[str, str]], Any]] = []

    def __call__(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        self.calls.append((status, headers, exc_info))
        return lambda _: None


def wrapped(inner: WSGIApplication, options: normalize.NormalizeOptions | None = ENVELOPE) -> WSGIApplication:
    return middleware().wrap(inner, options)


def answer(
    body: bytes | Iterable[bytes],
    *headers: tuple[str, str],
    status: str = "200 OK",
    options: normalize.NormalizeOptions | None = ENVELOPE,
    method: str = "GET",
) -> TestResponse:
    return client(wrapped(respond_with(body, status, headers), options), make_exchange()).open("/", method=method)


# Headers


@pytest.mark.parametrize("options", [None, ENVELOPE, normalize.NormalizeOptions()], ids=["none", "envelope", "passthrough"])
def test_headers_hop_by_hop_ones_are_taken_out(options: Any) -> None:
    given = [
        ("Connection", "close, X-A"),
        ("Keep-Alive", "3"),
        ("Transfer-Encoding", "chunked"),
        ("UPGRADE", "h2c"),
        ("X-A", "1"),
    ]
    assert [*answer(b"", *given, options=options).headers] == [("X-A", "1"), ("Content-Length", "0")]


def test_headers_single_valued_one_is_sent_once_and_others_stay() -> None:
    given = [
        ("content-type", "a/b"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("Content-Type", "c/d"),
        ("Via", "1.1 x"),
        ("Via", "1.1 y"),
    ]
    assert [*answer(b"", *given, options=None).headers] == [*given[1:], ("Content-Length", "0")]


def test_headers_with_nothing_to_do_are_the_same_list() -> None:
    headers = [("Date", "x"), ("Set-Cookie", "a"), ("Set-Cookie", "b")]
    assert normalize.clean("200 OK", headers) is headers


def test_headers_of_a_switch_of_protocols_stay() -> None:
    headers = [("Connection", "Upgrade"), ("Upgrade", "websocket")]
    assert normalize.clean("101 Switching Protocols", headers) == headers


# The envelope


@pytest.mark.parametrize("content_type", ["application/json", "APPLICATION/JSON; charset=utf-8", "application/problem+json"])
def test_envelope_json_is_spliced_byte_for_byte(content_type: str) -> None:
    body = b' \r\n{"b": 1.10, "a": 12345678901234567890123, "b":\t1E400, "x": "\xc3\xbc \\u00fc"}\n'
    response = answer(body, ("Content-Type", content_type), status="418 I'm a teapot")
    assert response.data == b'{"status_code": 418, "body": ' + body.strip() + b"}"
    assert (response.status, response.headers["Content-Type"]) == ("418 I'm a teapot", "application/json")
    assert response.headers["Content-Length"] == str(len(response.data))


def test_envelope_number_of_ten_thousand_digits_stays() -> None:
    body = b"1" * 10_000
    assert answer(body, JSON).data == b'{"status_code": 200, "body": ' + body + b"}"


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        ("text/plain", b'say "hello"\n', 'say "hello"\n'),
        ("text/html; charset=iso-8859-1", b"Gr\xfc\xdfe", "Grüße"),
        ("text/plain; charset=UTF-16", "Grüße".encode("utf-16"), "Grüße"),
        ('text/plain; charset="utf-8"', "Grüße".encode(), "Grüße"),
        ("text/plain", "Grüße".encode(), "Grüße"),
        ("text/plain", b"Gr\xfc\xdfe", "Grüße"),
        ("text/plain; charset=utf-8", b"\xff\xfe", "ÿþ"),
        ("text/plain; charset=none-such", "ü".encode(), "ü"),
        ("text/plain; charset=base64", b"abc", "abc"),
        ("text/plain; charset=unicode_escape", b"\\ud800", "\\ud800"),
        ("text/plain; charset=punycode", b"a" * 1_000 + b"-" + b"a" * 1_000, "a" * 1_000 + "-" + "a" * 1_000),
        ("text/plain; charset=utf-7", b"+2AA-", "+2AA-"),
        ("text/plain", b"\xef\xbb\xbfBOM", "BOM"),
        ("text/plain", b"", ""),
        ("application/json", b"", ""),
        ("application/json", b"not json", "not json"),
        ("application/json", b"{'a': 1}", "{'a': 1}"),
        ("application/json", b'{"a": NaN}', '{"a": NaN}'),
        ("application/json", b"[Infinity, -Infinity]", "[Infinity, -Infinity]"),
        ("application/json", b'"tab\tin it"', '"tab\tin it"'),
        ("application/json", b"{} {}", "{} {}"),
        ("application/json", b"\xef\xbb\xbf\xef\xbb\xbf{}", "\ufeff{}"),
        ("application/json; charset=utf-16", "[1]".encode("utf-16"), "[1]"),
        ("application/json; charset=latin-1", b'["\xfc"]', '["ü"]'),
        ("application/json", b"[" * 100_000, "[" * 100_000),
        ("application/json", b"[" * 100_000 + b"]" * 100_000, "[" * 100_000 + "]" * 100_000),
    ],
)
def test_envelope_text_and_broken_json_become_a_string(content_type: str, body: bytes, text: str) -> None:
    response = answer(body, ("Content-Type", content_type))
    assert json.loads(response.data) == {"status_code": 200, "body": text}


def test_envelope_json_after_a_byte_order_mark_is_json() -> None:
    assert answer(b"\xef\xbb\xbf[1]", JSON).data == b'{"status_code": 200, "body": [1]}'


@settings(deadline=None)
@given(st.binary(), st.sampled_from(["application/json", "text/plain", "text/x; charset=utf-16", "a/b+json; charset=utf-7"]))
def test_envelope_whatever_comes_is_valid_json_in_utf8(body: bytes, content_type: str) -> None:
    answered = json.loads(answer(body, ("Content-Type", content_type)).data.decode("utf-8"))
    assert answered.keys() == {"status_code", "body"}


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(LEAVES, st.lists, max_leaves=6)


@settings(deadline=None)
@given(st.dictionaries(st.text(), VALUES, max_size=4), st.booleans())
def test_envelope_any_json_value_stays_itself(value: object, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    assert json.loads(answer(body, JSON).data)["body"] == value


def test_envelope_headers_that_describe_the_old_body_are_corrected() -> None:
    given = [
        JSON,
        ("ETag", '"abc"'),
        ("Accept-Ranges", "bytes"),
        ("Content-MD5", "x"),
        ("Digest", "y"),
        ("Content-Digest", "z"),
        ("Repr-Digest", "z"),
        ("Server", "backend"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
    ]
    assert [*answer(b"[]", *given).headers] == [
        ("ETag", 'W/"abc"'),
        ("Server", "backend"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("Content-Type", "application/json"),
        ("Content-Length", "32"),
    ]


def test_envelope_weak_etag_stays() -> None:
    assert answer(b"[]", JSON, ("ETag", 'W/"abc"')).headers["ETag"] == 'W/"abc"'


def test_envelope_head_says_what_get_would_but_no_length() -> None:
    response = answer(b"", TEXT, ("ETag", '"abc"'), method="HEAD")
    assert [*response.headers] == [("ETag", 'W/"abc"'), ("Content-Type", "application/json")]
    assert response.data == b""


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Content-Type", "image/png")],
        [("Content-Type", "application/octet-stream")],
        [("Content-Type", "text/event-stream; charset=utf-8")],
        [("Content-Type", "application/x-ndjson")],
        [("Content-Type", "application/stream+json")],
        [JSON, ("Content-Encoding", "gzip")],
        [JSON, ("Content-Disposition", 'Attachment; filename="a.json"')],
        [JSON, ("Cache-Control", "max-age=3, No-Transform")],
        [JSON, ("X-Accel-Buffering", "no")],
    ],
    ids=str,
)
def test_passes_through_what_is_none_of_its_kind(headers: list[tuple[str, str]]) -> None:
    response = answer(b"[1]", *headers, ("ETag", '"abc"'))
    assert response.data == b"[1]"
    assert [*response.headers] == [*headers, ("ETag", '"abc"'), ("Content-Length", "3")]


@pytest.mark.parametrize("status", ["204 No Content", "205 Reset Content", "206 Partial Content", "304 Not Modified"])
def test_passes_through_statuses_without_a_whole_body(status: str) -> None:
    response = answer([], TEXT, ("ETag", '"abc"'), status=status)
    assert (response.status, response.data, [*response.headers]) == (status, b"", [TEXT, ("ETag", '"abc"')])


def test_passes_through_identity_is_no_encoding() -> None:
    assert answer(b"[1]", JSON, ("Content-Encoding", "identity")).json == {"status_code": 200, "body": [1]}


def test_passes_through_passthrough_leaves_bodies_alone() -> None:
    response = answer(b"[1]", JSON, options=normalize.NormalizeOptions())
    assert (response.data, response.headers["Content-Length"]) == (b"[1]", "3")


# The limit, and streams


def test_limit_known_length_over_it_is_not_read_here() -> None:
    body = Body(b"x" * 11)
    app = wrapped(respond_with(body, headers=[TEXT, ("Content-Length", "11")]), LIMIT)
    assert app(make_environ(), Start()) is body
    assert body.read == 0


def test_limit_length_at_it_is_enveloped() -> None:
    assert answer(b"x" * 10, TEXT, options=LIMIT).json == {"status_code": 200, "body": "x" * 10}


def test_limit_unknown_length_below_it_is_enveloped_and_closed() -> None:
    body = Body(b"12345", b"", b"67890")
    assert answer(body, TEXT, options=LIMIT).json == {"status_code": 200, "body": "1234567890"}
    assert body.closed == 1


def test_limit_unknown_length_over_it_goes_on_as_it_comes() -> None:
    body = Body(*[b"%03d," % number for number in range(100)])
    start = Start()
    app = wrapped(respond_with(body, headers=[TEXT, ("ETag", '"abc"')]), LIMIT)
    blocks = iter(result := app(make_environ(), start))
    assert start.calls == [("200 OK", [TEXT, ("ETag", '"abc"')], None)]
    assert body.read == 3, "it has read further than the block that goes over the limit"
    assert next(blocks) == b"000,001,002,"
    assert (next(blocks), body.read) == (b"003,", 4)
    assert b"".join(blocks) == b"".join(body.blocks[4:])
    assert body.closed == 0
    result.close()  # type: ignore[attr-defined]
    assert body.closed == 1


def test_limit_of_zero_envelopes_empty_bodies_only() -> None:
    none = normalize.NormalizeOptions(format="envelope", max_body_bytes=0)
    assert answer(b"1", JSON, options=none).data == b"1"
    assert answer([], TEXT, options=none).json == {"status_code": 200, "body": ""}


def test_body_that_breaks_off_is_closed_and_nothing_has_begun() -> None:
    body, start = Body(b"[", error=UpstreamTruncated("gone")), Start()
    with pytest.raises(UpstreamTruncated):
        wrapped(respond_with(body, headers=[JSON]))(make_environ(), start)
    assert (body.closed, start.calls) == (1, [])


def writing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    write = start_response("200 OK", [TEXT])
    write(b"one ")
    return [b"two"]


def test_write_callable_is_collected_too() -> None:
    assert client(wrapped(writing), make_exchange()).get("/").json == {"status_code": 200, "body": "one two"}


class Late:
    """Calls start_response when its body is read, which WSGI allows."""

    def __init__(self, *headers: tuple[str, str]) -> None:
        self.headers = list(headers)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def body() -> Iterator[bytes]:
            start_response("200 OK", self.headers)
            yield b"1"
            yield b"2"

        return body()


def test_late_start_is_enveloped_or_passed_on_like_any_other() -> None:
    assert client(wrapped(Late(TEXT)), make_exchange()).get("/").json == {"status_code": 200, "body": "12"}
    assert client(wrapped(Late()), make_exchange()).get("/").data == b"12"
    assert client(wrapped(Late(TEXT), normalize.NormalizeOptions()), make_exchange()).get("/").data == b"12"


class Twice:
    """Changes its mind after start_response, as a middleware that fails late does."""

    def __init__(self, first: tuple[str, str], second: tuple[str, str]) -> None:
        self.headers = [first], [second]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", self.headers[0])
        try:
            raise ValueError("late")
        except ValueError:
            start_response("500 Oops", self.headers[1], sys.exc_info())
        return [b"oops"]


@pytest.mark.parametrize("options", [ENVELOPE, normalize.NormalizeOptions()], ids=["envelope", "passthrough"])
@pytest.mark.parametrize("first", [TEXT, ("Content-Type", "image/png")])
@pytest.mark.parametrize("second", [TEXT, ("Content-Type", "image/png")])
def test_second_start_replaces_the_first(first: tuple[str, str], second: tuple[str, str], options: Any) -> None:
    start = Start()
    body = wrapped(Twice(first, second), options)(make_environ(), start)
    enveloped = second is TEXT and options is ENVELOPE
    assert b"".join(body) == (b'{"status_code": 500, "body": "oops"}' if enveloped else b"oops")
    status, _, exc_info = start.calls[-1]
    assert (status, str(exc_info[1])) == ("500 Oops", "late")


@pytest.mark.parametrize("options", [ENVELOPE, LIMIT, normalize.NormalizeOptions()], ids=["envelope", "limit", "passthrough"])
@pytest.mark.parametrize(
    "body", [b"hello", b"more than the limit", [b"more than", b" the limit"]], ids=["short", "long", "stream"]
)
def test_middleware_is_valid_wsgi(options: Any, body: Any) -> None:
    app = validator(wrapped(validator(respond_with(body, headers=[TEXT])), options))
    result = app(make_environ("/"), Start())
    assert b"".join(result)
    result.close()  # type: ignore[attr-defined]


# In a gateway


def refusing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    raise ConnectionRefused


def test_gateway_faults_and_default_response_keep_their_shape() -> None:
    raw = {"body": "<p>no</p>", "status_code": 403, "content_type": "text/html"}
    with running_gateway(
        {"plugins": {"normalize": {"format": "envelope"}}, "default_response": raw}, {"orders": refusing}
    ) as gateway:
        assert_error(client(gateway).get("/orders"), 503, "refused")
        assert client(gateway).get("/nowhere").data == b"<p>no</p>"


def test_gateway_body_that_breaks_off_before_it_is_whole_is_a_fault() -> None:
    app = respond_with(Body(b"[", error=UpstreamTruncated("gone")), headers=[JSON])
    with running_gateway({"plugins": {"normalize": {"format": "envelope"}}}, {"orders": app}) as gateway:
        assert_error(client(gateway).get("/orders"), 502, "truncated")


def test_gateway_routes_have_their_own_way() -> None:
    app = respond_with(b"[1]", headers=[JSON, ("Keep-Alive", "1")])
    config = {
        "plugins": {"normalize": {"format": "envelope", "max_body_bytes": 100}},
        "routes": [
            {"path_prefix": "/all", "backend": "orders"},
            {"path_prefix": "/off", "backend": "orders", "plugins": {"normalize": False}},
            {"path_prefix": "/through", "backend": "orders", "plugins": {"normalize": {"format": "passthrough"}}},
            {"path_prefix": "/small", "backend": "orders", "plugins": {"normalize": {"max_body_bytes": 2}}},
        ],
    }
    with running_gateway(config, {"orders": app}) as gateway:
        asked = client(gateway)
        assert asked.get("/all").json == {"status_code": 200, "body": [1]}
        assert [asked.get(path).data for path in ("/off", "/through", "/small")] == [b"[1]"] * 3
        assert ["Keep-Alive" in asked.get(path).headers for path in ("/all", "/off", "/through", "/small")] == [
            False,
            True,
            False,
            False,
        ]


def test_gateway_only_one_route_may_have_envelopes() -> None:
    routes = [
        {"path_prefix": "/a", "backend": "orders"},
        {"path_prefix": "/b", "backend": "orders", "plugins": {"normalize": {"format": "envelope"}}},
    ]
    with running_gateway({"routes": routes}, {"orders": respond_with(b"[1]", headers=[JSON])}) as gateway:
        assert [client(gateway).get(path).data for path in ("/a", "/b")] == [b"[1]", b'{"status_code": 200, "body": [1]}']


@pytest.mark.parametrize(
    "options", [{"format": "xml"}, {"max_body_bytes": -1}, {"max_body_bytes": 1 << 30}, {"size": 1}], ids=str
)
def test_options_out_of_bounds_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        normalize.NormalizeOptions(**options)
