"""The gateway's keys in a WSGI environ: under other servers, and after middleware has edited it."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest

from rgate.http1.environ import FIELDS_KEY, TARGET_KEY, edited_fields, edited_target, from_foreign_environ
from rgate.http1.request import RequestParser


def environ_of(head: bytes) -> dict[str, Any]:
    """As rgate's own server makes it."""
    return dict(RequestParser().parse(head).environ)


def adopted(target: str = "/x", method: str = "GET", **environ: str) -> dict[str, Any]:
    """As another server makes it: decoded path, joined headers, no rgate.target."""
    path, _, query = target.partition("?")
    made: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote(path, "latin-1"),
        "QUERY_STRING": query,
        **environ,
    }
    from_foreign_environ(made)
    return made


def pairs(environ: dict[str, Any]) -> list[tuple[str, str]]:
    return [field.pair for field in environ[FIELDS_KEY]]


def test_adopt_target_that_was_kept_stays_byte_for_byte() -> None:
    assert adopted("/a%2fb?q", RAW_URI="/a%2fb?q")[TARGET_KEY].raw == "/a%2fb?q"
    assert adopted("/a%2fb?q", REQUEST_URI="/a%2fb?q")[TARGET_KEY].raw == "/a%2fb?q"


def test_adopt_target_that_was_not_kept_is_encoded_again() -> None:
    assert adopted("/caf%c3%a9 x?q=1")[TARGET_KEY].raw == "/caf%C3%A9%20x?q=1"


@pytest.mark.parametrize("kept", [True, False], ids=["target kept", "decoded only"])
def test_adopt_dot_segments_are_removed_from_the_path_in_environ_too(kept: bool) -> None:
    environ = adopted("/mounted/./a%20b/%2e/?q", SCRIPT_NAME="", **({"RAW_URI": "/mounted/./a%20b/%2e/?q"} if kept else {}))
    assert environ[TARGET_KEY].raw == "/mounted/a%20b/?q"
    assert environ["PATH_INFO"] == "/mounted/a b/"
    assert edited_target(environ) is environ[TARGET_KEY]


def test_adopt_target_above_ascii_is_percent_encoded() -> None:
    environ = adopted("/caf\xc3\xa9?q=\xc3\xa9", RAW_URI="/caf\xc3\xa9?q=\xc3\xa9")
    assert environ[TARGET_KEY].raw == "/caf%C3%A9?q=%C3%A9"
    assert environ["QUERY_STRING"] == "q=%C3%A9"
    assert edited_target(environ) is environ[TARGET_KEY]


def test_adopt_script_name_belongs_to_the_path() -> None:
    environ = adopted("/x", SCRIPT_NAME="/mounted")
    assert environ[TARGET_KEY].raw == "/mounted/x"
    assert edited_target(environ) is environ[TARGET_KEY]


@pytest.mark.parametrize(
    ("target", "raw"), [("/a/../b", "/a/../b"), ("/a/../b", ""), ("/a", "/b"), ("/x", "x"), ("/a\x00", "")], ids=repr
)
def test_adopt_target_without_a_single_reading_is_refused(target: str, raw: str) -> None:
    with pytest.raises(ValueError, match=r"path|target"):
        adopted(target, RAW_URI=raw)


def test_adopt_headers_are_those_that_may_be_passed_on() -> None:
    environ = adopted(
        HTTP_HOST="example.com",
        HTTP_X_NAME="caf\xe9",
        CONTENT_TYPE="text/plain",
        CONTENT_LENGTH="5",
        HTTP_TRANSFER_ENCODING="chunked",
        HTTP_EXPECT="100-continue",
        HTTP_UPGRADE="h2c",
        HTTP_KEEP_ALIVE="5",
        HTTP_TE="trailers",
        HTTP_VIA="1.1 x",
        HTTP_X_FORWARDED_FOR="1.2.3.4",
        HTTP_FORWARDED="for=x",
        SERVER_NAME="x",
    )
    assert pairs(environ) == [("Host", "example.com"), ("X-Name", "caf\xe9"), ("Content-Type", "text/plain")]
    assert environ["HTTP_X_FORWARDED_FOR"] == "1.2.3.4"


def test_adopt_without_content_type_makes_none_up() -> None:
    assert pairs(adopted(CONTENT_TYPE="")) == []


def test_adopt_headers_named_by_connection_are_dropped() -> None:
    environ = adopted(HTTP_CONNECTION="close, X-Foo, cookie", HTTP_X_FOO="1", HTTP_X_BAR="2", HTTP_COOKIE="a=1")
    assert pairs(environ) == [("X-Bar", "2"), ("Cookie", "a=1")]
    assert "HTTP_X_FOO" not in environ
    assert edited_fields(environ) == [b"X-Bar: 2\r\n", b"Cookie: a=1\r\n"]


@pytest.mark.parametrize(
    "environ",
    [
        {"HTTP_X": "a\r\nY: b"},
        {"HTTP_X": "a\x00"},
        {"HTTP_X": "\u20ac"},
        {"HTTP_HOST": "a, b"},
        {"HTTP_HOST": ""},
    ],
    ids=repr,
)
def test_adopt_header_that_cannot_be_sent_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"header|Host|latin-1"):
        adopted(**environ)


HEAD = (
    b"GET /a%2Fb?q=1 HTTP/1.1\r\nHost: x\r\nAccept: a\r\nX-One: 1\r\naccept: b\r\nCookie: c=1\r\nCookie: d=2\r\nContent-Type: t"
)


def test_edited_without_an_edit_is_what_was_sent() -> None:
    environ = environ_of(HEAD)
    assert edited_target(environ) is environ[TARGET_KEY]
    assert b"".join(edited_fields(environ)) == environ[FIELDS_KEY].lines


def test_edited_header_that_is_set_takes_the_place_of_all_of_its_name() -> None:
    environ = environ_of(HEAD) | {"HTTP_ACCEPT": "c", "HTTP_X_NEW": "n", "CONTENT_TYPE": "u"}
    assert edited_fields(environ) == [
        b"Host: x\r\n", b"X-One: 1\r\n", b"Cookie: c=1\r\n", b"Cookie: d=2\r\n",
        b"Accept: c\r\n", b"Content-Type: u\r\n", b"X-New: n\r\n",
    ]  # fmt: skip


def test_edited_header_that_is_removed_is_not_sent() -> None:
    environ = environ_of(HEAD)
    del environ["HTTP_ACCEPT"], environ["HTTP_COOKIE"], environ["CONTENT_TYPE"]
    assert edited_fields(environ) == [b"Host: x\r\n", b"X-One: 1\r\n"]


def test_edited_header_of_this_hop_is_not_sent() -> None:
    environ = environ_of(HEAD) | {"HTTP_CONNECTION": "close", "HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": "5"}
    assert b"".join(edited_fields(environ)) == environ[FIELDS_KEY].lines


@pytest.mark.parametrize("value", ["a\r\nX: b", "a\nb", "\x00", "\u20ac"])
def test_edited_header_that_cannot_be_sent_is_an_error(value: str) -> None:
    with pytest.raises(ValueError, match=r"not a header|latin-1"):
        edited_fields(environ_of(HEAD) | {"HTTP_X_NEW": value})


def test_edited_path_is_encoded() -> None:
    target = edited_target(environ_of(HEAD) | {"PATH_INFO": "/caf\xe9 ?"})
    assert (target.raw, target.normalized_path, target.query) == ("/caf%E9%20%3F?q=1", "/caf%E9%20%3F", "q=1")


def test_edited_path_that_is_empty_is_the_root() -> None:
    assert edited_target(environ_of(HEAD) | {"PATH_INFO": ""}).raw == "/?q=1"


def test_edited_query_leaves_the_path_as_it_was_sent() -> None:
    assert edited_target(environ_of(HEAD) | {"QUERY_STRING": "r=%20"}).raw == "/a%2Fb?r=%20"
    assert edited_target(environ_of(HEAD) | {"QUERY_STRING": ""}).raw == "/a%2Fb"


@pytest.mark.parametrize(
    "edit",
    [
        {"PATH_INFO": "/a/../b"},
        {"PATH_INFO": "b"},
        {"PATH_INFO": "http://x/"},
        {"PATH_INFO": "/\x00"},
        {"PATH_INFO": "/\u20ac"},
        {"QUERY_STRING": "a b"},
        {"QUERY_STRING": "a HTTP/1.1\r\nX: y"},
        {"QUERY_STRING": "#"},
    ],
    ids=repr,
)
def test_edited_target_that_cannot_be_sent_is_an_error(edit: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"target|path|latin-1"):
        edited_target(environ_of(HEAD) | edit)
