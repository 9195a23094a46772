"""Header field lines: the grammar, their meaning, and the bounded memory of them."""

from __future__ import annotations

import re
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgate.http1 import fields
from rgate.http1.fields import Field, FieldParser, Fields, encode_field
from rgate.http1.grammar import valid_host


def read(line: bytes) -> Field:
    return FieldParser().parse(line)


READ = {
    "plain": (b"Accept: text/html", ("Accept", "text/html")),
    "no space": (b"Accept:text/html", ("Accept", "text/html")),
    "spaces and tabs around": (b"Accept: \t text/html \t ", ("Accept", "text/html")),
    "spaces within": (b"Accept: a  b\tc", ("Accept", "a  b\tc")),
    "no value": (b"Accept:", ("Accept", "")),
    "only spaces": (b"Accept:   ", ("Accept", "")),
    "one character": (b"A: b", ("A", "b")),
    "every token character": (b"!#$%&'*+-.^_`|~09azAZ: x", ("!#$%&'*+-.^_`|~09azAZ", "x")),
    "colons in the value": (b"Referer: http://x:80/", ("Referer", "http://x:80/")),
    "obs-text": (b"X-Name: caf\xe9\xff", ("X-Name", "caf\xe9\xff")),
    "utf-8": (b"X-Name: caf\xc3\xa9", ("X-Name", "caf\xc3\xa9")),
    "no-break space is not a space": (b"X: \xa0a\x85\xa0", ("X", "\xa0a\x85\xa0")),
}


@pytest.mark.parametrize(("line", "pair"), READ.values(), ids=READ)
def test_field_line_of_the_grammar_is_read(line: bytes, pair: tuple[str, str]) -> None:
    field = read(line)
    assert field.pair == pair
    assert field.line == f"{pair[0]}: {pair[1]}\r\n".encode("latin-1")


REFUSED = {
    "empty": b"",
    "no colon": b"Accept",
    "empty name": b": x",
    "space before the colon": b"Accept : x",
    "tab before the colon": b"Accept\t: x",
    "folded line": b" Accept: x",
    "folded by a tab": b"\tx",
    "name with a space": b"Acc ept: x",
    "name that is not a token": b"Acc(ept: x",
    "name with obs-text": b"Acc\xe9pt: x",
    "name with NUL": b"Acc\x00ept: x",
    "NUL in the value": b"Accept: a\x00b",
    "CR in the value": b"Accept: a\rb",
    "LF in the value": b"Accept: a\nX: b",
    "CR at the end": b"Accept: a\r",
    "LF at the end": b"Accept: a\n",
    "vertical tab": b"Accept: a\x0bb",
    "vertical tab at the end": b"Accept: a\x0b",
    "form feed": b"Accept: \x0ca",
    "escape": b"Accept: a\x1bb",
    "DEL": b"Accept: a\x7fb",
}


@pytest.mark.parametrize("line", REFUSED.values(), ids=REFUSED)
def test_field_line_outside_the_grammar_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="malformed header line"):
        read(line)


# The grammar once more, written as the RFC has it (RFC 9110 §5.1, §5.5, §5.6.2, RFC 9112 §5).
_VCHAR = set(range(0x21, 0x7F)) | set(range(0x80, 0x100))
_TCHAR = set(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def reference(line: bytes) -> tuple[str, str] | None:
    name, colon, value = line.partition(b":")
    if not colon or not name or set(name) - _TCHAR or set(value) - _VCHAR - set(b" \t"):
        return None
    return name.decode("latin-1"), value.strip(b" \t").decode("latin-1")


@given(
    st.lists(st.sampled_from([b"a", b":", b" ", b"\t", b"\r", b"\n", b"\x00", b"\x7f", b"\x80", b"\xa0", b"(", b"-"]), max_size=9)
)
def test_field_line_is_read_as_the_rfc_has_it(pieces: list[bytes]) -> None:
    line = b"".join(pieces)
    try:
        pair = read(line).pair
    except ValueError:
        assert reference(line) is None
    else:
        assert pair == reference(line)


@pytest.mark.parametrize("line", [b"x:" + b" " * 60_000 + b"\x00", b"x: a" + b" a" * 30_000 + b"\x00", b"a" * 60_000])
def test_field_line_that_is_long_and_wrong_is_refused_in_linear_time(line: bytes) -> None:
    begin = perf_counter()
    with pytest.raises(ValueError, match="malformed"):
        read(line)
    assert perf_counter() - begin < 0.5


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("Host", fields.HOST),
        ("hOST", fields.HOST),
        ("Content-Length", fields.CONTENT_LENGTH),
        ("Transfer-Encoding", fields.TRANSFER_ENCODING),
        ("Connection", fields.CONNECTION),
        ("Expect", fields.EXPECT),
        ("Upgrade", fields.UPGRADE),
        ("Cookie", fields.COOKIE),
        ("Via", fields.VIA),
        *((name, fields.HOP_BY_HOP) for name in ("Keep-Alive", "Proxy-Connection", "HTTP2-Settings")),
        ("TE", fields.TE),
        ("Trailer", fields.TRAILER),
        *((name, fields.FORWARDED) for name in ("Forwarded",)),
        *((name, fields.PROXY_ONLY) for name in ("X-Real-IP", "X-Forwarded-User", "X-Forwarded-Client-Cert")),
        *((f"X-Forwarded-{name}", fields.FORWARDED) for name in ("For", "Proto", "Host", "Port", "Prefix")),
        ("X_Forwarded_For", fields.UNDERSCORE),
        ("Content_Length", fields.UNDERSCORE),
        ("Accept", fields.ORDINARY),
        ("Set-Cookie", fields.ORDINARY),
    ],
)
def test_field_meaning_is_found_whatever_the_case(name: str, meaning: int) -> None:
    assert Field(name, "x").kind == meaning
    assert Field(name.swapcase(), "x").kind == meaning


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("X-Request-Id", "HTTP_X_REQUEST_ID"),
        ("Content-Type", "CONTENT_TYPE"),
        ("content-length", "CONTENT_LENGTH"),
        ("Host", "HTTP_HOST"),
    ],
)
def test_field_key_is_wsgis(name: str, key: str) -> None:
    assert Field(name, "x").key == key


LENGTHS = {"0": 0, "5": 5, "007": 7, "9" * 18: int("9" * 18)}
NO_LENGTHS = [
    "",
    "+5",
    "-1",
    "0x5",
    "1_0",
    "5 5",
    "5, 5",
    "5,5",
    "5.0",
    "1e3",
    "9" * 19,
    "\xb2",
    "\u0665".encode().decode("latin-1"),
    "five",
]


@pytest.mark.parametrize(("value", "number"), LENGTHS.items())
def test_content_length_of_digits_is_a_number(value: str, number: int) -> None:
    assert Field("Content-Length", value).number == number


@pytest.mark.parametrize("value", NO_LENGTHS)
def test_content_length_of_anything_else_is_none(value: str) -> None:
    assert Field("Content-Length", value).number is None


HOSTS = [
    "example.com",
    "EXAMPLE.com:80",
    "localhost:8080",
    "127.0.0.1",
    "127.0.0.1:65535",
    "[::1]",
    "[2001:db8::7]:443",
    "a_b",
    "x.",
    "a~b!c",
]
NO_HOSTS = [
    "",
    " ",
    "a b",
    "a/b",
    "user@host",
    "host:",
    "host:x",
    "x,y",
    "[::::]",
    "[1.2.3.4]",
    "[g::1]",
    "[::1",
    "::1",
    "host:65536",
    "host:123456",
    "a:80:80",
    "::1",
    "[::1",
    "[::g]",
    "[]",
    "a\\b",
    "a%20b",
]
NO_HOSTS += ["a\x00", "a#b", "a?b", 'a"b', "caf\xe9", "[::1]x", "a,b c"]


@pytest.mark.parametrize("value", HOSTS)
def test_host_that_is_one_is_valid(value: str) -> None:
    assert valid_host(value)
    assert Field("Host", value).valid


@pytest.mark.parametrize("value", NO_HOSTS)
def test_host_that_is_none_is_not_valid(value: str) -> None:
    assert not valid_host(value)
    assert not Field("Host", value).valid


def test_connection_tokens_are_lower_case_and_stripped() -> None:
    assert Field("Connection", "Close, X-Foo\t,,\tBAR ").tokens == {"close", "x-foo", "bar", ""}
    assert not Field("Accept", "a, b").tokens


def test_field_reader_remembers_a_line_that_comes_again() -> None:
    reader = FieldParser()
    reader.parse(b"Accept: text/html")
    field = reader.parse(b"Accept: text/html")
    assert reader.cache[b"Accept: text/html"] is field


@pytest.mark.parametrize("name", ["Authorization", "Proxy-Authorization", "cookie", "Set-Cookie", "X-Api-Key"])
def test_field_reader_does_not_keep_credentials(name: str) -> None:
    reader = FieldParser()
    for _ in range(2):
        assert reader.parse(f"{name}: secret".encode()).uncacheable
    assert not reader.cache


def test_field_reader_memory_is_bounded() -> None:
    reader = FieldParser()
    for number in range(8_192):
        for _ in range(2):
            reader.parse(b"X: %d" % number)
        assert 0 < reader.cache.bytes <= FieldParser.MAX_BYTES
    assert len(reader.cache) < 8_192
    for _ in range(2):
        reader.parse(b"X: " + b"a" * FieldParser.MAX_LINE_BYTES)
    assert all(len(line) <= FieldParser.MAX_LINE_BYTES for line in reader.cache)


def test_fields_lines_are_the_lines_in_order() -> None:
    assert Fields().lines == b""
    several = Fields([Field("B", "1"), Field("A", "2"), Field("b", "3")])
    assert several.lines == b"B: 1\r\nA: 2\r\nb: 3\r\n"
    assert several.lines is several.lines


def test_forward_line_of_a_header_is_its_bytes() -> None:
    assert encode_field("X-Name", "caf\xe9") == b"X-Name: caf\xe9\r\n"


@pytest.mark.parametrize(
    ("name", "value"), [("X", "a\r\nY: b"), ("X", "a\x00"), ("X Y", "a"), ("", "a"), ("X", "\u20ac"), ("X:", "a"), ("\xe9", "a")]
)
def test_forward_line_that_no_header_may_be_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"not a header|latin-1"):
        encode_field(name, value)


def test_meanings_are_all_different() -> None:
    constants = [value for name, value in vars(fields).items() if re.fullmatch("[A-Z_]{2,}", name) and isinstance(value, int)]
    assert len(constants) == len(set(constants)) == 16
