"""The request target: what is accepted has one reading only, and stays byte for byte."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rgate.http1.target import Target, parse_target, target_from_environ_path, without_dot_segments

KEPT = {
    "plain": "/api/orders",
    "root": "/",
    "empty query": "/api?",
    "query": "/api?a=1&b=%20&c=+",
    "second question mark": "/api?a?b",
    "encoded slash": "/api/a%2Fb",
    "encoded slash, lower case": "/api/a%2fb",
    "encoded percent": "/api/a%25b",
    "double encoding is one reading": "/api/%252e%252e/x",
    "encoded dot within a segment": "/api/a%2ejson",
    "unreserved escapes": "/api/%7Euser",
    "parameters": "/api/a;v=1/b",
    "empty segments": "/api//a///b",
    "leading empty segment": "//api/a",
    "three dots": "/api/.../x",
    "dot file": "/api/.well-known/x",
    "two dots at the start of a segment": "/api/..x",
    "two dots at the end of a segment": "/api/x..",
    "colon and at": "/api/@scope:pkg",
    "npm scoped package": "/@scope%2fpkg/-/pkg-1.0.0.tgz",
    "sub-delims": "/!$&'()*+,;=",
    "delims that browsers send": '/a|b^c`d{e}"f<g>',
    "utf-8": "/caf%C3%A9",
    "EUC-JP, whose letters are overlong dots and slashes": "/%CA%BF%C0%AE/%C0%AF%BC%A3.txt",
    "GBK": "/%B0%A1%C0%AE%C0%AF",
    "dots in the query": "/api?x=/../y",
    "overlong dots in the query": "/api?x=/%c0%ae%c0%ae/",
    "backslash in the query": "/api?x=\\",
    "encoded line feed": "/api/%0A",
}


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_target_odd_but_clear_stays_byte_for_byte(text: str) -> None:
    assert parse_target("GET", text).raw == text


REFUSED = {
    "empty": "",
    "no slash": "api",
    "asterisk with GET": "*",
    "authority": "example.com:80",
    "fragment": "/api#x",
    "fragment in the query": "/api?x#y",
    "space": "/a b",
    "tab": "/a\tb",
    "control byte": "/a\x01b",
    "DEL": "/a\x7fb",
    "NUL": "/a\x00b",
    "obs-text": "/caf\xe9",
    "obs-text in the query": "/?\xe9",
    "overlong slash as bytes": "/\xc0\xaf",
    "overlong dot as bytes": "/\xc0\xae\xc0\xae/x",
    "surrogate as bytes": "/\xed\xa0\x80",
    "above Latin-1": "/caf\u20ac",
    "UTF-8 in the fragment": "/#\xc3\xa9",
    "UTF-8 beside a control byte": "/\xc3\xa9\x01",
    "line feed at the end": "/api\n",
    "backslash": "/api\\..\\x",
    "encoded NUL": "/api/%00",
    "bad escape": "/api/%zz",
    "cut escape": "/api/%2",
    "percent alone": "/100%",
    "dot segment with parameters": "/api/.;/x",
    "dot segment between encoded slashes": "/api%2F.%2Fx",
    "dot segment behind an encoded slash": "/api%2F./x",
    "dot segment before an encoded backslash": "/api/.%5Cx",
    "dot segment that is overlong": "/api/%c0%ae/x",
    "double dot segment behind a single one": "/api/./../x",
    "double dot segment": "/api/../x",
    "double dot segment at the end": "/api/..",
    "double dot segment first": "/../x",
    "double dot before the query": "/api/..?x",
    "encoded dots": "/api/%2e%2e/x",
    "encoded dots, upper case": "/api/%2E%2E/x",
    "one dot encoded": "/api/.%2e/x",
    "other dot encoded": "/api/%2e./x",
    "encoded slash before dots": "/api%2F../x",
    "encoded slash behind dots": "/api/..%2Fx",
    "encoded backslash before dots": "/api%5C../x",
    "encoded backslash behind dots": "/api/..%5cx",
    "all encoded": "/api%2f%2e%2e%2fx",
    "dots with parameters": "/api/..;/x",
    "dots with encoded parameters": "/api/..%3Bv=1/x",
    "dots with an encoded question mark": "/api/..%3Fx",
    "dots with an encoded fragment": "/api/..%23x",
    "overlong dots": "/api/%c0%ae%c0%ae/x",
    "overlong dots, upper case": "/api/%C0%AE%C0%AE/x",
    "overlong dot and a dot": "/api/.%c0%ae/x",
    "overlong dots of three bytes": "/api/%e0%80%ae%e0%80%ae/x",
    "overlong dots of four bytes": "/api/%f0%80%80%ae%f0%80%80%ae/x",
    "overlong slash before dots": "/api%c0%af../x",
    "overlong slash behind dots": "/api/..%e0%80%afx",
    "overlong backslash round dots": "/api%c1%9c..%e0%81%9cx",
    "overlong everything": "/api%c0%af%c0%ae%c0%ae%c0%afx",
    "overlong NUL": "/api/x%C0%80.txt",
    "ftp": "ftp://example.com/x",
    "absolute without authority": "http:///x",
    "absolute with user": "http://user@example.com\\/x",
    "absolute with backslash": "http://example.com\\@evil/x",
    "absolute with dots": "http://example.com/../x",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_target_without_one_single_reading_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"target|path"):
        parse_target("GET", text)


VIEWS = {
    "/api/a%2Fb?q=%31": Target("/api/a%2Fb?q=%31", "/api/a%2Fb", "/api/a/b", "q=%31", ambiguous=True),
    "/%61pi/%7Ex": Target("/%61pi/%7Ex", "/api/~x", "/api/~x", "", is_normalized=False),
    "//api///x": Target("//api///x", "/api/x", "//api///x", "", ambiguous=True, is_normalized=False),
    "/caf%c3%a9": Target("/caf%c3%a9", "/caf%C3%A9", "/caf\xc3\xa9", "", is_normalized=False),
    "/%25": Target("/%25", "/%25", "/%", "", ambiguous=True),
    "/;a=1": Target("/;a=1", "/;a=1", "/;a=1", "", ambiguous=True),
    "/caf\xc3\xa9?q=\xe2\x82\xac+\xf0\x9f\x98\x80": Target(
        "/caf%C3%A9?q=%E2%82%AC+%F0%9F%98%80", "/caf%C3%A9", "/caf\xc3\xa9", "q=%E2%82%AC+%F0%9F%98%80"
    ),
    "/\xc2\x85": Target("/%C2%85", "/%C2%85", "/\xc2\x85", ""),
    "http://x/\xc3\xa9": Target("/%C3%A9", "/%C3%A9", "/\xc3\xa9", "", "x"),
    "/./Packages": Target("/Packages", "/Packages", "/Packages", "", is_normalized=False),
    "/a/././b/.?c=/./": Target("/a/b/?c=/./", "/a/b/", "/a/b/", "c=/./", is_normalized=False),
    "/.": Target("/", "/", "/", "", is_normalized=False),
    "/a/%2e/%2E/b?": Target("/a/b?", "/a/b", "/a/b", "", is_normalized=False),
    "/.//x": Target("//x", "/x", "//x", "", ambiguous=True, is_normalized=False),
    "http://Example.com:8080/x?y": Target("/x?y", "/x", "/x", "y", "Example.com:8080"),
    "HTTPS://example.com": Target("/", "/", "/", "", "example.com"),
    "http://example.com?x": Target("/?x", "/", "/", "x", "example.com"),
}


@pytest.mark.parametrize(("text", "target"), VIEWS.items(), ids=VIEWS)
def test_target_has_a_view_for_routing_and_one_for_wsgi(text: str, target: Target) -> None:
    assert parse_target("GET", text) == target


READINGS = {
    "encoded slash, which WSGI servers decode": ("/a%2Fb", {"/a%2Fb", "/a/b"}),
    "the same in small letters": ("/a%2fb", {"/a%2Fb", "/a/b"}),
    "encoded backslash, which is a slash on Windows": ("/a%5Cb", {"/a%5Cb", "/a\\b", "/a/b"}),
    "slash encoded twice": ("/a%252Fb", {"/a%252Fb", "/a%2Fb", "/a/b"}),
    "encoded percent": ("/a%2541", {"/a%2541", "/a%41", "/aA"}),
    "parameters, cut by Tomcat from each segment and by Shiro to the end": ("/a;v/b;w", {"/a;v/b;w", "/a/b", "/a"}),
    "encoded semicolon": ("/a%3Bv/b", {"/a%3Bv/b", "/a;v/b", "/a/b", "/a"}),
    "slash in parameters, cut before decoding and behind it": ("/a;v%2Fb", {"/a;v%2Fb", "/a", "/a;v/b", "/a/b"}),
    "encoded question mark, which cuts": ("/a%3Fb/c", {"/a%3Fb/c", "/a?b/c", "/a"}),
    "encoded number sign, which cuts": ("/a%23b", {"/a%23b", "/a#b", "/a"}),
    "overlong slash": ("/a%c0%afb", {"/a%C0%AFb", "/a/b"}),
    "overlong backslash": ("/a%c1%9cb", {"/a%C1%9Cb", "/a\\b", "/a/b"}),
    "other signs that routing leaves encoded": ("/%40a%2C", {"/%40a%2C", "/@a,"}),
    "slashes kept, merged, and a host between": ("//a/b//c", {"//a/b//c", "/a/b/c", "/b/c"}),
    "a host further on, for who takes a prefix away": ("/a//b/c", {"/a//b/c", "/a/b/c", "/a/c"}),
    "nothing but slashes": ("///", {"//", "/", ""}),
    "dot segments, encoded twice": ("/a/%252e%252e/b", {"/a/%252E%252E/b".replace("E", "e"), "/a/%2e%2e/b", "/b"}),
    "above the root, encoded twice": ("/%252e%252e/b", {"/%252e%252e/b", "/%2e%2e/b", "/b"}),
    "a segment of dots, and a slash at the end": ("/%2e%2e%2e/", {"/.../"}),
    "letters stay letters": ("/caf%c3%a9%20", {"/caf%C3%A9%20"}),
}


@pytest.mark.parametrize(("text", "readings"), READINGS.values(), ids=READINGS)
def test_target_readings_are_those_that_backends_make(text: str, readings: set[str]) -> None:
    target = parse_target("GET", text)
    assert target.readings(20) == readings
    assert target.ambiguous == (len(readings) > 1)


def test_target_readings_take_a_prefix_with_ambiguous_signs_as_it_is_written() -> None:
    assert parse_target("GET", "/a%2Fb/c%2Fd").readings(20, "/a%2Fb") == {"/a%2Fb/c%2Fd", "/a%2Fb/c/d"}


LONG = {
    "behind a long name": ("/" + "a" * 10_000 + "%2Fadmin", {"/" + "a" * 355}),
    "behind parameters without end": ("/;" + "a" * 10_000 + "/admin;x", None),
    "behind a host without end": ("//" + "a" * 10_000 + "/admin", None),
    "behind encoded parameters without end": ("/%3B" + "a" * 10_000 + "/admin", None),
    "behind slashes without end": (
        "/x%2F" + "/" * 10_000 + "admin",
        {"/x%2F//admin", "/x%2F/admin", "/x%2F", "/x///admin", "/x/admin", "/x"},
    ),
    "behind encoded slashes without end": ("/" + "%2F" * 5_000 + "admin", None),
    "dots encoded twice behind anything": ("/public/" + "a" * 10_000 + "/%252e%252e/%252E%252E/admin", None),
    "signs of every kind": ("/%2F%5C%3B%3F%23%2525;%c0%af%c1%9c//x", None),
}


@pytest.mark.parametrize(("text", "readings"), LONG.values(), ids=LONG)
def test_target_readings_are_bounded_and_nothing_can_be_pushed_out_of_sight(text: str, readings: set[str] | None) -> None:
    assert parse_target("GET", text).readings(20) == readings


def test_target_merged_is_the_same_with_single_slashes() -> None:
    assert parse_target("GET", "http://x//a///b%2Fc?d//e").merged() == parse_target("GET", "http://x/a/b%2Fc?d//e")
    assert parse_target("GET", "//a?").merged().raw == "/a?"


def test_without_dot_segments_leaves_all_others() -> None:
    assert without_dot_segments("/./a/./.b/c./../.") == "/a/.b/c./../"


def test_target_asterisk_is_for_options_only() -> None:
    assert parse_target("OPTIONS", "*") == Target("*", "*", "*", "")


def segments(path: bytes) -> set[bytes]:
    """The segments that a careless backend might see: it cuts at a decoded "?" or "#", and takes "\\" as "/"."""
    path = re.split(rb"[?#]", path)[0]
    return {segment.partition(b";")[0] for segment in re.split(rb"[/\\]", path)}


_pieces = st.sampled_from([".", "..", "%2e", "%2E", "%2f", "%5c", "%5C", "%3b", ";", "/", "//", "%25", "?", "%3f", "%23", "a"])
_paths = st.lists(_pieces, max_size=12).map("".join)


@given(_paths)
@example("%2e%2E")
@example("a%5c..")
def test_target_that_is_accepted_has_no_dot_segment_in_any_decoding(path: str) -> None:
    try:
        target = parse_target("GET", "/" + path)
    except ValueError:
        return
    sent = target.raw.partition("?")[0].encode()
    assert not {b".", b".."} & (segments(unquote_to_bytes(sent)) | segments(sent) | segments(target.normalized_path.encode()))


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30))
def test_target_route_is_canonical(text: str) -> None:
    try:
        target = parse_target("GET", "/" + text)
    except ValueError:
        return
    again = parse_target("GET", target.normalized_path)
    assert again.normalized_path == target.normalized_path
    assert again.path.replace("//", "/") == re.sub("//+", "/", target.path).replace("//", "/")


@given(st.binary(max_size=20), st.sampled_from(["", "a=1", "?"]))
def test_target_from_environ_path_means_the_same_path(path: bytes, query: str) -> None:
    decoded = "/" + path.decode("latin-1")
    raw = target_from_environ_path(decoded, query)
    assert re.fullmatch(r"[!-~]+", raw)
    assert unquote_to_bytes(raw.partition("?")[0]).decode("latin-1") == decoded
    assert raw.partition("?")[2] == query


def test_target_from_environ_path_empty_is_root() -> None:
    assert target_from_environ_path("", "") == "/"
    assert target_from_environ_path("", "x") == "/?x"
