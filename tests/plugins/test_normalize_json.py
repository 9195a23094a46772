"""normalize: limits on untrusted bodies. JSON is limited by its cost, charsets by their names."""

from __future__ import annotations

import encodings
import json

import pytest

from rgate.plugins.normalize import MAX_COMMAS, MAX_CONTAINERS, _Text, enveloped
from rgate.plugins.normalize.charset import codec
from rgate.testing import client, respond_with, running_gateway

JSON = _Text(True, "utf-8")


def put_in(body: bytes) -> object:
    """The body in the envelope: the JSON value itself, or a string."""
    return json.loads(enveloped("200", body, JSON))["body"]


CHECKED = {
    "brackets": b"[" + b"[]," * (MAX_CONTAINERS - 2) + b"[]]",
    "objects": b"[" + b"{}," * (MAX_CONTAINERS - 2) + b"{}]",
    "numbers": b"[" + b"1," * MAX_COMMAS + b"1]",
    "digits": b"1" * 1_000_000,
    "spaces": b"[" + b" " * 1_000_000 + b"]",
    "levels": b"[" * 900 + b"]" * 900,
}


@pytest.mark.parametrize("text", CHECKED.values(), ids=CHECKED)
def test_json_within_the_bounds_is_the_value_that_it_is(text: bytes) -> None:
    assert enveloped("200", text, JSON) == b'{"status_code": 200, "body": %s}' % text


NOT_CHECKED = {
    "brackets": b"[" + b"[]," * MAX_CONTAINERS + b"[]]",
    "objects": b"[" + b"{}," * MAX_CONTAINERS + b"{}]",
    "numbers": b"[" + b"1," * (MAX_COMMAS + 1) + b"1]",
    "levels": b"[" * 20_000 + b"]" * 20_000,
    "levels of objects": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "levels without an end": b"[" * 40_000,
}


@pytest.mark.parametrize("text", NOT_CHECKED.values(), ids=NOT_CHECKED)
def test_json_over_the_bounds_is_a_string(text: bytes) -> None:
    assert put_in(text) == text.decode()


@pytest.mark.parametrize(
    "text", ["1.", ".5", "01", "[1,]", "[1,,2]", '{"a":}', "NaN", "[Infinity]", '"\\x"', '"\x01"', "[1 2]", "", "nul"]
)
def test_what_is_not_json_is_a_string(text: str) -> None:
    assert put_in(text.encode()) == text


CHARSETS = {
    "utf-8": "utf_8", "UTF8": "utf_8", "utf-16": "utf_16", "UTF-16LE": "utf_16_le", "us-ascii": "ascii", "ISO-8859-1": "latin_1",
    "latin1": "latin_1", "iso-8859-15": "iso8859_15", "windows-1252": "cp1252", "cp1251": "cp1251", "Shift_JIS": "shift_jis",
    "x-sjis": "shift_jis", "windows-31j": "cp932", "EUC-JP": "euc_jp", "euc-kr": "euc_kr", "gb2312": "gb2312", "GBK": "gbk",
    "gb18030": "gb18030", "big5": "big5", "koi8-r": "koi8_r", "koi8-u": "koi8_u",
    "punycode": "utf-8", "idna": "utf-8", "base64": "utf-8", "zip": "utf-8", "bz2": "utf-8", "hex": "utf-8", "rot13": "utf-8",
    "unicode_escape": "utf-8", "raw_unicode_escape": "utf-8", "utf-7": "utf-8", "undefined": "utf-8", "mbcs": "utf-8",
    "none-such": "utf-8", "": "utf-8", "charset" * 1_000: "utf-8",
}  # fmt: skip


@pytest.mark.parametrize(("charset", "name"), CHARSETS.items(), ids=[name[:20] for name in CHARSETS])
def test_charset_is_one_of_a_few_or_utf_8(charset: str, name: str) -> None:
    assert codec(charset) == name
    b"".decode(codec(charset))


def test_charsets_that_are_unknown_leave_nothing_behind() -> None:
    """Python caches the name of every codec that is looked up, and a backend could send any number of names."""
    with running_gateway(
        {"plugins": {"normalize": {"format": "envelope"}}},
        {"orders": [respond_with(b"abc", headers=[("Content-Type", f"text/plain; charset=none-{n}")]) for n in range(5)]},
    ) as gateway:
        assert client(gateway).get("/orders").json == {"status_code": 200, "body": "abc"}
    assert not [name for name in encodings._cache if str(name).startswith("none")]  # type: ignore[attr-defined]
